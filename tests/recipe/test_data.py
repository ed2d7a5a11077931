from pathlib import Path

import numpy as np
import pytest

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


def test_data_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        open_data(DataConfig(str(tmp_path / "nowhere")))
