import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data.check import examiners
from unfog.data.folder import splits_of
from unfog.data.gate import passed
from unfog.data.sources import DataSpec, open_dataset

Save = Callable[..., Path]
Spoil = Callable[[Path, pytest.MonkeyPatch], None]


def truncated(path: Path, _: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def text(path: Path, _: pytest.MonkeyPatch) -> None:
    path.write_text("<html>Not found</html>")


def empty(path: Path, _: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")


def dangling(path: Path, _: pytest.MonkeyPatch) -> None:
    path.symlink_to("elsewhere.png")


def circular(path: Path, _: pytest.MonkeyPatch) -> None:
    path.symlink_to(path.name)


def unreadable(path: Path, patch: pytest.MonkeyPatch) -> None:
    # Taking away the permission would not keep root, as which tests may run, from reading.
    Image.new("L", (4, 4)).save(path)
    reading = Path.read_bytes

    def read_bytes(given: Path) -> bytes:
        if given.name == path.name:
            raise PermissionError(13, "Permission denied", str(given))
        return reading(given)

    patch.setattr(Path, "read_bytes", read_bytes)
    patch.setattr("builtins.open", _refusing(path, open))


def _refusing(path: Path, opening: Callable[..., object]) -> Callable[..., object]:
    def opened(given: object, *rest: object, **options: object) -> object:
        if str(given) == str(path):
            raise PermissionError(13, "Permission denied", str(given))
        return opening(given, *rest, **options)

    return opened


def bomb(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 10)).save(path)


def great_bomb(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (150, 10)).save(path)


def floats(path: Path, _: pytest.MonkeyPatch) -> None:
    Image.new("F", (4, 4)).save(path, "TIFF")


BAD = [
    (truncated, "truncated"),
    (text, "it is none of JPEG, PNG"),
    (empty, r"it is empty \(0 bytes\)"),
    (dangling, r"it is a link to nothing \(elsewhere.png\)"),
    (circular, "OSError|link"),
    (unreadable, "permissions"),
    (bomb, "too large .*150 pixels"),
    (great_bomb, "too large .*1500 pixels"),
    (floats, "no stated range"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD)
def test_a_bad_file_is_left_out_counted_and_named(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, reason: str
) -> None:
    save("a.png", 10)
    spoil(tmp_path / "pictures" / "B.JPG", monkeypatch)
    info = open_dataset(DataSpec(str(tmp_path / "pictures"), size=4, channels=1, max_bad=0.5)).info
    assert (info.count, info.report.found) == (1, 2)
    (skipped,) = info.report.skipped
    assert skipped.name == "B.JPG"
    assert re.search(reason, skipped.reason), skipped.reason


@pytest.mark.parametrize(("spoil", "reason"), BAD)
@pytest.mark.parametrize("max_bad", [0.49, 0.5])
def test_checking_and_training_refuse_the_same(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, reason: str, max_bad: float
) -> None:
    save("a.png", 10)
    spoil(tmp_path / "pictures" / "b.jpg", monkeypatch)
    spec = DataSpec(str(tmp_path / "pictures"), size=4, max_bad=max_bad)
    (examiner,) = examiners(spec, None)
    list(examiner)
    found = examiner.result()
    if max_bad < 0.5:
        with pytest.raises(ValueError, match="1 of the 2 pictures") as caught:
            open_dataset(spec)
        assert found.refusals == (str(caught.value),)
    else:
        assert found.refusals == ()
        assert open_dataset(spec).info.report == found.report


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3000), (3000, 3)])
def test_pictures_of_odd_shapes_are_read_and_counted_as_enlarged(
    save: Save, tmp_path: Path, height: int, width: int
) -> None:
    save("a.png", 10, height, width)
    info = open_dataset(DataSpec(str(tmp_path / "pictures"), size=8)).info
    assert (info.count, info.size) == (1, (8, 8))
    assert info.notices == ("1 of 1 pictures are smaller than 8x8 and are enlarged",)


def test_folders_and_pipes_are_no_pictures_whatever_they_are_called(save: Save, tmp_path: Path) -> None:
    save("a.png", 10)
    (tmp_path / "pictures" / "b.png").mkdir()
    os.mkfifo(tmp_path / "pictures" / "c.png")
    assert open_dataset(DataSpec(str(tmp_path / "pictures"))).info.report.found == 1


def test_a_folder_called_like_a_picture_is_a_class(save: Save, tmp_path: Path) -> None:
    save("x.png/a.png", 10)
    assert open_dataset(DataSpec(str(tmp_path / "pictures"))).info.classes == ("x.png",)


def test_a_folder_that_cannot_be_listed_is_an_error(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("cat/deep/a.png", 10)
    scanning = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scanning(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="deep cannot be listed"):
        open_dataset(DataSpec(str(tmp_path / "pictures")))


def test_nothing_readable_is_an_error_that_says_what_is_there_and_what_is_accepted(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.pdf", "notes"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=r"found: 2 \.heic, 1 \.pdf, 1 without extension; accepted.*\.png.*\.tar"):
        open_dataset(DataSpec(str(tmp_path)))


def test_nothing_but_bad_pictures_is_an_error_at_any_share(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"?")
    (tmp_path / "b.jpg").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"(?s)no picture of .*found: 1 \.jpg, 1 \.png.*a\.png: .*accepted"):
        open_dataset(DataSpec(str(tmp_path), max_bad=1.0))


def test_files_that_are_passed_over_are_told(save: Save, tmp_path: Path) -> None:
    save("a.png", 1)
    (tmp_path / "pictures" / "b.heic").write_bytes(b"?")
    info = open_dataset(DataSpec(str(tmp_path / "pictures"))).info
    assert info.notices == ("files of pictures that are no pictures are passed over: 1 .heic",)


def test_the_filters_of_warnings_are_as_before(save: Save, tmp_path: Path) -> None:
    save("a.png", 1)
    before = list(warnings.filters)
    open_dataset(DataSpec(str(tmp_path / "pictures")))
    assert warnings.filters == before


def test_what_pillow_merely_warns_of_is_read(tmp_path: Path) -> None:
    # A tag that claims more entries than there are: Pillow warns of damaged EXIF data and goes on.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x64\0\0\xff\xff\0\0\0\0"
    Image.new("L", (4, 4), 50).save(tmp_path / "a.jpg", exif=exif)
    assert open_dataset(DataSpec(str(tmp_path))).info.report.skipped == ()


def test_a_source_that_ends_early_is_an_error(save: Save, tmp_path: Path) -> None:
    save("a.png", 1)
    source = splits_of(tmp_path / "pictures")[None]()
    with pytest.raises(ValueError, match="ended before its picture 1"):
        list(passed(replace(source, count=2, stream=lambda ids: source.stream(ids[:1])), np.arange(2), len))
