"""Opening the data of a recipe: what is learned from, and what is kept for tests."""

from typing import NamedTuple

from unfog.data.dataset import Dataset
from unfog.data.sources import DataSpec, open_parts
from unfog.recipe.schema import DataConfig


class Data(NamedTuple):
    """The two parts."""

    train: Dataset
    test: Dataset


def open_data(config: DataConfig, *, labelled: bool = False) -> Data:
    """Open the data of a run.

    A test split that the source has is used as it is; otherwise ``config.holdout`` of the training examples is kept
    back for tests. A single example is both parts.

    Args:
        config: which data.
        labelled: whether the model is told the labels; a test split must then have those of the training split.

    Raises:
        ValueError: if there are no such data, or they cannot be read as the configuration says, or more than
            ``config.max_bad`` of the pictures cannot be read, or the two parts do not go together, or pictures with
            attributes are to be mirrored.
        ImportError: if a library that they need is missing.
    """
    spec = DataSpec(
        path=config.path,
        size=config.size,
        channels=config.channels,
        limit=config.limit,
        value_range=config.value_range,
        background=config.background,
        max_bad=config.max_bad,
    )
    data = Data(*open_parts(spec, config.holdout))
    if config.flip and data.train.info.attributes:
        raise ValueError(
            f"data.flip=true would mirror the pictures of {config.path} and not their attributes, such as left and "
            "right; set data.flip=false"
        )
    _require_alike(data, config.path, labelled=labelled)
    return data


def _require_alike(data: Data, path: str, *, labelled: bool) -> None:
    """Refuse a test split on which the model could not be measured, before it is trained."""
    train, test = data.train.info, data.test.info
    shapes = [" x ".join(map(str, info.fields["x0"].shape)) for info in (train, test)]
    instead = "or take the test split away: a part of the training examples is then kept for tests"
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the splits of {path} differ: training examples are {shapes[0]} (channels x height x width), test "
            f"examples {shapes[1]}; set data.size and data.channels, {instead}"
        )
    if labelled and train.classes is not None and train.classes != test.classes:
        what = "no labels" if test.classes is None else "other classes"
        raise ValueError(
            f"the test split of {path} has {what}, so a model of the classes of the training split cannot be measured "
            f"on it; mend them, set condition.classes=false, {instead}"
        )
