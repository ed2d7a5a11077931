"""How labels become numbers, the same in every split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABEL_NAMES = ("label", "labels")
CAPTION_NAMES = ("text", "caption", "captions")


def number_labels(
    split: str | None, labels: Mapping[str | None, Sequence[Any]], names: tuple[str, ...] | None, where: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Return the labels of one split as numbers, and the names of the classes.

    Numbers without names are named by their digits, text becomes the sorted list of its values; in both cases over
    all splits, so that a label means the same in each. A split labelled -1 throughout, as test sets of competitions
    are, has no labels.

    Args:
        split: whose labels.
        labels: of all splits, None where a picture has none.
        names: of the classes, where the source has them.
        where: what to call the source in errors.

    Raises:
        ValueError: if some labels are missing or are neither whole numbers nor text.
    """
    own = labels[split]
    missing = sum(label is None for label in own)
    if missing:
        raise ValueError(f"{where}: {missing} of {len(own)} pictures have no label")
    known = [label for each in labels.values() for label in each if label is not None]
    if all(isinstance(label, str) for label in known):
        classes = tuple(sorted(set(known)))
        numbers = {name: i for i, name in enumerate(classes)}
        return np.array([numbers[label] for label in own], dtype=np.int64), classes
    wrong = next((label for label in known if isinstance(label, bool) or not isinstance(label, int)), None)
    if wrong is not None:
        raise ValueError(f"{where}: labels must be whole numbers or text throughout, but one is {wrong!r}")
    values = np.array(own, dtype=np.int64)
    if names is None:
        names = tuple(str(i) for i in range(max(known) + 1))
    if (values == -1).all():
        return None, None
    if values.min() < 0 or values.max() >= len(names):
        raise ValueError(
            f"{where}: labels must lie in 0 .. {len(names) - 1}, but reach from {values.min()} to {values.max()}"
        )
    return values, names
