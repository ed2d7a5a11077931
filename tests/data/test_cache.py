import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from unfog.data import cache as cache_module
from unfog.data import folder as folder_module
from unfog.data import gate as gate_module
from unfog.data import rows as rows_module
from unfog.data.cache import materialize
from unfog.data.dataset import pixel_digest
from unfog.data.image import Policy
from unfog.data.rows import Decoded, Transform
from unfog.data.source import Encoded, Source
from unfog.data.sources import DataSpec, open_dataset

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
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What has been decoded so far."""
    seen: list[object] = []
    decode = rows_module.decode

    def counted(content: object, *rest: object) -> object:
        seen.append(content)
        return decode(content, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rows_module, "decode", counted)
    return seen


def test_the_second_reading_is_equal_and_decodes_nothing(source: Source, decodings: list[object]) -> None:
    first = decoded(source)
    decodings.clear()
    second = decoded(source)
    assert decodings == []
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
    source: Source, decodings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_HASHED_BYTES", 0)
    first = decoded(source)
    decodings.clear()
    assert np.array_equal(decoded(source).pixels, first.pixels)
    assert decodings == []


def test_another_transform_is_another_array(source: Source) -> None:
    shapes = [decoded(source, t).pixels.shape for t in (Transform(), Transform((2, 3)), Transform(None, 3))]
    assert shapes == [(5, 1, 4, 4), (5, 1, 2, 3), (5, 3, 4, 4)]


def test_another_selection_is_another_array(source: Source) -> None:
    decoded(source)
    chosen = materialize(source, np.array([1, 4]), Transform())
    assert (chosen.pixels[:, 0, 0, 0].tolist(), chosen.kept.tolist()) == ([1, 4], [1, 4])


def test_more_pictures_than_one_task_stay_in_order(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_TASK", 3)
    monkeypatch.setattr(gate_module, "_WORKERS", 1)
    for level in range(8):
        save(f"{level}.png", level)
    (tmp_path / "pictures" / "4.png").write_bytes(b"broken")
    found = decoded(read(tmp_path))
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert found.kept.tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_a_task_without_a_readable_picture_does_no_harm(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_TASK", 1)
    for level in range(3):
        save(f"{level}.png", level)
    (tmp_path / "pictures" / "0.png").write_bytes(b"broken")
    assert decoded(read(tmp_path)).pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_of_two_that_want_the_same_one_decodes_and_the_other_waits(source: Source, cache: Path) -> None:
    both, streams = threading.Barrier(2, timeout=10), []

    def stream(ids: np.ndarray) -> Iterator[Encoded]:
        streams.append(threading.get_ident())
        yield from source.stream(ids)

    def open_it(_: int) -> Decoded:
        both.wait()
        return decoded(replace(source, stream=stream), Transform((4, 4), 1))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(open_it, range(2)))
    assert np.array_equal(found[0].pixels, found[1].pixels)
    assert len(streams) == 1
    assert len(list((cache / "data").iterdir())) == 1


OPEN = """
import sys
from unfog.data import rows
from unfog.data.sources import DataSpec, open_dataset
decode, count = rows.decode, []
rows.decode = lambda *given: (count.append(1), decode(*given))[1]
print(open_dataset(DataSpec(sys.argv[1])).info.fingerprint, len(count))
"""


def test_two_processes_decode_once_and_see_the_same(source: Source, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(tmp_path / "pictures")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0].split() for process in running]
    assert told[0][0] == told[1][0]
    assert sorted(int(count) for _, count in told) == [0, 5]


def test_a_spawned_worker_gathers_the_same_from_the_same_file(source: Source, tmp_path: Path) -> None:
    dataset = open_dataset(DataSpec(str(tmp_path / "pictures"), raw=True))
    ids = np.array([3, 0, 4])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(dataset.gather, ids).result()
    here = dataset.gather(ids)
    assert all(torch.equal(there[name], here[name]) for name in here)


@pytest.mark.parametrize("hashed_bytes", [2**20, 0])
def test_after_a_change_only_what_changed_is_decoded(
    source: Source,
    save: Save,
    tmp_path: Path,
    decodings: list[object],
    monkeypatch: pytest.MonkeyPatch,
    hashed_bytes: int,
) -> None:
    monkeypatch.setattr(cache_module, "_HASHED_BYTES", hashed_bytes)
    decoded(source)
    decodings.clear()
    os.utime(save("1.png", 100), ns=(0, 0))
    save("9.png", 90)
    (tmp_path / "pictures" / "3.png").unlink()
    assert decoded(read(tmp_path)).pixels[:, 0, 0, 0].tolist() == [0, 100, 2, 4, 90]
    assert len(decodings) == 2


def test_after_a_change_of_a_table_only_the_changed_row_is_decoded(
    tmp_path: Path, png: Callable[..., bytes], decodings: list[object]
) -> None:
    for levels in ([1, 2, 3, 4], [1, 2, 30, 4]):
        decodings.clear()
        pq.write_table(pa.table({"image": pa.array(map(png, levels), pa.binary())}), tmp_path / "train.parquet")
        found = open_dataset(DataSpec(str(tmp_path), raw=True)).gather(np.arange(4))["pixels"]
        assert found[:, 0, 0, 0].tolist() == levels
    assert len(decodings) == 1


def test_another_selection_takes_its_rows_from_the_whole(source: Source, decodings: list[object]) -> None:
    decoded(source)
    decodings.clear()
    assert materialize(source, np.array([1, 4]), Transform()).pixels[:, 0, 0, 0].tolist() == [1, 4]
    assert decodings == []


def test_reused_rows_have_the_digest_and_notices_of_decoded_ones(source: Source, save: Save, tmp_path: Path) -> None:
    first, second = io.BytesIO(), Image.new("L", (4, 4), 9)
    Image.new("L", (4, 4), 8).save(first, "GIF", save_all=True, append_images=[second])
    (tmp_path / "pictures" / "8.gif").write_bytes(first.getvalue())
    decoded(read(tmp_path), Transform((8, 8), 1))
    save("9.png", 9)
    found = decoded(read(tmp_path), Transform((8, 8), 1))
    afresh = decoded(replace(read(tmp_path), files=None), Transform((8, 8), 1))
    assert found.digest == pixel_digest(found.pixels) == afresh.digest
    assert found.notices == afresh.notices
    assert "1 of 7 pictures have several frames" in found.notices[0]


@pytest.mark.parametrize(
    "other", [Transform((8, 8)), Transform(None, 3), Transform(policy=Policy((0, 0, 0))), Transform((4, 4), 4)]
)
def test_rows_made_in_another_way_are_not_reused(source: Source, decodings: list[object], other: Transform) -> None:
    decoded(source)
    decodings.clear()
    decoded(source, other)
    assert len(decodings) == 5


def test_a_damaged_folder_is_not_reused(source: Source, cache: Path, save: Save, tmp_path: Path) -> None:
    decoded(source)
    (place,) = (cache / "data").iterdir()
    (place / "keys.npy").write_bytes(b"")
    save("9.png", 90)
    assert decoded(read(tmp_path)).pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 90]


def test_what_a_killed_process_left_is_removed(source: Source, cache: Path) -> None:
    draft = cache / "data" / ".0123.77.abcd"
    draft.mkdir(parents=True)
    (draft / "pixels.npy").write_bytes(b"half")
    decoded(source)
    assert not draft.exists()


def test_what_a_living_process_is_writing_is_left_alone(source: Source, cache: Path) -> None:
    draft = cache / "data" / ".0123.77.abcd"
    draft.mkdir(parents=True)
    (cache / "locks").mkdir()
    with FileLock(cache / "locks" / "0123.lock"):
        decoded(source)
    assert draft.exists()


def test_an_interrupt_leaves_nothing_behind(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[object]
) -> None:
    decode = rows_module.decode

    def interrupted(*given: object) -> object:
        if len(decodings) == 2:
            raise KeyboardInterrupt
        return decode(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rows_module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoded(source)
    assert list((cache / "data").iterdir()) == []


def test_without_locks_the_first_to_end_is_used(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: FileLock) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    assert decoded(source).pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


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
    monkeypatch.setattr(rows_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="UNFOG_CACHE"):
        decoded(source)


def test_a_cache_that_cannot_be_written_is_refused(source: Source, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="set UNFOG_CACHE"):
        decoded(source)


def test_without_the_variable_the_cache_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNFOG_CACHE")
    assert cache_module.cache_folder() == tmp_path / "home" / ".cache" / "unfog"
