from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unfog.recipe.data import open_data
from unfog.recipe.schema import DataConfig


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def test_a_test_split_that_is_there_is_used(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", pictures(20, 0))
    np.save(tmp_path / "test.npy", pictures(7, 1))
    data = open_data(DataConfig(str(tmp_path), holdout=0.5))
    assert (len(data.train), len(data.test)) == (20, 7)


def test_without_a_test_split_the_holdout_is_kept_back(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", pictures(20, 0))
    data = open_data(DataConfig(str(tmp_path), holdout=0.25))
    assert (len(data.train), len(data.test)) == (15, 5)


def test_size_channels_and_limit_are_applied_to_both_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", pictures(20, 0))
    np.save(tmp_path / "test.npy", pictures(7, 1))
    data = open_data(DataConfig(str(tmp_path), size=4, channels=3, limit=5))
    for part in data:
        assert part.info.fields["x0"].shape == (3, 4, 4)
        assert len(part) == 5


def test_one_picture_is_trained_on_and_tested_on(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", pictures(1, 0))
    data = open_data(DataConfig(str(tmp_path)))
    assert [len(part) for part in data] == [1, 1]
    assert "single example" in data.train.info.notices[0]


def test_too_many_bad_pictures_are_refused_as_such(tmp_path: Path) -> None:
    for number in range(10):
        Image.fromarray(pictures(1, number)[0]).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"(?s)1 of the 10 pictures.*3\.png.*data\.max_bad=0\.1"):
        open_data(DataConfig(str(tmp_path)))
    data = open_data(DataConfig(str(tmp_path), max_bad=0.1))
    assert len(data.train) + len(data.test) == 9


def test_background_and_range_reach_the_pictures(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / f"{number}.png")
    data = open_data(DataConfig(str(tmp_path), background="black"))
    assert data.train.gather(np.arange(1))["x0"].max() == -1
    np.save(tmp_path / "floats.npy", pictures(4, 0) / 255)
    assert len(open_data(DataConfig(str(tmp_path / "floats.npy"), value_range=(0.0, 1.0))).train) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"max_bad": 1.5}, {"max_bad": -0.1}, {"background": "whitish"}, {"value_range": (1.0, 0.0)}, {"channels": 0}],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataConfig("digits", **wrong)


def test_data_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        open_data(DataConfig(str(tmp_path / "nowhere")))


def labels(count: int, classes: int) -> np.ndarray:
    return np.arange(count) % classes


@pytest.mark.parametrize("other", [(5, 1, 16, 16), (5, 3, 8, 8)])
def test_splits_of_different_shapes_are_refused(tmp_path: Path, other: tuple[int, ...]) -> None:
    np.savez(tmp_path / "set.npz", x_train=pictures(20, 0), x_test=np.zeros(other, np.uint8))
    with pytest.raises(ValueError, match=r"training examples are 1 x 8 x 8 .*test examples .* set data\.size"):
        open_data(DataConfig(str(tmp_path / "set.npz")))


def test_a_test_split_without_the_labels_that_are_learned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x_train=pictures(20, 0), y_train=labels(20, 2), x_test=pictures(5, 1))
    with pytest.raises(ValueError, match=r"has no labels.*condition\.classes=false"):
        open_data(DataConfig(str(path)), labelled=True)
    assert len(open_data(DataConfig(str(path))).test) == 5


def test_a_test_split_that_lacks_some_classes_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x_train=pictures(20, 0), y_train=labels(20, 3), x_test=pictures(5, 1), y_test=labels(5, 1))
    data = open_data(DataConfig(str(path)), labelled=True)
    assert data.test.info.classes == ("0", "1", "2")
