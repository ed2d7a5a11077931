"""Reading a picture of the set ``shapes``: which objects are on it, of what colour, shape and size, and where.

Nothing is learned. Larger pictures are averaged down to a side of 32 to 63 pixels, and then:

1. the ground is the colour of ``BACKGROUNDS`` to which most pixels are nearest; what it looks like is their median;
2. a pixel ``p`` that a colour ``c`` covers by the share ``a`` is ``g + a (c - g)`` on the ground ``g``: ``a`` is found
   by projection, and the colour is the one that leaves the smallest remainder around the pixel;
3. connected pixels of one colour that are covered by more than a third are an object; specks are left out, and what is
   larger than any object is taken apart where it is covered least;
4. the shape, half extent and centre are those of the drawing that lies nearest to the covered shares by least squares,
   among all shapes at many sizes, places between pixels, and blurs. Where even that one is far off, the object has no
   shape.

What the reading itself gets wrong is measured on drawings of which the truth is known: ``adherence.reading_error``.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.data.dataset import to_uint8
from unfog.data.shapes.draw import CENTROIDS, stamps
from unfog.data.shapes.scene import BACKGROUNDS, COLOURS, RADIUS_JITTER, SHAPES, SIDE, SIZES
from unfog.diffusion.checks import require
from unfog.evaluation.disturbances import blurred

LEAST_SIDE = 24
"""Smallest side of pictures that are read, in pixels."""

_WORKING_SIDE = 32
_COVERED = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
"""Shares from which on a pixel is of an object: the first, and the next ones where objects may have run together."""

_SPECK = 0.5  # least covered area of an object, in squares of the smallest half extent; shapes have 1.6 to 3.1
_OVERSIZE = 1.3  # of the largest extent
_MISFIT = 0.25  # share of the squares that the nearest drawing may leave unexplained
_GAINS = (0.75, 1.15)  # how much paler or stronger than painted a shape may be
_RATIO = 1.08  # of neighbouring half extents that are tried
_OFFSETS = (-0.35, 0.0, 0.35)  # pixels from the centroid
_BLURS = (0.0, 0.5, 0.8, 1.1, 1.4)  # standard deviations in pixels
_SMALLEST = min(SIZES.values()) * (1 - RADIUS_JITTER)
_LARGEST = max(SIZES.values()) * (1 + RADIUS_JITTER)
_PIECE = 256


class Found(NamedTuple):
    """One object of a picture.

    Attributes:
        colour: which of ``COLOURS``.
        shape: which of ``SHAPES``; None if it is like none of them.
        size: which of ``SIZES``.
        cell: which of ``CELLS``.
        centre: x and y in cells, from the upper left corner.
        radius: half extent in cells.
        misfit: share of the squares that the nearest drawing leaves unexplained, 0 to 1.
    """

    colour: int
    shape: int | None
    size: int
    cell: int
    centre: tuple[float, float]
    radius: float
    misfit: float


@dataclass(frozen=True)
class Reading:
    """What was found on a picture.

    Attributes:
        background: which of ``BACKGROUNDS``.
        objects: from the upper left to the lower right, row by row.
    """

    background: int
    objects: tuple[Found, ...]


@torch.inference_mode()
def read(pictures: Tensor) -> list[Reading]:
    """Read pictures.

    Args:
        pictures: ``(B, 3, S, S)`` uint8, or floats in [-1, 1], which are rounded to 8 bits; S at least ``LEAST_SIDE``.

    Raises:
        ValueError: if they have another shape.
    """
    wanted = pictures.ndim == 4 and pictures.shape[1] == 3 and pictures.shape[2] == pictures.shape[3] >= LEAST_SIDE
    require(wanted, f"square pictures (B, 3, S, S) with S >= {LEAST_SIDE}, got {tuple(pictures.shape)}")
    found: list[Reading] = []
    for piece in torch.split(pictures, _PIECE):
        pixels = (piece if piece.dtype == torch.uint8 else to_uint8(piece)).cpu().float()
        found += _read(F.avg_pool2d(pixels, _reduction(pixels.shape[-1])))
    return found


def _reduction(side: int) -> int:
    """Return the largest factor by which pictures can be averaged down to ``_WORKING_SIDE`` or more."""
    return max(k for k in range(1, max(2, side // _WORKING_SIDE + 1)) if side % k == 0)


def _read(pixels: Tensor) -> list[Reading]:
    side = pixels.shape[-1]
    ground, seen = _ground(pixels)
    share, colour, best = _covered(pixels, seen)
    mask = best > _COVERED[0]
    parts = _Parts.of(mask, colour)
    for least in _COVERED[1:]:
        large = parts.extent > 2 * _OVERSIZE * _LARGEST * side / SIDE
        if not large.any():
            break
        mask &= ~F.pad(large, (1, 0))[parts.label] | (best > least)
        parts = _Parts.of(mask, colour)
    parts = parts.chosen(parts.masses(best) >= _SPECK * (_SMALLEST * side / SIDE) ** 2)
    objects: list[list[Found]] = [[] for _ in pixels]
    for picture, found in zip(parts.picture.tolist(), _fitted(parts, share, side), strict=True):
        objects[picture].append(found)
    order = [sorted(each, key=lambda one: (one.cell, one.centre)) for each in objects]
    return [Reading(b, tuple(each)) for b, each in zip(ground.tolist(), order, strict=True)]


def _ground(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which background each picture has, ``(B,)``, and what it looks like, ``(B, 3)``."""
    flat = pixels.flatten(2)  # (B, 3, P)
    palette = torch.tensor([*BACKGROUNDS.values(), *COLOURS.values()], dtype=torch.float32)
    nearest = torch.cdist(flat.transpose(1, 2), palette.expand(len(flat), -1, -1)).argmin(-1)  # (B, P)
    counts = torch.stack([(nearest == k).sum(1) for k in range(len(BACKGROUNDS))], 1)
    ground = counts.argmax(1)
    mine = (nearest == ground[:, None])[:, None]
    seen = flat.masked_fill(~mine, torch.nan).nanmedian(-1).values
    return ground, torch.where(seen.isnan(), palette[ground], seen)


