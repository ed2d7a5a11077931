from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data.check import CaptionCounts, Examination, examiners
from unfog.data.sources import DataSpec, open_dataset

Save = Callable[..., Path]


def examined(spec: DataSpec, split: str | None = None) -> Examination:
    (examiner,) = examiners(spec, split)
    assert list(examiner) == list(range(1, examiner.source.count + 1))
    return examiner.result()


@pytest.fixture
def folder(save: Save, tmp_path: Path) -> Path:
    """Two classes: three pictures of which two are alike, one of another size, and one in colour with a caption."""
    save("ant/1.png", 10)
    save("ant/2.png", 10)
    save("ant/3.png", 30, 4, 8)
    save("bee/4.png", 10, mode="RGB")
    (tmp_path / "pictures/bee/4.txt").write_text("a bee")
    return tmp_path / "pictures"


def test_pictures_are_counted_by_what_they_are(folder: Path) -> None:
    found = examined(DataSpec(str(folder), size=4))
    assert found.sizes == {(4, 4): 3, (4, 8): 1}
    assert found.aspects == {"1.00": 3, "2.00": 1}
    assert found.modes == {"L": 3, "RGB": 1}
    assert found.kinds == {".png": 4}
    assert found.classes == {"ant": 3, "bee": 1}
    assert found.captions == CaptionCounts(1, 0, 3, 0, 5, 5, 5)
    assert found.refusals == ()


def test_pictures_that_differ_in_size_are_refused_as_training_refuses_them(folder: Path) -> None:
    with pytest.raises(ValueError, match="differ in size") as caught:
        open_dataset(DataSpec(str(folder)))
    assert examined(DataSpec(str(folder))).refusals == (str(caught.value),)


def test_pictures_of_the_same_pixels_are_grouped(folder: Path) -> None:
    found = examined(DataSpec(str(folder), channels=1, size=4))
    assert found.duplicates == (("ant/1.png", "ant/2.png", "bee/4.png"),)
    assert "2 pictures repeat the pixels of another one, in 1 groups" in found.notices
    assert "1 of these groups have pictures of different classes" in found.notices


def test_a_checked_set_is_not_cached(folder: Path, cache: Path) -> None:
    examined(DataSpec(str(folder), size=4))
    assert not cache.exists()


def test_training_tells_the_same_of_decoding(tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(place / "b.png", icc_profile=b"profile")
    spec = DataSpec(str(place), size=8)
    told = open_dataset(spec).info.notices
    assert examined(spec).notices == (*told, "1 pictures repeat the pixels of another one, in 1 groups")
    assert told == (
        "1 of 2 pictures have several frames (animations, pages): the first of each is taken",
        "1 of 2 pictures have a colour profile, which is ignored",
        "2 of 2 pictures are smaller than 8x8 and are enlarged",
    )


def test_pictures_of_another_format_than_they_are_called_are_told(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg", "PNG")
    assert examined(DataSpec(str(tmp_path))).notices == (
        "1 pictures are of another format than they are called: 1 .jpg that are PNG",
    )


def test_all_splits_are_looked_at_unless_one_is_asked_for(save: Save, tmp_path: Path) -> None:
    save("train/1.png", 1)
    save("val/1.png", 1)
    spec = DataSpec(str(tmp_path / "pictures"))
    assert sorted(each.split for each in examiners(spec, None)) == ["train", "valid"]
    assert [each.split for each in examiners(spec, "val")] == ["valid"]
    with pytest.raises(ValueError, match="no split 'test'"):
        examiners(spec, "test")


def test_a_result_before_the_end_is_refused(folder: Path) -> None:
    (examiner,) = examiners(DataSpec(str(folder)), None)
    next(iter(examiner))
    with pytest.raises(ValueError, match="only 1 of 4"):
        examiner.result()


def test_classes_without_a_readable_picture_are_counted(folder: Path) -> None:
    (folder / "bee/4.png").write_bytes(b"broken")
    assert examined(DataSpec(str(folder), size=4)).classes == {"ant": 3, "bee": 0}


def test_arrays_are_counted_by_their_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 8, 8), dtype=np.uint8))
    found = examined(DataSpec(str(tmp_path / "a.npy")))
    assert (found.modes, found.kinds) == ({"4 x 8 bits": 2}, {"array": 2})


def test_captions_are_counted_by_state_and_length() -> None:
    counts = CaptionCounts.of(["ab", "ab", "abcd", "", "  ", None, "x"])
    assert counts == CaptionCounts(present=4, empty=2, missing=1, repeated=1, shortest=1, median=2, longest=4)
    assert sum(counts.by_state.values()) == 7
