import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset

Save = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def levels(dataset: ArrayDataset) -> list[int]:
    """The grey level of each flat picture."""
    pixels = dataset.gather(np.arange(len(dataset)))["x0"]
    return [round(value) for value in ((pixels[:, 0, 0, 0] + 1) * 127.5).tolist()]


def labels(dataset: ArrayDataset) -> list[int]:
    return dataset.gather(np.arange(len(dataset)))["label"].tolist()


def test_a_flat_folder_has_no_labels(save: Save, folder: Path) -> None:
    for level in (3, 1, 2):
        save(f"{level}.png", level)
    dataset = open_dataset(DataSpec(str(folder)))
    assert dataset.info.classes is None
    assert levels(dataset) == [1, 2, 3]


def test_folders_are_classes_and_labels_match_pictures(save: Save, folder: Path) -> None:
    save("dog/1.png", 10)
    save("cat/9.png", 20)
    save("dog/deep/er/2.png", 30)
    dataset = open_dataset(DataSpec(str(folder)))
    assert dataset.info.classes == ("cat", "dog")
    assert dict(zip(levels(dataset), labels(dataset), strict=True)) == {10: 1, 20: 0, 30: 1}


def test_a_class_missing_from_a_split_does_not_shift_the_labels(save: Save, folder: Path) -> None:
    save("train/ant/1.png", 10)
    save("train/bee/1.png", 20)
    save("test/bee/1.png", 30)
    dataset = open_dataset(DataSpec(str(folder), split="test"))
    assert (labels(dataset), dataset.info.classes) == ([1], ("ant", "bee"))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_go_by_their_usual_names(save: Save, folder: Path, name: str) -> None:
    save("train/1.png", 10)
    save(f"{name}/1.png", 20)
    assert levels(open_dataset(DataSpec(str(folder), split="valid"))) == [20]


@pytest.mark.parametrize(
    "name", ["A.PNG", "b c.Png", "ümläut.png", "日本.png", "two.dots.png", "new\nline.png", "#%?&.png", "-rf.png"]
)
def test_unusual_names_are_read(save: Save, folder: Path, name: str) -> None:
    save(name, 77)
    assert levels(open_dataset(DataSpec(str(folder)))) == [77]


def test_names_that_are_no_text_are_read_and_reported(save: Save, folder: Path) -> None:
    good = save("good.png", 5)
    try:
        good.rename(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    except OSError:
        pytest.skip("this file system takes only text as names")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfd.png")).write_bytes(b"broken")
    for _ in ("decoded", "from the cache"):
        dataset = open_dataset(DataSpec(str(folder), max_bad=0.5))
        assert levels(dataset) == [5]
        assert os.fsencode(dataset.info.report.skipped[0].name) == b"\xfd.png"


@pytest.mark.parametrize("kind", ["jpg", "JPEG", "webp", "bmp", "gif", "tif", "TIFF"])
def test_pictures_of_every_kind_are_read(folder: Path, kind: str) -> None:
    folder.mkdir()
    Image.new("L", (8, 8), 100).save(folder / f"a.{kind}")
    assert levels(open_dataset(DataSpec(str(folder), channels=1))) == [100]


def test_other_and_hidden_files_are_passed_over(save: Save, folder: Path) -> None:
    save("1.png", 10)
    save(".hidden.png", 20)
    save("__MACOSX/._1.png", 30)
    save(".git/1.png", 40)
    (folder / "readme.txt").write_text("pictures of nothing")
    assert levels(open_dataset(DataSpec(str(folder)))) == [10]


def test_links_to_pictures_and_to_folders_of_classes_are_followed(save: Save, folder: Path, tmp_path: Path) -> None:
    save("cat/1.png", 10)
    (tmp_path / "elsewhere").mkdir()
    save("cat/2.png", 20).rename(tmp_path / "elsewhere" / "2.png")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    dataset = open_dataset(DataSpec(str(folder)))
    assert (levels(dataset), labels(dataset)) == ([10, 20, 20], [0, 0, 1])


def test_a_class_comes_before_one_whose_name_goes_on(save: Save, folder: Path) -> None:
    save("a-b/1.png", 20)
    save("a/1.png", 10)
    dataset = open_dataset(DataSpec(str(folder)))
    assert (levels(dataset), labels(dataset), dataset.info.classes) == ([10, 20], [0, 1], ("a", "a-b"))


def test_a_truncated_file_is_left_out_counted_and_named(save: Save, folder: Path) -> None:
    for level in range(4):
        save(f"{level % 2}/{level}.png", level)
    file = save("0/broken.png", 9, 64, 64)
    file.write_bytes(file.read_bytes()[:60])
    for _ in ("decoded", "from the cache"):
        dataset = open_dataset(DataSpec(str(folder), max_bad=0.2))
        assert (dataset.info.report.found, dataset.info.count) == (5, 4)
        assert [skipped.name for skipped in dataset.info.report.skipped] == ["0/broken.png"]
        assert dict(zip(levels(dataset), labels(dataset), strict=True)) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_folder_of_broken_files_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)no picture of pictures could be read.*a\.png"):
        open_dataset(DataSpec(str(folder)))


