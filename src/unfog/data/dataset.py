"""What a data set is: examples by number, and a description that says exactly what they are.

Pixels are kept as uint8 and handed out as float32 in [-1, 1] by ``x / 127.5 - 1``. The map is undone exactly by
``to_uint8``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 pixels in 0 .. 255 to float32 in [-1, 1] by ``x / 127.5 - 1``."""
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8, but are {pixels.dtype}")
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Map floats in [-1, 1] to uint8 by rounding ``(x + 1) * 127.5``; what lies outside is clipped.

    Raises:
        TypeError: if ``x`` is not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point in [-1, 1], but is {x.dtype}")
    return x.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)


class Field(NamedTuple):
    """Shape of one example's field (without the batch axis) and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Skipped(NamedTuple):
    """A picture that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What became of the pictures of a source.

    Attributes:
        found: how many pictures were chosen for reading.
        skipped: those that could not be read, in the order of the source.
    """

    found: int
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        if not self.skipped:
            return f"all {self.found} pictures were read"
        named = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:5])
        more = f"; and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        return f"{len(self.skipped)} of {self.found} pictures could not be read and are left out ({named}{more})"


@dataclass(frozen=True)
class DataInfo:
    """What a data set holds.

    Attributes:
        name: where the examples come from, for people.
        count: number of examples.
        fields: shape and dtype of what ``gather`` returns for one example, by name.
        classes: names of the classes, label ``i`` being ``classes[i]``; None without labels.
        fingerprint: sha256 (hex) of the decoded pixels, the labels and the class names. It changes with the source
            and with everything done to it (size, channels, split, limit), whatever the path or the file format,
            so statistics of a set may be filed under it.
        report: which pictures could not be read.
        notices: what a reader of the results should know, such as how a test part was carved.
    """

    name: str
    count: int
    fields: Mapping[str, Field]
    classes: tuple[str, ...] | None
    fingerprint: str
    report: Report
    notices: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Channels of ``x0``."""
        return self.fields["x0"].shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """What follows the channel axis of ``x0``: ``(H, W)`` for pictures."""
        return self.fields["x0"].shape[1:]


class Dataset(Protocol):
    """Examples by number: 0 .. len - 1, always the same."""

    @property
    def info(self) -> DataInfo:
        """What the set holds."""
        ...

    def __len__(self) -> int: ...

    def gather(self, ids: NDArray[np.int64] | Tensor) -> dict[str, Tensor]:
        """Return the fields of some examples, stacked along a new first axis in the order of ``ids``."""
        ...


def pixel_digest(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) of pixels ``(N, C, H, W)``, read piece by piece."""
    digest = hashlib.sha256()
    for start in range(0, len(pixels), 1024):
        digest.update(np.ascontiguousarray(pixels[start : start + 1024]).data)
    return digest.hexdigest()


def fingerprint(
    digest: str, shape: Sequence[int], labels: NDArray[np.int64] | None, classes: tuple[str, ...] | None
) -> str:
    """Return the sha256 (hex) that stands for a set: its pixels' digest and shape, its labels, its class names."""
    head = json.dumps([digest, [int(n) for n in shape], classes])
    body = b"" if labels is None else labels.astype("<i8").tobytes()
    return hashlib.sha256(head.encode() + b"\0" + body).hexdigest()


class ArrayDataset:
    """Pictures in one uint8 array, in memory or memory-mapped.

    Args:
        pixels: ``(N, C, H, W)`` uint8, 0 .. 255; a memory-mapped array is read only where it is asked for.
        labels: ``(N,)`` whole numbers, or None.
        name: where the pictures come from, for people.
        classes: name of each label; the numbers themselves where left out.
        raw: ``gather`` also returns the uint8 pixels, as field ``pixels``.
        digest: ``pixel_digest(pixels)`` where it is known already.
        report: which pictures could not be read.
        notices: what a reader of the results should know.

    Raises:
        ValueError: if the shapes do not fit or a label has no class.
        TypeError: if pixels are not uint8 or labels not whole numbers.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[Any] | None = None,
        *,
        name: str = "array",
        classes: Sequence[str] | None = None,
        raw: bool = False,
        digest: str | None = None,
        report: Report | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        if pixels.dtype != np.uint8:
            raise TypeError(f"pixels must be uint8 (0 .. 255), but are {pixels.dtype}")
        if pixels.ndim != 4 or not len(pixels):
            raise ValueError(f"pixels must be (N, C, H, W) with N >= 1, but have shape {pixels.shape}")
        self._pixels = pixels
        self._labels, names = _labelled(labels, classes, len(pixels))
        shape = tuple(int(n) for n in pixels.shape[1:])
        fields = {"x0": Field(shape, torch.float32)}
        if raw:
            fields["pixels"] = Field(shape, torch.uint8)
        if self._labels is not None:
            fields["label"] = Field((), torch.int64)
        self._info = DataInfo(
            name=name,
            count=len(pixels),
            fields=fields,
            classes=names,
            fingerprint=fingerprint(digest or pixel_digest(pixels), pixels.shape, self._labels, names),
            report=report or Report(len(pixels)),
            notices=notices,
        )

    @property
    def info(self) -> DataInfo:
        """What the set holds."""
        return self._info

    def __len__(self) -> int:
        return self._info.count

    def gather(self, ids: NDArray[np.int64] | Tensor) -> dict[str, Tensor]:
        """Return the fields of some examples.

        Args:
            ids: ``(B,)`` whole numbers in 0 .. N - 1, in any order, repeats allowed.

        Returns:
            ``x0`` ``(B, C, H, W)`` float32 in [-1, 1]; ``label`` ``(B,)`` int64 where there are classes;
            ``pixels`` ``(B, C, H, W)`` uint8 where the set was built with ``raw``.

        Raises:
            ValueError: if an id lies outside.
        """
        chosen = np.asarray(ids)
        if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self)):
            raise ValueError(f"ids must be a list of numbers in 0 .. {len(self) - 1}, but are {chosen}")
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels[chosen]))
        values = {"x0": to_float(pixels)}
        if "pixels" in self._info.fields:
            values["pixels"] = pixels
        if self._labels is not None:
            values["label"] = torch.from_numpy(self._labels[chosen])
        return values


def _labelled(
    labels: NDArray[Any] | None, classes: Sequence[str] | None, count: int
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Check labels against the class names and make both up."""
    if labels is None:
        if classes is not None:
            raise ValueError("classes are named but there are no labels: give both or neither")
        return None, None
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, but are {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one for each picture, but have {labels.shape}")
    names = tuple(str(i) for i in range(int(labels.max()) + 1)) if classes is None else tuple(classes)
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"labels must lie in 0 .. {len(names) - 1} ({len(names)} classes), "
            f"but reach from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64), names
