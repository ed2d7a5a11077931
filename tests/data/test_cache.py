import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfog.data import cache as cache_module
from unfog.data import folder as folder_module
from unfog.data.cache import Decoded, Transform, materialize
from unfog.data.dataset import pixel_digest
from unfog.data.source import Encoded, Source

Save = Callable[..., Path]


@pytest.fixture
def source(save: Save, tmp_path: Path) -> Source:
    for level in range(5):
        save(f"{level}.png", level)
    return read(tmp_path)


def read(tmp_path: Path) -> Source:
    return folder_module.splits_of(tmp_path / "pictures")[None]()


def decoded(source: Source, transform: Transform | None = None) -> Decoded:
    return materialize(source, np.arange(source.count), transform or Transform())


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse() -> None:
        def decode(*_: object) -> None:
            raise AssertionError("decoded again")

        monkeypatch.setattr(cache_module, "_decode_one", decode)

    return refuse


def test_the_second_reading_is_equal_and_decodes_nothing(source: Source, no_decoding: Callable[[], None]) -> None:
    first = decoded(source)
    no_decoding()
    second = decoded(source)
    assert np.array_equal(first.pixels, second.pixels)
    assert (first.digest, first.report) == (second.digest, second.report)


def test_the_cached_array_equals_the_one_decoded_in_memory(source: Source) -> None:
    assert np.array_equal(decoded(source).pixels, decoded(replace(source, files=None)).pixels)


def test_the_digest_is_that_of_the_pixels(source: Source) -> None:
    found = decoded(source)
    assert found.digest == pixel_digest(found.pixels)


def test_the_cached_array_is_mapped_and_read_only(source: Source) -> None:
    assert not decoded(source).pixels.flags.writeable


def test_a_file_changed_within_one_tick_of_the_clock_is_decoded_again(save: Save, tmp_path: Path) -> None:
    for level in (2, 200):
        file = save("a.png", level)
        file.write_bytes(file.read_bytes().ljust(100, b"\0"))  # Pillow reads no further than the end of the picture
        os.utime(file, ns=(0, 0))
        assert decoded(read(tmp_path)).pixels.max() == level


def test_a_changed_large_file_is_known_by_its_time(
    source: Source, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_HASHED_BYTES", 0)
    decoded(source)
    os.utime(save("2.png", 200), ns=(0, 0))
    assert decoded(read(tmp_path)).pixels[2, 0, 0, 0] == 200


def test_an_unchanged_large_file_is_not_decoded_again(
    source: Source, no_decoding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_HASHED_BYTES", 0)
    first = decoded(source)
    no_decoding()
    assert np.array_equal(decoded(source).pixels, first.pixels)


def test_another_transform_is_another_array(source: Source) -> None:
    shapes = [decoded(source, t).pixels.shape for t in (Transform(), Transform((2, 3)), Transform(None, 3))]
    assert shapes == [(5, 1, 4, 4), (5, 1, 2, 3), (5, 3, 4, 4)]


def test_another_selection_is_another_array(source: Source) -> None:
    decoded(source)
    chosen = materialize(source, np.array([1, 4]), Transform())
    assert (chosen.pixels[:, 0, 0, 0].tolist(), chosen.kept.tolist()) == ([1, 4], [1, 4])


def test_more_pictures_than_one_chunk_stay_in_order(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 3)
    for level in range(8):
        save(f"{level}.png", level)
    (tmp_path / "pictures" / "4.png").write_bytes(b"broken")
    found = decoded(read(tmp_path))
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert found.kept.tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_a_chunk_without_a_readable_picture_does_no_harm(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 1)
    for level in range(3):
        save(f"{level}.png", level)
    (tmp_path / "pictures" / "0.png").write_bytes(b"broken")
    assert decoded(read(tmp_path)).pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_concurrent_writers_agree_and_leave_one_folder(source: Source, cache: Path) -> None:
    both = threading.Barrier(2, timeout=10)

    def stream(ids: np.ndarray) -> Iterator[Encoded]:
        both.wait()  # neither writer may find the other's result before it starts
        yield from source.stream(ids)

    slow = replace(source, stream=stream)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: decoded(slow), range(2)))
    assert np.array_equal(found[0].pixels, found[1].pixels)
    assert len(list((cache / "data").iterdir())) == 1


def test_a_failed_writing_leaves_nothing_behind(source: Source, cache: Path) -> None:
    def stream(ids: np.ndarray) -> Iterator[Encoded]:
        yield from list(source.stream(ids))[:2]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        decoded(replace(source, stream=stream))
    assert list((cache / "data").iterdir()) == []


def test_a_damaged_cache_is_refused_by_name(source: Source, cache: Path) -> None:
    decoded(source)
    (place,) = (cache / "data").iterdir()
    (place / "pixels.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{place.name} are damaged: delete"):
        decoded(source)


def test_a_full_disk_is_noticed_before_the_work(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="UNFOG_CACHE"):
        decoded(source)


def test_a_cache_that_cannot_be_written_is_refused(source: Source, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="set UNFOG_CACHE"):
        decoded(source)


def test_without_the_variable_the_cache_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNFOG_CACHE")
    assert cache_module.cache_folder() == tmp_path / "home" / ".cache" / "unfog"
