"""Opening a data set by its path: what it is follows from what the path is.

===========================  ==========================================================================
``digits``                   scikit-learn's digits
``shapes``, ``shapes:...``   scenes of coloured shapes, drawn when they are asked for
``hf:owner/name``            a data set of the Hugging Face hub
``*.parquet``, folder of     Hugging Face parquet files
``*.tar``, folder of         WebDataset shards; ``train-{000..012}.tar`` names several
``*.npz``, ``*.npy``, ditto  NumPy arrays
any other folder             pictures, flat or one folder for each class
a bare name                  looked up in ``$UNFOG_DATA``, ``./data`` and ``~/.cache/unfog/data``
===========================  ==========================================================================

A folder that holds several of these is opened as the first of them in this order; but one of shards and pictures is
refused.
"""

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfog.data import arrays, digits, folder, hub, parquet, shards
from unfog.data.cache import materialize
from unfog.data.dataset import ArrayDataset, Dataset, Origin, Report
from unfog.data.gate import MAX_BAD, require_few_bad
from unfog.data.image import PICTURE_CHANNELS, Policy, Range, Size, colour
from unfog.data.rows import Transform
from unfog.data.shapes.dataset import open_shapes
from unfog.data.shapes.dataset import splits_of as shapes_splits
from unfog.data.shapes.options import NAME as SHAPES
from unfog.data.shapes.options import is_shapes, read_options
from unfog.data.source import Source, Splits
from unfog.data.split import choose, held_out, limited

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
        path: a folder, a file, ``digits``, ``shapes``, ``hf:owner/name``, or the name of a folder
            in one of ``search_folders()``.
        split: ``train``, ``test``, ``valid``, or another split that the source has.
        size: side length, or (height, width): the largest centred box of that shape, resized with Lanczos.
            None keeps the pictures as they are, which must then all have one size.
        channels: 1 (grey), 3 (RGB) or 4 (RGB with alpha); of arrays, as many as they have. None takes 1 if every
            picture is stored grey, else 3; of arrays, what they have.
        limit: at most so many examples, each class in proportion and always the same; None takes all.
        holdout: between 0 and 1: where the source has no test split, the share of the training examples that is
            held out as one, class by class and always the same. Give it to both splits. Of a single example, both
            parts are that example.
        raw: also give the uint8 pixels, as field ``pixels``.
        value_range: for arrays that are not uint8, and pictures of floats: the numbers that mean black and white.
        image_column: of a table, where several columns could hold the pictures.
        label_column: of a table, where several columns could hold the labels.
        background: the colour on which transparent pixels are composited: a name or ``#rrggbb``.
        max_bad: share of the pictures that may be unreadable, 0 to 1: they are left out, and named in
            ``DataInfo.report``. More of them are an error.

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
    value_range: Range | None = None
    image_column: str | None = None
    label_column: str | None = None
    background: str = "white"
    max_bad: float = MAX_BAD

    def __post_init__(self) -> None:
        if not self.path or not self.split:
            raise ValueError("path and split must not be empty")
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(side < 1 for side in sides) or len(sides) > 2:
            raise ValueError(f"size must be a number of pixels or (height, width), but is {self.size}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, but is {self.channels}; leave it out to take what is there")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, but is {self.limit}; leave it out to take all examples")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"holdout is a share between 0 and 1, such as 0.1, but is {self.holdout}")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"value_range must be (black, white), black < white, but is {self.value_range}")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad is a share from 0 to 1, such as 0.01, but is {self.max_bad}")
        colour(self.background)

    @property
    def height_width(self) -> Size | None:
        """``size`` as height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def transform(self) -> Transform:
        """What is made of each picture."""
        return Transform(self.height_width, self.channels, Policy(colour(self.background), self.value_range))


def open_dataset(spec: DataSpec) -> Dataset:
    """Open a data set: find it, decode it unless that was done before, and describe it.

    Raises:
        ValueError: if it cannot be found, holds no such split, cannot be read as the spec says, or holds too many
            pictures that cannot be read.
        ImportError: if a library that it needs is missing.
    """
    dataset = _opened(open_splits(spec), spec)
    require_few_bad(dataset.info.name, dataset.info.report, spec.max_bad, spec.path)
    return dataset


def open_parts(spec: DataSpec, holdout: float) -> tuple[Dataset, Dataset]:
    """Open the training and the test part of a data set.

    Where the source has a test split, each of the two splits must hold few bad pictures; where a part of the training
    examples is held out, both parts together.

    Args:
        spec: its ``split`` and ``holdout`` do not matter.
        holdout: share of the training examples that is held out where the source has no test split.

    Raises:
        ValueError: as ``open_dataset`` does.
        ImportError: if a library that it needs is missing.
    """
    splits = open_splits(spec)
    carve = holdout if "test" not in splits else None
    train, test = (_opened(splits, replace(spec, split=split, holdout=carve)) for split in ("train", "test"))
    if carve is None:
        for part in (train, test):
            require_few_bad(part.info.name, part.info.report, spec.max_bad, spec.path)
    else:
        both = [part.info.report for part in (train, test)]
        whole = Report(sum(report.found for report in both), both[0].skipped + both[1].skipped)
        require_few_bad(train.info.name.rpartition("/")[0], whole, spec.max_bad, spec.path)
    return train, test


def _opened(splits: Splits, spec: DataSpec) -> Dataset:
    choice = choose(splits, spec.split, spec.holdout, repr(spec.path))
    if is_shapes(spec.path) and choice.key is not None:
        return open_shapes(read_options(spec.path), choice.key, spec.height_width, limit=spec.limit, raw=spec.raw)
    source = splits[choice.key]()
    ids = np.arange(source.count, dtype=np.int64)
    notices = source.notices
    if choice.test is not None and spec.holdout is not None:
        ids, notice = _carved(source, choice.test, spec.holdout)
        notices += (notice,)
    ids = limited(ids, None if source.labels is None else source.labels[ids], spec.limit)
    decoded = materialize(source, ids, spec.transform)
    return ArrayDataset(
        decoded.pixels,
        None if source.labels is None else source.labels[decoded.kept],
        name=f"{source.name}/{spec.split}",
        classes=source.classes,
        captions=_captions(source, decoded.kept),
        raw=spec.raw,
        origin=Origin(decoded.digest, decoded.report, notices + decoded.notices),
    )


def _carved(source: Source, test: bool, holdout: float) -> tuple[NDArray[np.int64], str]:
    """Return the examples of the part that is held out for tests, or of the rest, and what to say of it."""
    if source.count == 1:
        notice = f"{source.name} has a single example: it is trained on and tested on, so tests show what was memorised"
        return np.zeros(1, dtype=np.int64), notice
    chosen = np.flatnonzero(held_out(source.count, source.labels, holdout) == test)
    part = "these examples are" if test else "left out are"
    count = len(chosen) if test else source.count - len(chosen)
    notice = (
        f"{source.name} has no test split: {part} the {count} ({100 * holdout:.4g} %) of its {source.count} training "
        "examples that a fixed hash of their numbers holds out, class by class"
    )
    return chosen, notice


def _captions(source: Source, kept: NDArray[np.int64]) -> tuple[str | None, ...] | None:
    if source.captions is None or all(caption is None for caption in source.captions):
        return None
    return tuple(source.captions[i] for i in kept)


class _Kind(Enum):
    DIGITS = "scikit-learn's digits"
    SHAPES = "a set of drawn shapes"
    HUB = "a data set of the hub"
    PARQUET = "parquet files"
    SHARDS = "WebDataset shards"
    ARRAYS = "NumPy files"
    FOLDER = "a folder of pictures"


def open_splits(spec: DataSpec) -> Splits:
    """Find the data and the splits they have.

    Raises:
        ValueError: if they cannot be found, or an option of the spec means nothing to them.
        ImportError: if a library that they need is missing.
    """
    kind, path = _recognised(spec.path)
    tables = kind in (_Kind.HUB, _Kind.PARQUET)
    for option, value, used in (
        ("image_column", spec.image_column, tables),
        ("label_column", spec.label_column, tables),
        ("value_range", spec.value_range, kind not in (_Kind.DIGITS, _Kind.SHAPES)),
        ("channels", spec.channels, kind is not _Kind.SHAPES or spec.channels == 3),
    ):
        if value is not None and not used:
            raise ValueError(f"{spec.path!r} is {kind.value}, to which {option}={value!r} means nothing: leave it out")
    if kind is not _Kind.ARRAYS and spec.channels not in (None, *PICTURE_CHANNELS):
        raise ValueError(
            f"pictures can have channels=1 (grey), 3 (RGB) or 4 (RGB with alpha), not {spec.channels}; "
            "other numbers of channels are read from NumPy files"
        )
    match kind:
        case _Kind.DIGITS:
            return digits.splits_of()
        case _Kind.SHAPES:
            return shapes_splits(read_options(spec.path), spec.height_width)
        case _Kind.HUB:
            return hub.splits_of(spec.path.removeprefix(hub.PREFIX), spec.image_column, spec.label_column)
        case _Kind.PARQUET:
            return parquet.splits_of(path, spec.image_column, spec.label_column)
        case _Kind.SHARDS:
            return shards.splits_of(_shards(spec.path, path), path.name.removesuffix(".tar"))
        case _Kind.ARRAYS:
            return arrays.splits_of(path, spec.value_range, spec.channels)
        case _Kind.FOLDER:
            return folder.splits_of(path)


def _shards(given: str, path: Path) -> list[Path]:
    if shards.is_pattern(given):
        return shards.expanded(given)
    return shards.shard_files(path) if path.is_dir() else [path]


def _recognised(given: str) -> tuple[_Kind, Path]:
    if given == digits.NAME:
        return _Kind.DIGITS, Path()
    if is_shapes(given):
        return _Kind.SHAPES, Path()
    if given.startswith(hub.PREFIX):
        return _Kind.HUB, Path()
    if shards.is_pattern(given):
        return _Kind.SHARDS, Path(given)
    path = find(given)
    if path.is_dir():
        return _recognised_folder(path), path
    kinds = {".parquet": _Kind.PARQUET, ".tar": _Kind.SHARDS, ".npz": _Kind.ARRAYS, ".npy": _Kind.ARRAYS}
    if path.suffix not in kinds:
        raise ValueError(
            f"{path} is a file that cannot be opened as a data set: expected one that ends in {', '.join(kinds)}, "
            "or a folder of pictures"
        )
    return kinds[path.suffix], path


def _recognised_folder(path: Path) -> _Kind:
    if parquet.parquet_files(path):
        return _Kind.PARQUET
    if packed := shards.shard_files(path):
        if folder.has_pictures(path):
            raise ValueError(
                f"{path} holds both shards ({packed[0].name}, ...) and pictures: give the shards as "
                f"{packed[0]} or by a pattern, or move them elsewhere to read the pictures"
            )
        return _Kind.SHARDS
    return _Kind.ARRAYS if arrays.array_files(path) else _Kind.FOLDER


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
    present = {entry.name for place in around for entry in place.iterdir()} | {digits.NAME, SHAPES}
    near = difflib.get_close_matches(path.name, sorted(present))
    if near:
        lines.append(f"similar names: {', '.join(near)}")
    known = _ON_THE_HUB.get(path.name.lower().replace("-", "_"))
    if known:
        lines.append(f"to read it from the Hugging Face hub: {known}")
    elif not near:
        lines.append(
            "give a folder or file, 'digits', 'shapes', or hf:owner/name; or name its parent folder in UNFOG_DATA"
        )
    return "; ".join(lines)
