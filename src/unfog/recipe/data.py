"""Opening the data of a recipe: what is learned from, and what is kept for tests."""

from typing import NamedTuple

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset
from unfog.recipe.schema import DataConfig


class Data(NamedTuple):
    """The two parts."""

    train: ArrayDataset
    test: ArrayDataset


def open_data(config: DataConfig) -> Data:
    """Open the data of a run.

    A test split that the source has is used as it is; otherwise ``config.holdout`` of the training examples is kept
    back for tests.

    Raises:
        ValueError: if there are no such data, or they cannot be read as the configuration says.
        ImportError: if a library that they need is missing.
    """
    try:
        test = open_dataset(_spec(config, "test", None))
    except ValueError as refusal:
        try:
            test = open_dataset(_spec(config, "test", config.holdout))
        except ValueError:
            # The hold-out was not what was missing.
            raise refusal from None
        return Data(open_dataset(_spec(config, "train", config.holdout)), test)
    return Data(open_dataset(_spec(config, "train", None)), test)


def _spec(config: DataConfig, split: str, holdout: float | None) -> DataSpec:
    return DataSpec(
        path=config.path,
        split=split,
        size=config.size,
        channels=config.channels,
        limit=config.limit,
        holdout=holdout,
    )