def _covered(pixels: Tensor, ground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share of each pixel that each colour covers, the colour of each pixel, and the share of that one.

    Returns:
        ``(B, colours, S, S)``, ``(B, S, S)`` int64 and ``(B, S, S)``.
    """
    paint = torch.tensor(list(COLOURS.values()), dtype=torch.float32) - ground[:, None]  # (B, colours, 3)
    beyond = pixels - ground[:, :, None, None]
    length = (paint * paint).sum(-1)[..., None, None]
    along = torch.einsum("bchw,bkc->bkhw", beyond, paint)
    share = (along / length).clamp(0, 1.2)
    rest = (beyond * beyond).sum(1, keepdim=True) - 2 * share * along + share * share * length
    colour = F.avg_pool2d(rest, 3, stride=1, padding=1, count_include_pad=False).argmin(1)
    return share, colour, share.gather(1, colour[:, None])[:, 0]


class _Parts(NamedTuple):
    """Connected parts of pictures.

    Attributes:
        label: ``(B, S, S)`` int64, 1 + the part that a pixel belongs to, or 0.
        picture: ``(M,)`` which picture a part is on.
        colour: ``(M,)`` its colour.
        extent: ``(M,)`` its width or height in pixels, whichever is more.
    """

    label: Tensor
    picture: Tensor
    colour: Tensor
    extent: Tensor

    @staticmethod
    def of(mask: Tensor, colour: Tensor) -> "_Parts":
        """Find the parts of what is inside a mask, neighbours along rows, columns and diagonals hanging together."""
        batch, side, _ = mask.shape
        colour = colour.masked_fill(~mask, -1)
        marks = torch.arange(1, side * side + 1).view(1, side, side).expand(batch, -1, -1) * mask
        steps = [(dy, dx) for dy, dx in product((0, 1, 2), repeat=2) if (dy, dx) != (1, 1)]
        near = F.pad(colour, (1, 1, 1, 1), value=-2)
        same = [near[:, dy : dy + side, dx : dx + side] == colour for dy, dx in steps]
        # Each pixel takes the largest mark around it until nothing changes: then a part has one mark.
        while True:
            before, around = marks, F.pad(marks, (1, 1, 1, 1))
            for (dy, dx), joined in zip(steps, same, strict=True):
                marks = torch.maximum(marks, around[:, dy : dy + side, dx : dx + side] * (joined & mask))
            if torch.equal(before, marks):
                break
        where = torch.nonzero(marks)  # (P, 3): picture, row, column
        keys = where[:, 0] * (side * side + 1) + marks[marks > 0]
        unique, part = torch.unique(keys, return_inverse=True)
        count = len(unique)
        label = torch.zeros_like(marks)
        label[marks > 0] = part + 1
        ends = part[:, None].expand(-1, 2)
        low = torch.full((count, 2), side).scatter_reduce(0, ends, where[:, 1:], "amin")
        high = torch.full((count, 2), -1).scatter_reduce(0, ends, where[:, 1:], "amax")
        return _Parts(
            label=label,
            picture=unique // (side * side + 1),
            colour=torch.zeros(count, dtype=torch.int64).index_copy(0, part, colour[marks > 0]),
            extent=(high - low + 1).amax(1),
        )

    def masses(self, share: Tensor) -> Tensor:
        """Return the sums ``(M,)`` of the covered shares ``(B, S, S)`` of each part."""
        inside = self.label > 0
        return torch.zeros(len(self.picture)).index_add(0, self.label[inside] - 1, share[inside])

    def chosen(self, keep: Tensor) -> "_Parts":
        """Return some of the parts, ``keep`` being ``(M,)`` bool."""
        number = F.pad(keep.cumsum(0) * keep, (1, 0))
        return _Parts(number[self.label], self.picture[keep], self.colour[keep], self.extent[keep])


class _Drawings(NamedTuple):
    """Drawings that parts are compared with.

    Attributes:
        cover: ``(K, side * side)`` covered shares.
        shape: ``(K,)`` which shape.
        radius: ``(K,)`` half extents in pixels.
        centre: ``(K, 2)`` x and y of the middle of the extent, in pixels from the middle of the drawing.
        side: pixels.
    """

    cover: Tensor
    shape: Tensor
    radius: Tensor
    centre: Tensor
    side: int


@lru_cache(maxsize=4)
def _drawings(picture_side: int) -> _Drawings:
    cell = picture_side / SIDE
    side = 2 * ceil(_LARGEST * cell * 1.25 + 1) + 1
    smallest, largest = 0.65 * _SMALLEST * cell, 1.35 * _LARGEST * cell
    radii = [smallest]
    while radii[-1] < largest:
        radii.append(radii[-1] * _RATIO)
    tried = torch.tensor(list(product(range(len(SHAPES)), radii, _OFFSETS, _OFFSETS)), dtype=torch.float32)
    shape, radius = tried[:, 0].to(torch.int64), tried[:, 1]
    # Parts are cut out around their centroid, which is not the middle of every shape's extent.
    below = torch.tensor(CENTROIDS)[shape] * radius
    centre = torch.stack([tried[:, 2], tried[:, 3] - below], 1)
    sharp = stamps(shape, centre + side / 2, radius, side)
    soft = [sharp if sigma == 0 else blurred(sharp[:, None], sigma)[:, 0] for sigma in _BLURS]
    cover = torch.cat(soft).flatten(1)
    many = len(_BLURS)
    return _Drawings(cover, shape.repeat(many), radius.repeat(many), centre.repeat(many, 1), side)


def _fitted(parts: _Parts, share: Tensor, picture_side: int) -> list[Found]:
    """Return the object that each part is."""
    if not len(parts.picture):
        return []
    drawings, cell = _drawings(picture_side), picture_side / SIDE
    patches, middle = _patches(parts, share, drawings.side)
    nearest = [_nearest(piece, drawings.cover) for piece in torch.split(patches.flatten(1), _PIECE)]
    best, misfit = (torch.cat(each) for each in zip(*nearest, strict=True))
    centre = (middle + drawings.centre[best]) / cell
    radius = drawings.radius[best] / cell
    size = (radius > sqrt(SIZES["small"] * SIZES["large"])).to(torch.int64)
    place = centre.floor().clamp(0, SIDE - 1).to(torch.int64)
    rows = zip(
        parts.colour.tolist(),
        drawings.shape[best].tolist(),
        size.tolist(),
        (SIDE * place[:, 1] + place[:, 0]).tolist(),
        centre.tolist(),
        radius.tolist(),
        misfit.tolist(),
        strict=True,
    )
    return [
        Found(colour, shape if off <= _MISFIT else None, size, cell, (x, y), radius, off)
        for colour, shape, size, cell, (x, y), radius, off in rows
    ]


def _nearest(patch: Tensor, cover: Tensor) -> tuple[Tensor, Tensor]:
    """Return which drawing ``(K, P)`` lies nearest to each patch ``(M, P)``, and the share it leaves unexplained."""
    square, length = (patch * patch).sum(1), (cover * cover).sum(1)
    along = patch @ cover.T  # (M, K)
    gain = (along / length).clamp_(*_GAINS)
    least, best = (square[:, None] + gain * (gain * length - 2 * along)).min(1)
    return best, (least / square).clamp(0, 1)


def _patches(parts: _Parts, share: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut out the covered shares around the centroid of each part, without those of other parts.

    Returns:
        ``(M, side, side)``, and where the middle of each lies, ``(M, 2)`` x and y in pixels.
    """
    inside = torch.nonzero(parts.label)
    part = parts.label[parts.label > 0] - 1
    weight = share[inside[:, 0], parts.colour[part], inside[:, 1], inside[:, 2]]
    total = torch.zeros(len(parts.picture)).index_add(0, part, weight)
    moment = torch.zeros(len(total), 2).index_add(0, part, weight[:, None] * (inside[:, [2, 1]] + 0.5))
    middle = (moment / total[:, None]).floor()  # pixel of the centroid
    reach = side // 2
    # Pixels that adjoin a part are its too: there lies what is covered a little.
    grown = F.max_pool2d(parts.label.float(), 3, stride=1, padding=1).to(torch.int64)
    owner = F.pad(torch.where(parts.label > 0, parts.label, grown), (reach,) * 4)
    around = F.pad(share, (reach,) * 4)
    step = torch.arange(side)
    rows = (middle[:, 1, None].to(torch.int64) + step)[:, :, None]
    columns = (middle[:, 0, None].to(torch.int64) + step)[:, None]
    picture = parts.picture[:, None, None]
    taken = around[picture, parts.colour[:, None, None], rows, columns]
    owned = owner[picture, rows, columns]
    number = torch.arange(1, len(total) + 1).view(-1, 1, 1)
    return taken * ((owned == 0) | (owned == number)), middle + 0.5
