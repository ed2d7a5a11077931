import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unfog.data.sources import DataSpec, find, open_dataset, open_parts, search_folders

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def test_a_bare_name_is_looked_up_in_each_place_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("UNFOG_DATA", f"{one}{os.pathsep}{two}")
    places = [one / "birds", two / "birds", Path("data/birds"), tmp_path / "home/.cache/unfog/data/birds"]
    for place in reversed(places):
        place.mkdir(parents=True)
        assert find("birds") == place


def test_a_path_that_exists_comes_before_the_places_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_DATA", str(tmp_path))
    Path("birds").mkdir()
    (tmp_path / "birds").mkdir()
    assert find("birds") == Path("birds")


def test_a_path_with_folders_in_it_is_no_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_DATA", str(tmp_path))
    (tmp_path / "a/birds").mkdir(parents=True)
    with pytest.raises(ValueError, match="no data set"):
        find("a/birds")


def test_a_name_that_is_nowhere_is_refused_with_the_places_looked_at() -> None:
    with pytest.raises(ValueError, match="no data set 'birds'") as caught:
        find("birds")
    assert all(str(place.absolute() / "birds") in str(caught.value) for place in search_folders())


def test_similar_names_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_DATA", str(tmp_path))
    (tmp_path / "flowers128").mkdir()
    with pytest.raises(ValueError, match="similar names: flowers128"):
        find("flower128")
    with pytest.raises(ValueError, match="similar names: digits"):
        find("digit")


@pytest.mark.parametrize(("name", "hub"), [("mnist", "hf:ylecun/mnist"), ("CIFAR10", "hf:uoft-cs/cifar10")])
def test_well_known_sets_are_pointed_to_on_the_hub(name: str, hub: str) -> None:
    with pytest.raises(ValueError, match=hub):
        find(name)


def test_the_home_is_expanded(tmp_path: Path) -> None:
    (tmp_path / "home/birds").mkdir(parents=True)
    assert find("~/birds") == tmp_path / "home/birds"


