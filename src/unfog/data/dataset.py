"""What a data set is: examples by number, and a description that says exactly what they are.

Pixels are kept as uint8 and handed out as float32 in [-1, 1] by ``x / 127.5 - 1``. The map is undone exactly by
``to_uint8``.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

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

    def __str__(self) -> str:
        return f"{printable(self.name)}: {printable(self.reason)}"


def printable(name: str) -> str:
    """Return a name for people: line breaks, other controls and bytes that are no text are written as escapes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is no text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True)
class Report:
    """What became of the pictures of a source.

    Attributes:
        found: how many pictures were chosen for reading.
        skipped: those that could not be read, in the order of the source.
    """

    found: int
    skipped: tuple[Skipped, ...] = ()

    @property
    def share(self) -> float:
        """Share of the pictures that could not be read, 0 to 1."""
        return len(self.skipped) / self.found if self.found else 0.0

    def __str__(self) -> str:
        if not self.skipped:
            return f"all {self.found} pictures were read"
        named = "; ".join(map(str, self.skipped[:5]))
        more = f"; and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        return f"{len(self.skipped)} of {self.found} pictures could not be read and are left out ({named}{more})"


@dataclass(frozen=True)
class Attribute:
    """Something that can be named of an example, and the values that it can have.

    Attributes:
        name: what is named.
        values: names of the values; value ``i`` is ``values[i]``, and ``none`` stands for none of them.
    """

    name: str
    values: tuple[str, ...]

    @property
    def none(self) -> int:
        """The number of an attribute that an example does not have, or that is not named: ``len(values)``."""
        return len(self.values)


@dataclass(frozen=True)
class DataInfo:
    """What a data set holds.

    Attributes:
        name: where the examples come from, for people.
        count: number of examples.
        fields: shape and dtype of what ``gather`` returns for one example, by name.
        classes: names of the classes, label ``i`` being ``classes[i]``; None without labels.
        fingerprint: sha256 (hex) of the decoded pixels, the labels, the class names and the captions. It changes with
            the source and with everything done to it (size, channels, split, limit), whatever the path or the file
            format, so statistics of a set may be filed under it.
        report: which pictures could not be read.
        notices: what a reader of the results should know, such as how a test part was carved.
        captioned: number of examples with a caption; the set's method ``captions`` returns them.
        attributes: what can be named of an example beside its class; ``gather`` returns field ``attributes``,
            ``(B, len(attributes))`` int64, column ``i`` in 0 .. ``attributes[i].none``. Empty without them.
    """

    name: str
    count: int
    fields: Mapping[str, Field]
    classes: tuple[str, ...] | None
    fingerprint: str
    report: Report
    notices: tuple[str, ...] = ()
    captioned: int = 0
    attributes: tuple[Attribute, ...] = ()

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
    digest: str,
    shape: Sequence[int],
    labels: NDArray[np.int64] | None,
    classes: tuple[str, ...] | None,
    captions: tuple[str | None, ...] | None = None,
) -> str:
    """Return the sha256 (hex) of a set: its pixels' digest and shape, its labels, class names and captions."""
    parts: list[object] = [digest, [int(n) for n in shape], classes]
    head = json.dumps(parts if captions is None else [*parts, captions])
    body = b"" if labels is None else labels.astype("<i8").tobytes()
    return hashlib.sha256(head.encode() + b"\0" + body).hexdigest()


@dataclass(frozen=True)
class Origin:
    """What became of the pictures of a set on their way into its array.

    Attributes:
        digest: ``pixel_digest`` of the pixels where it is known already.
        report: which pictures could not be read; None stands for none.
        notices: what a reader of the results should know.
    """

    digest: str | None = None
    report: Report | None = None
    notices: tuple[str, ...] = ()


class _Map(NamedTuple):
    """An array in a file, mapped into memory."""

    path: Path
    offset: int
    shape: tuple[int, ...]

    def open(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=self.offset, shape=self.shape)


class ArrayDataset:
    """Pictures in one uint8 array, in memory or memory-mapped.

    A set whose array is mapped is pickled as the name of its file: a worker that is started by spawn maps the same
    file, and nothing is copied.

    Args:
        pixels: ``(N, C, H, W)`` uint8, 0 .. 255; a memory-mapped array is read only where it is asked for.
        labels: ``(N,)`` whole numbers, or None.
        name: where the pictures come from, for people.
        classes: name of each label; the numbers themselves where left out.
        captions: a text for each picture, None for those without; None where no picture has one.
        raw: ``gather`` also returns the uint8 pixels, as field ``pixels``.
        origin: what became of the pictures before.

    Raises:
        ValueError: if the shapes do not fit, a label has no class, or there is not one caption for each picture.
        TypeError: if pixels are not uint8 or labels not whole numbers.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[Any] | None = None,
        *,
        name: str = "array",
        classes: Sequence[str] | None = None,
        captions: Sequence[str | None] | None = None,
        raw: bool = False,
        origin: Origin | None = None,
    ) -> None:
        if pixels.dtype != np.uint8:
            raise TypeError(f"pixels must be uint8 (0 .. 255), but are {pixels.dtype}")
        if pixels.ndim != 4 or not len(pixels):
            raise ValueError(f"pixels must be (N, C, H, W) with N >= 1, but have shape {pixels.shape}")
        origin = origin or Origin()
        self._pixels = pixels
        self._labels, names = _labelled(labels, classes, len(pixels))
        self._captions = None if captions is None else tuple(captions)
        if self._captions is not None and len(self._captions) != len(pixels):
            raise ValueError(f"expected {len(pixels)} captions, one for each picture, got {len(self._captions)}")
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
            fingerprint=fingerprint(
                origin.digest or pixel_digest(pixels), pixels.shape, self._labels, names, self._captions
            ),
            report=origin.report or Report(len(pixels)),
            notices=origin.notices,
            captioned=sum(caption is not None for caption in self._captions or ()),
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
        chosen = self._checked(ids)
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels[chosen]))
        values = {"x0": to_float(pixels)}
        if "pixels" in self._info.fields:
            values["pixels"] = pixels
        if self._labels is not None:
            values["label"] = torch.from_numpy(self._labels[chosen])
        return values

    def captions(self, ids: NDArray[np.int64] | Tensor) -> list[str | None]:
        """Return the captions of some examples, None for those without.

        Args:
            ids: ``(B,)`` whole numbers in 0 .. N - 1, in any order, repeats allowed.

        Raises:
            ValueError: if an id lies outside.
        """
        chosen = self._checked(ids)
        return [None if self._captions is None else self._captions[i] for i in chosen.tolist()]

    def _checked(self, ids: NDArray[np.int64] | Tensor) -> NDArray[np.int64]:
        chosen = np.asarray(ids)
        if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self)):
            raise ValueError(f"ids must be a list of numbers in 0 .. {len(self) - 1}, but are {chosen}")
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        pixels, base = self._pixels, cast("object", self._pixels.base)
        # The base of a slice of a mapped array is that array: only a whole one is where its offset says.
        if isinstance(pixels, np.memmap) and isinstance(base, mmap.mmap) and pixels.filename is not None:
            state["_pixels"] = _Map(Path(pixels.filename).absolute(), pixels.offset, pixels.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        pixels = state["_pixels"]
        self.__dict__.update(state, _pixels=pixels.open() if isinstance(pixels, _Map) else pixels)


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
