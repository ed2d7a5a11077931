"""Pictures in NumPy files: an ``.npz`` archive, an ``.npy`` array, or a folder of either.

An entry of an archive, and likewise a file in a folder of ``.npy`` files, is known by its name: pictures are called
images, image, x0, x or data, labels are called labels, label or y, class names classes; a word for a split may stand
before or after (``x_train``, ``test_labels``, ``train.npy``). A single ``.npy`` file holds pictures under any name.

Pictures are uint8. Anything else is refused unless ``value_range`` says which numbers mean black and white; it is
then rounded to 256 levels, and one number outside of the range refuses the array, for then the range is not what it
was declared to be.

The axes are ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``. The channels are the axis, second or last, whose
length is the number of channels asked for; else the one of length 1 or 3; else the one that is shorter than both
others, as 2 and 4 bands are. Where that leaves both or neither the file is refused.
"""

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.data.image import Range, beyond, outside, to_levels
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import split_of

_ROLES = {
    "images": "images",
    "image": "images",
    "x0": "images",
    "x": "images",
    "data": "images",
    "": "images",
    "labels": "labels",
    "label": "labels",
    "y": "labels",
    "classes": "classes",
}


@dataclass(frozen=True)
class _Entry:
    """One array: its role and split, as told by its name, and the file and the key that hold it."""

    role: str | None
    split: str | None
    file: Path
    key: str | None

    def load(self) -> NDArray[Any]:
        with _reading(self.file):
            if self.key is None:
                return np.asarray(np.load(self.file, mmap_mode="r", allow_pickle=False))
            with np.load(self.file, allow_pickle=False) as archive:
                return np.asarray(archive[self.key])


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the file in what NumPy has to say of it."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def array_files(folder: Path) -> list[Path]:
    """Return the NumPy files in a folder: the archives, or else the single arrays."""
    return sorted(folder.glob("*.npz")) or sorted(folder.glob("*.npy"))


def splits_of(path: Path, value_range: Range | None, channels: int | None) -> Splits:
    """Find the splits of a NumPy file or a folder of such files.

    Args:
        path: the file or folder.
        value_range: the numbers that mean black and white, for arrays that are not uint8.
        channels: how many channels are asked for, which may tell the axes apart.

    Raises:
        ValueError: if no array of pictures is there, or several are.
    """
    files = [path] if path.is_file() else array_files(path)
    entries = list(_entries(files))
    splits = {entry.split for entry in entries if entry.role == "images"}
    if not splits:
        found = ", ".join(sorted(entry.key or entry.file.name for entry in entries))
        raise ValueError(f"{path} holds no array called images, x0, x or data; found: {found or 'nothing'}")
    name = path.stem if path.is_file() else path.name
    return {split: partial(_source, name, split, entries, value_range, channels) for split in splits}


def _entries(files: Iterable[Path]) -> Iterator[_Entry]:
    listed = list(files)
    for file in listed:
        if file.suffix == ".npz":
            with _reading(file), np.load(file, allow_pickle=False) as archive:
                keys = list(archive.files)
            for key in keys:
                # The name of the archive itself tells of the split where that of the entry does not.
                yield _Entry(_role(key), split_of(key) or split_of(file.stem), file, key)
        else:
            role = "images" if len(listed) == 1 else _role(file.stem)
            yield _Entry(role, split_of(file.stem), file, None)


def _role(name: str) -> str | None:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and split_of(word) is None]
    return _ROLES.get("_".join(words))


def _source(
    name: str, split: str | None, entries: Sequence[_Entry], value_range: Range | None, channels: int | None
) -> Source:
    by_role = {role: [e for e in entries if e.role == role and e.split == split] for role in ("images", "labels")}
    for role, found in by_role.items():
        if len(found) > 1:
            places = [f"{e.file.name}:{e.key}" if e.key else e.file.name for e in found]
            raise ValueError(f"{name} holds several arrays of {role} for one split: {', '.join(places)}")
    entry = by_role["images"][0]
    where = f"{entry.file}" + (f", entry {entry.key!r}" if entry.key else "")
    array = entry.load()
    _require_numbers(array, value_range, where)
    axis = _channel_axis(array, channels, where)
    labels = _labels(by_role["labels"][0].load(), where) if by_role["labels"] else None
    classes = None if labels is None else _classes(entries)
    notice = () if value_range is None else (f"pixel values in {list(value_range)} were rounded to 256 levels",)
    return Source(
        name=name,
        count=len(array),
        stream=partial(_stream, array, axis, value_range, where),
        files=(entry.file,),
        variant=f"arrays {entry.key} {axis} {value_range}",
        labels=labels,
        classes=classes,
        notices=notice,
    )


def _require_numbers(array: NDArray[Any], value_range: Range | None, where: str) -> None:
    if value_range is None and array.dtype != np.uint8:
        raise ValueError(
            f"{where} holds {array.dtype}: pictures must be uint8 (0 .. 255), or value_range must say which "
            "numbers mean black and white, such as value_range=(-1, 1) or (0, 1)"
        )
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{where} holds {array.dtype}, not numbers")


def _channel_axis(array: NDArray[Any], wanted: int | None, where: str) -> int | None:
    """Return which axis of the array holds the channels, 1 or 3, or None where there is no such axis."""
    shape = array.shape
    if array.ndim not in (3, 4) or not len(array):
        raise ValueError(f"{where} has shape {shape}: pictures are (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if array.ndim == 3:
        return None
    likely = (
        [axis for axis in (1, 3) if shape[axis] == wanted],
        [axis for axis in (1, 3) if shape[axis] in (1, 3)],
        [axis for axis in (1, 3) if shape[axis] < min(shape[2], shape[4 - axis])],
    )
    found = next((axes for axes in likely if axes), [])
    if len(found) == 1:
        return found[0]
    could = "both the second and the last" if found else "neither the second nor the last"
    raise ValueError(
        f"{where} has shape {shape}: {could} axis could be the channels. Say how many there are with channels, or "
        "build unfog.data.dataset.ArrayDataset from (N, C, H, W) instead"
    )


def _labels(array: NDArray[Any], where: str) -> NDArray[np.int64]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise ValueError(f"labels of {where} must be whole numbers (N,), but are {array.dtype} of shape {array.shape}")
    if len(flat) and flat.min() < 0:
        raise ValueError(f"labels of {where} must be 0, 1, 2 and so on, but one is {flat.min()}")
    return flat.astype(np.int64)


def _classes(entries: Sequence[_Entry]) -> tuple[str, ...]:
    """Return the names of the classes, or else the numbers up to the largest label of any split."""
    named = [entry for entry in entries if entry.role == "classes"]
    if named:
        return tuple(str(name) for name in named[0].load().tolist())
    top = max(int(entry.load().max()) for entry in entries if entry.role == "labels")
    return tuple(str(i) for i in range(top + 1))


def _stream(
    array: NDArray[Any], axis: int | None, value_range: Range | None, where: str, ids: NDArray[np.int64]
) -> Iterator[Encoded]:
    for i in ids:
        picture = array[i]
        if value_range is not None:
            wrong = outside(picture, value_range)
            if wrong is not None:
                reach = beyond(array, value_range)
                raise ValueError(f"{where}: {reach}; the first such number is {picture[wrong]} at {(int(i), *wrong)}")
            picture = to_levels(picture, value_range)
        turned = picture.transpose(1, 2, 0) if axis == 1 else picture  # (H, W, C) or (H, W)
        yield Encoded(f"picture {i}", np.ascontiguousarray(turned))