def test_a_file_of_another_kind_is_refused() -> None:
    Path("a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.parquet, \.tar, \.npz, \.npy"):
        open_dataset(DataSpec("a.zip"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": ""},
        {"split": ""},
        {"size": 0},
        {"size": (4, -1)},
        {"size": (1, 2, 3)},
        {"channels": 0},
        {"max_bad": -0.1},
        {"max_bad": 1.1},
        {"background": "whitish"},
        {"background": "#ff000080"},
        {"limit": 0},
        {"holdout": 0.0},
        {"holdout": 1.0},
        {"value_range": (1.0, 0.0)},
        {"value_range": (0.0, float("inf"))},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataSpec(**{"path": "digits", **wrong})


@pytest.mark.parametrize("option", [{"image_column": "a"}, {"label_column": "a"}, {"value_range": (0.0, 1.0)}])
def test_an_option_that_means_nothing_here_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="means nothing"):
        open_dataset(DataSpec("digits", **option))


def test_a_limit_takes_so_many_examples() -> None:
    assert len(open_dataset(DataSpec("digits", limit=30))) == 30


def test_a_limit_beyond_the_set_takes_all() -> None:
    assert len(open_dataset(DataSpec("digits", "test", limit=5000))) == 359


def test_raw_pixels_come_with_the_floats() -> None:
    values = open_dataset(DataSpec("digits", limit=3, raw=True)).gather(np.arange(3))
    assert np.array_equal(values["pixels"].numpy() / np.float32(127.5) - 1, values["x0"].numpy())


def test_opening_twice_gives_the_same_set(save: Save, tmp_path: Path) -> None:
    for level in range(3):
        save(f"{level}.png", level)
    infos = [open_dataset(DataSpec(str(tmp_path / "pictures"))).info for _ in range(2)]
    assert infos[0] == infos[1]


def bad(place: Path, *names: str) -> None:
    for name in names:
        (place / name).write_bytes(b"broken")


@pytest.fixture
def ten(save: Save, tmp_path: Path) -> Path:
    """A folder of ten pictures."""
    for level in range(10):
        save(f"{level}.png", level)
    return tmp_path / "pictures"


def test_one_bad_picture_of_ten_stops_and_says_how_to_go_on(ten: Path) -> None:
    bad(ten, "3.png")
    with pytest.raises(ValueError, match=r"1 of the 10 pictures") as caught:
        open_dataset(DataSpec(str(ten)))
    told = str(caught.value)
    assert all(words in told for words in ("3.png: ", "max_bad=0.1 ", "data.max_bad", f"unfog data check {ten}"))


def test_a_declared_share_of_bad_pictures_is_left_out(ten: Path) -> None:
    bad(ten, "3.png")
    info = open_dataset(DataSpec(str(ten), max_bad=0.1)).info
    assert (info.count, [skipped.name for skipped in info.report.skipped]) == (9, ["3.png"])


def test_the_first_twenty_bad_pictures_are_listed(save: Save, tmp_path: Path) -> None:
    for number in range(30):
        save(f"{number:02d}.png", number)
    bad(tmp_path / "pictures", *(f"{number:02d}.png" for number in range(25)))
    with pytest.raises(ValueError, match="and 5 more") as caught:
        open_dataset(DataSpec(str(tmp_path / "pictures"), max_bad=0.5))
    assert str(caught.value).count(".png: ") == 20


def test_a_held_out_part_and_the_rest_are_judged_together(save: Save, tmp_path: Path) -> None:
    for number in range(40):
        save(f"{number:02d}.png", number)
    bad(tmp_path / "pictures", "07.png")
    spec = DataSpec(str(tmp_path / "pictures"), max_bad=1 / 40)
    train, test = open_parts(spec, 0.1)
    assert (len(train) + len(test), len(train.info.report.skipped) + len(test.info.report.skipped)) == (39, 1)
    with pytest.raises(ValueError, match="1 of the 40 pictures of pictures"):
        open_parts(DataSpec(str(tmp_path / "pictures"), max_bad=0.02), 0.1)


def test_two_splits_are_judged_each(save: Save, tmp_path: Path) -> None:
    for number in range(40):
        save(f"train/{number}.png", number)
    save("test/1.png", 1)
    save("test/2.png", 1)
    bad(tmp_path / "pictures", "test/1.png")
    with pytest.raises(ValueError, match="1 of the 2 pictures of test/test"):
        open_parts(DataSpec(str(tmp_path / "pictures"), max_bad=0.1), 0.1)


def test_a_single_picture_is_both_parts_and_says_so(save: Save, tmp_path: Path) -> None:
    save("1.png", 7)
    for part in open_parts(DataSpec(str(tmp_path / "pictures")), 0.1):
        assert len(part) == 1
        assert "single example" in part.info.notices[0]


def test_the_background_is_part_of_what_is_decoded(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    found = [
        open_dataset(DataSpec(str(tmp_path), background=text, raw=True)).gather(np.arange(1))["pixels"][0, :, 0, 0]
        for text in ("white", "#ff8800", "white")
    ]
    assert [pixel.tolist() for pixel in found] == [[255, 255, 255], [255, 136, 0], [255, 255, 255]]


def test_two_channels_are_refused_for_pictures(ten: Path) -> None:
    with pytest.raises(ValueError, match="not 2"):
        open_dataset(DataSpec(str(ten), channels=2))


def test_a_range_that_concerns_no_picture_is_said_to_have_no_effect(ten: Path) -> None:
    assert "value_range has no effect" in open_dataset(DataSpec(str(ten), value_range=(0.0, 1.0))).info.notices[-1]


def test_floats_outside_of_the_range_stop_before_training(tmp_path: Path) -> None:
    for number, level in enumerate((0.5, 3.0)):
        Image.fromarray(np.full((2, 2), level, dtype=np.float32)).save(tmp_path / f"{number}.tif")
    with pytest.raises(ValueError, match=r"1\.tif: its numbers reach from 3\.0 to 3\.0"):
        open_dataset(DataSpec(str(tmp_path), value_range=(0.0, 1.0)))
