import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfog.data.sources import DataSpec, find, open_dataset, search_folders

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
    with pytest.raises(ValueError, match=r"\.parquet, \.npz, \.npy"):
        open_dataset(DataSpec("a.zip"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": ""},
        {"split": ""},
        {"size": 0},
        {"size": (4, -1)},
        {"size": (1, 2, 3)},
        {"channels": 2},
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
