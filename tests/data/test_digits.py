import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset


def rows(dataset: ArrayDataset) -> np.ndarray:
    """Every picture and its label as one row of whole numbers."""
    values = dataset.gather(np.arange(len(dataset)))
    pixels = ((values["x0"] + 1) * 127.5).round().to(torch.int64).flatten(1)
    return torch.cat([pixels, values["label"][:, None]], dim=1).numpy()


@pytest.fixture(scope="module")
def parts() -> tuple[np.ndarray, np.ndarray]:
    return rows(open_dataset(DataSpec("digits"))), rows(open_dataset(DataSpec("digits", "test")))


def test_both_parts_together_are_the_published_set(parts: tuple[np.ndarray, np.ndarray]) -> None:
    found = load_digits()
    scaled = [[round(v * 255 / 16) for v in row] for row in found.data]
    published = np.column_stack([scaled, found.target])
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, published))


def test_the_parts_have_no_picture_in_common(parts: tuple[np.ndarray, np.ndarray]) -> None:
    assert not set(map(tuple, parts[0])) & set(map(tuple, parts[1]))


def test_a_fifth_of_each_class_is_kept_for_testing(parts: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = (np.bincount(part[:, -1]) for part in parts)
    # Rounded to a whole number of pictures in each class.
    assert np.abs(test - 0.2 * (train + test)).max() <= 0.5


def test_the_set_needs_no_cache(cache: object) -> None:
    open_dataset(DataSpec("digits", limit=5))
    assert not cache.exists()  # type: ignore[attr-defined]


def test_without_scikit_learn_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'unfog\[data\]'"):
        open_dataset(DataSpec("digits"))


def test_a_holdout_of_the_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="own test split"):
        open_dataset(DataSpec("digits", holdout=0.1))
