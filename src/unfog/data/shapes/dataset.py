"""The set ``shapes``: examples by number, drawn when they are asked for."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.data.dataset import DataInfo, Field, Report, to_float
from unfog.data.image import Size
from unfog.data.shapes.captions import captions_of
from unfog.data.shapes.draw import draw
from unfog.data.shapes.options import NAME, ShapesOptions
from unfog.data.shapes.scene import ATTRIBUTES, SHAPES, Scenes, attributes_of, draw_scenes
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import limited
from unfog.diffusion.random import Rng, seed_of

PARTS = ("train", "test")
USUAL_SIZE = 32
SIZES = (24, 512)
"""Smallest and largest side in pixels: below, small shapes cannot be told apart."""

_PIECE = 512  # scenes handled at once where all of a set are
_PROBE = 64  # pictures whose pixels are part of the fingerprint


class ShapesDataset:
    """Scenes of coloured shapes, drawn on the fly, with their attributes and captions.

    The label is the shape of the first object. Pixels are rounded to 8 bits, as those of stored pictures are.

    Args:
        options: which set.
        part: which of ``PARTS``.
        size: side in pixels.
        ids: ``(N,)`` ascending numbers of the examples of the part that are taken; all unless given.
        raw: ``gather`` also returns the uint8 pixels, as field ``pixels``.

    Raises:
        ValueError: if there is no such part, or the size is out of ``SIZES``.
    """

    def __init__(
        self,
        options: ShapesOptions,
        part: str = "train",
        size: int = USUAL_SIZE,
        *,
        ids: NDArray[np.int64] | None = None,
        raw: bool = False,
    ) -> None:
        if part not in PARTS:
            raise ValueError(f"{options.name} has no split {part!r}; splits: {', '.join(PARTS)}")
        self.options = options
        self.size = side_of((size, size))
        self._part = PARTS.index(part)
        count = options.train if part == "train" else options.test
        self._ids = np.arange(count, dtype=np.int64) if ids is None else ids
        shape = (3, size, size)
        fields = {"x0": Field(shape, torch.float32), "label": Field((), torch.int64)}
        if raw:
            fields["pixels"] = Field(shape, torch.uint8)
        fields["attributes"] = Field((len(ATTRIBUTES),), torch.int64)
        self._info = DataInfo(
            name=f"{options.name}/{part}",
            count=len(self._ids),
            fields=fields,
            classes=SHAPES,
            fingerprint=self._fingerprint(),
            report=Report(len(self._ids)),
            captioned=len(self._ids),
            attributes=ATTRIBUTES,
        )

    @property
    def info(self) -> DataInfo:
        """What the set holds."""
        return self._info

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, ids: NDArray[np.int64] | Tensor) -> dict[str, Tensor]:
        """Draw some examples.

        Args:
            ids: ``(B,)`` whole numbers in 0 .. N - 1, in any order, repeats allowed.

        Returns:
            ``x0`` ``(B, 3, size, size)`` float32 in [-1, 1]; ``label`` ``(B,)`` int64, the shape of the first object;
            ``attributes`` ``(B, A)`` int64, all that is true of the scene; ``pixels`` uint8 where the set was built
            with ``raw``.

        Raises:
            ValueError: if an id lies outside.
        """
        scenes = self.scenes(ids)
        pixels = draw(scenes, self.size)
        values = {"x0": to_float(pixels), "label": scenes.shape[:, 0].clone()}
        if "pixels" in self._info.fields:
            values["pixels"] = pixels
        values["attributes"] = attributes_of(scenes)
        return values

    def captions(self, ids: NDArray[np.int64] | Tensor, paraphrase: int = 0) -> list[str]:
        """Return captions of some examples, each true of its picture and naming some of its attributes.

        Args:
            ids: as ``gather`` takes them.
            paraphrase: the caption's number, at least 0: others say the same in other words.

        Raises:
            ValueError: if an id lies outside or the paraphrase is negative.
        """
        if paraphrase < 0:
            raise ValueError(f"paraphrase must be at least 0, but is {paraphrase}")
        numbers = self._numbers(ids)
        named, worded = (
            Rng.of(seed_of("shapes", "captions", self.options.seed, self._part, which), numbers)
            for which in (-1, paraphrase)
        )
        return captions_of(self._scenes(numbers), named, worded)

    def scenes(self, ids: NDArray[np.int64] | Tensor) -> Scenes:
        """Return what some examples show.

        Args:
            ids: as ``gather`` takes them.

        Raises:
            ValueError: if an id lies outside.
        """
        return self._scenes(self._numbers(ids))

    def _scenes(self, numbers: Tensor) -> Scenes:
        return draw_scenes(self.options.seed, self._part, numbers, self.options.objects)

    def _numbers(self, ids: NDArray[np.int64] | Tensor) -> Tensor:
        """Return which scenes of the part some examples are, ``(B,)`` int64."""
        chosen = np.asarray(ids)
        if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self)):
            raise ValueError(f"ids must be a list of numbers in 0 .. {len(self) - 1}, but are {chosen}")
        return torch.from_numpy(self._ids[chosen])

    def _fingerprint(self) -> str:
        """Return a hash of which scenes these are, and of the pixels, attributes and captions of the first of them.

        Whatever changes how scenes are made, drawn or told of changes some of those.
        """
        probe = np.arange(min(_PROBE, len(self._ids)))
        scenes = self.scenes(probe)
        head = [self.options.name, self._part, self.size, attributes_of(scenes).tolist(), self.captions(probe)]
        parts = (
            json.dumps(head).encode(),
            draw(scenes, self.size).numpy().tobytes(),
            self._ids.astype("<i8").tobytes(),
        )
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def open_shapes(
    options: ShapesOptions, part: str, size: Size | None, *, limit: int | None = None, raw: bool = False
) -> ShapesDataset:
    """Open a part of a set.

    Args:
        options: which set.
        part: ``train`` or ``test``.
        size: height and width; 32x32 unless given.
        limit: at most so many examples, each class in proportion.
        raw: as ``ShapesDataset`` has it.

    Raises:
        ValueError: if there is no such part, or pictures of this size cannot be drawn.
    """
    whole = ShapesDataset(options, part, side_of(size), raw=raw)
    if limit is None or limit >= len(whole):
        return whole
    numbers = np.arange(len(whole))
    return ShapesDataset(options, part, whole.size, ids=limited(numbers, _labels(whole), limit), raw=raw)


def splits_of(options: ShapesOptions, size: Size | None) -> Splits:
    """Return the two parts as sources of pictures, such as ``unfog data check`` reads one after the other.

    Raises:
        ValueError: if pictures of this size cannot be drawn.
    """
    side = side_of(size)
    return {part: partial(_source, options, part, side) for part in PARTS}


def side_of(size: Size | None) -> int:
    """Return the side in pixels for a wanted height and width, or the usual one.

    Raises:
        ValueError: if they differ or are out of ``SIZES``.
    """
    height, width = size or (USUAL_SIZE, USUAL_SIZE)
    if height != width or not SIZES[0] <= height <= SIZES[1]:
        raise ValueError(
            f"pictures of {NAME} are squares of {SIZES[0]} to {SIZES[1]} pixels, not {height}x{width}: set a size, "
            f"such as {USUAL_SIZE}"
        )
    return height


def _source(options: ShapesOptions, part: str, size: int) -> Source:
    whole = ShapesDataset(options, part, size, raw=True)
    return Source(
        name=options.name,
        count=len(whole),
        stream=partial(_stream, whole),
        files=None,
        labels=_labels(whole),
        classes=SHAPES,
        captions=tuple(whole.captions(np.arange(len(whole)))),
    )


def _stream(whole: ShapesDataset, ids: NDArray[np.int64]) -> Iterator[Encoded]:
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        pixels = whole.gather(piece)["pixels"].permute(0, 2, 3, 1).contiguous().numpy()
        for number, picture in zip(piece.tolist(), pixels, strict=True):
            yield Encoded(f"scene {number}", picture)


def _labels(whole: ShapesDataset) -> NDArray[np.int64]:
    numbers = np.arange(len(whole))
    pieces = [whole.scenes(numbers[start : start + _PIECE]).shape[:, 0] for start in range(0, len(numbers), _PIECE)]
    return torch.cat(pieces).numpy()
