"""Opening a data set by its path: what it is follows from what the path is.

===========================  ==========================================================================
``digits``                   scikit-learn's digits
``hf:owner/name``            a data set of the Hugging Face hub
``*.parquet``, folder of     Hugging Face parquet files
``*.npz``, ``*.npy``, ditto  NumPy arrays
any other folder             pictures, flat or one folder for each class
a bare name                  looked up in ``$UNFOG_DATA``, ``./data`` and ``~/.cache/unfog/data``
===========================  ==========================================================================

A folder that holds several of these is opened as the first of them in this order.
"""

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from unfog.data import arrays, digits, folder, hub, parquet
from unfog.data.cache import Transform, materialize
from unfog.data.dataset import ArrayDataset
from unfog.data.image import Size
from unfog.data.source import Splits
from unfog.data.split import Choice, choose, held_out, limited

_ON_THE_HUB = {
    "mnist": "hf:ylecun/mnist",
    "cifar10": "hf:uoft-cs/cifar10",
    "cifar100": "hf:uoft-cs/cifar100",
    "fashion_mnist": "hf:zalando-datasets/fashion_mnist",
}


@dataclass(frozen=True)
class DataSpec:
    """Which pictures to read, and what to make of each.

    Attributes:
        path: a folder, a file, ``digits``, ``hf:owner/name``, or the name of a folder in one of ``search_folders()``.
        split: ``train``, ``test``, ``valid``, or another split that the source has.
        size: side length, or (height, width): the largest centred box of that shape, resized with Lanczos.
            None keeps the pictures as they are, which must then all have one size.
        channels: 1 (grey) or 3 (RGB); None takes 1 if every picture is stored grey, else 3.
        limit: at most so many examples, each class in proportion and always the same; None takes all.
        holdout: between 0 and 1: where the source has no test split, the share of the training examples that is
            held out as one, class by class and always the same. Give it to both splits.
        raw: also give the uint8 pixels, as field ``pixels``.
        value_range: for arrays that are not uint8: the numbers that mean black and white.
        image_column: of a table, where several columns could hold the pictures.
        label_column: of a table, where several columns could hold the labels.

    Raises:
        ValueError: if a value is out of its range.
    """

    path: str
    split: str = "train"
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None
    holdout: float | None = None
    raw: bool = False
    value_range: tuple[float, float] | None = None
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if not self.path or not self.split:
            raise ValueError("path and split must not be empty")
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(side < 1 for side in sides) or len(sides) > 2:
            raise ValueError(f"size must be a number of pixels or (height, width), but is {self.size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), but is {self.channels}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, but is {self.limit}; leave it out to take all examples")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"holdout is a share between 0 and 1, such as 0.1, but is {self.holdout}")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"value_range must be (black, white), black < white, but is {self.value_range}")

    @property
    def height_width(self) -> Size | None:
        """``size`` as height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def open_dataset(spec: DataSpec) -> ArrayDataset:
    """Open a data set: find it, decode it unless that was done before, and describe it.

    Raises:
        ValueError: if it cannot be found, holds no such split, or cannot be read as the spec says.
        ImportError: if a library that it needs is missing.
    """
    splits = _splits(spec)
    choice = choose(splits, spec.split, spec.holdout, repr(spec.path))
    source = splits[choice.key]()
    ids = np.arange(source.count, dtype=np.int64)
    notices = source.notices
    if choice.test is not None and spec.holdout is not None:
        ids = np.flatnonzero(held_out(source.count, source.labels, spec.holdout) == choice.test)
        notices += (_carved(source.name, choice, spec.holdout, source.count),)
    ids = limited(ids, None if source.labels is None else source.labels[ids], spec.limit)
    decoded = materialize(source, ids, Transform(spec.height_width, spec.channels))
    return ArrayDataset(
        decoded.pixels,
        None if source.labels is None else source.labels[decoded.kept],
        name=f"{source.name}/{spec.split}",
        classes=source.classes,
        raw=spec.raw,
        digest=decoded.digest,
        report=decoded.report,
        notices=notices,
    )


def _carved(name: str, choice: Choice, holdout: float, count: int) -> str:
    part = "these examples are" if choice.test else "left out are"
    share = f"{100 * holdout:.4g} %"
    return (
        f"{name} has no test split: {part} the {share} of its {count} training examples that a fixed hash of "
        "their numbers holds out, class by class"
    )


class _Kind(Enum):
    DIGITS = "scikit-learn's digits"
    HUB = "a data set of the hub"
    PARQUET = "parquet files"
    ARRAYS = "NumPy files"
    FOLDER = "a folder of pictures"


def _splits(spec: DataSpec) -> Splits:
    """Find the data and the splits it has."""
    kind, path = _recognised(spec.path)
    tables = kind in (_Kind.HUB, _Kind.PARQUET)
    for option, value, used in (
        ("image_column", spec.image_column, tables),
        ("label_column", spec.label_column, tables),
        ("value_range", spec.value_range, kind is _Kind.ARRAYS),
    ):
        if value is not None and not used:
            raise ValueError(f"{spec.path!r} is {kind.value}, to which {option}={value!r} means nothing: leave it out")
    match kind:
        case _Kind.DIGITS:
            return digits.splits_of()
        case _Kind.HUB:
            return hub.splits_of(spec.path.removeprefix(hub.PREFIX), spec.image_column, spec.label_column)
        case _Kind.PARQUET:
            return parquet.splits_of(path, spec.image_column, spec.label_column)
        case _Kind.ARRAYS:
            return arrays.splits_of(path, spec.value_range)
        case _Kind.FOLDER:
            return folder.splits_of(path)


def _recognised(given: str) -> tuple[_Kind, Path]:
    if given == digits.NAME:
        return _Kind.DIGITS, Path()
    if given.startswith(hub.PREFIX):
        return _Kind.HUB, Path()
    path = find(given)
    if path.is_dir():
        if parquet.parquet_files(path):
            return _Kind.PARQUET, path
        return (_Kind.ARRAYS if arrays.array_files(path) else _Kind.FOLDER), path
    kinds = {".parquet": _Kind.PARQUET, ".npz": _Kind.ARRAYS, ".npy": _Kind.ARRAYS}
    if path.suffix not in kinds:
        raise ValueError(
            f"{path} is a file that cannot be opened as a data set: expected one that ends in {', '.join(kinds)}, "
            "or a folder of pictures"
        )
    return kinds[path.suffix], path


def search_folders() -> tuple[Path, ...]:
    """Return where a bare name is looked up: the folders in ``$UNFOG_DATA``, ``./data``, ``~/.cache/unfog/data``."""
    named = [Path(part) for part in os.environ.get("UNFOG_DATA", "").split(os.pathsep) if part]
    return tuple(path.expanduser() for path in (*named, Path("data"), Path("~/.cache/unfog/data")))


def find(given: str) -> Path:
    """Find a file or folder: at its path, or, where that is a bare name, in one of ``search_folders()``.

    Raises:
        ValueError: if it is nowhere; says where it was looked for, and what is there under a similar name.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    bare = path.name == given
    places = search_folders() if bare else ()
    found = next((place / given for place in places if (place / given).exists()), None)
    if found is not None:
        return found
    raise ValueError(_nowhere(given, path, places))


def _nowhere(given: str, path: Path, places: Iterable[Path]) -> str:
    looked = [path.absolute(), *(place.absolute() / given for place in places)]
    lines = [f"no data set {given!r}; looked at: {', '.join(str(place) for place in looked)}"]
    around = [place for place in (path.parent, *places) if place.is_dir()]
    present = {entry.name for place in around for entry in place.iterdir()} | {digits.NAME}
    near = difflib.get_close_matches(path.name, sorted(present))
    if near:
        lines.append(f"similar names: {', '.join(near)}")
    known = _ON_THE_HUB.get(path.name.lower().replace("-", "_"))
    if known:
        lines.append(f"to read it from the Hugging Face hub: {known}")
    elif not near:
        lines.append("give a folder or file, 'digits', or hf:owner/name; or name its parent folder in UNFOG_DATA")
    return "; ".join(lines)