def test_differing_sizes_without_a_size_are_refused_with_what_was_found(save: Save, folder: Path) -> None:
    save("1.png", 1, 4, 6)
    save("2.png", 2, 8, 8)
    save("3.png", 2, 8, 8)
    with pytest.raises(ValueError, match=r"8x8 \(2, such as 2\.png\), 4x6 \(1, such as 1\.png\).*size="):
        open_dataset(DataSpec(str(folder)))


def test_differing_sizes_are_resized_to_the_size_given(save: Save, folder: Path) -> None:
    save("1.png", 1, 4, 6)
    save("2.png", 2, 9, 8)
    dataset = open_dataset(DataSpec(str(folder), size=5))
    assert dataset.info.size == (5, 5)
    assert levels(dataset) == [1, 2]


def test_pictures_of_one_size_keep_it(save: Save, folder: Path) -> None:
    save("1.png", 1, 4, 6)
    assert open_dataset(DataSpec(str(folder))).info.size == (4, 6)


def test_channels_are_one_where_every_picture_is_grey(save: Save, folder: Path) -> None:
    save("1.png", 1)
    save("2.png", 2, mode="LA")
    assert open_dataset(DataSpec(str(folder))).info.channels == 1


def test_channels_are_three_where_one_picture_is_in_colour(save: Save, folder: Path) -> None:
    save("1.png", 1)
    save("2.png", 2, mode="RGB")
    assert open_dataset(DataSpec(str(folder), size=4)).info.channels == 3


def test_pictures_beside_folders_of_pictures_are_refused(save: Save, folder: Path) -> None:
    save("1.png", 1)
    save("cat/2.png", 2)
    with pytest.raises(ValueError, match="folder of its class"):
        open_dataset(DataSpec(str(folder)))


def test_classes_beside_splits_are_refused(save: Save, folder: Path) -> None:
    save("train/1.png", 1)
    save("cat/2.png", 2)
    with pytest.raises(ValueError, match="outside of them"):
        open_dataset(DataSpec(str(folder)))


def test_two_folders_for_one_split_are_refused(save: Save, folder: Path) -> None:
    save("val/1.png", 1)
    save("valid/2.png", 2)
    with pytest.raises(ValueError, match="several folders for one split"):
        open_dataset(DataSpec(str(folder), split="valid"))


def test_an_empty_folder_is_refused(folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        open_dataset(DataSpec(str(folder)))


def test_a_carved_test_part_and_the_rest_are_the_whole_and_disjoint(save: Save, folder: Path) -> None:
    for level in range(40):
        save(f"{level % 2}/{level}.png", level)
    parts = [open_dataset(DataSpec(str(folder), split, holdout=0.25)) for split in ("train", "test")]
    assert sorted(levels(parts[0]) + levels(parts[1])) == list(range(40))
    assert np.bincount(labels(parts[1])).tolist() == [5, 5]


def test_a_carved_test_part_is_said_to_be_one(save: Save, folder: Path) -> None:
    for level in range(4):
        save(f"{level}.png", level)
    assert "has no test split" in open_dataset(DataSpec(str(folder), "test", holdout=0.5)).info.notices[0]
