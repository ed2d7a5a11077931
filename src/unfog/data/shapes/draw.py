"""Drawing scenes: anti-aliased, in whatever number of pixels, equal for equal scenes.

The share of a pixel that a shape covers is the mean over 2 x 2 points of ``clamp(1/2 - d, 0, 1)``, d being the signed
distance from the shape's edge in units of the points' spacing; shapes are unions and intersections of discs and
half-planes, so that d is the largest or smallest of a few lengths. Only additions, multiplications, divisions and
square roots are used, which IEEE 754 rounds in one way.
"""

from math import ceil, sqrt

import torch
from torch import Tensor

from unfog.data.shapes.scene import BACKGROUNDS, COLOURS, RADIUS_JITTER, SHAPES, SIDE, SIZES, Scenes

_POINTS = 2  # points along a pixel's side
_DISC, _SQUARE = 0.97, 0.88
_RING = (0.55, 1.0)
_ARM = 0.36
_TOP, _BASE, _WIDTH = 1.0, 0.66, 0.95
CENTROIDS = tuple((2 * _BASE - _TOP) / 3 if name == "triangle" else 0.0 for name in SHAPES)
"""How far below the middle of its extent the centroid of each shape lies, in radii."""


def draw(scenes: Scenes, size: int) -> Tensor:
    """Draw scenes.

    Args:
        scenes: what is drawn.
        size: side in pixels.

    Returns:
        ``(B, 3, size, size)`` uint8.
    """
    cell = size / SIDE
    ground = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[scenes.background]  # (B, 3)
    batch, place = torch.nonzero(scenes.present, as_tuple=True)  # (M,) each
    centre, radius = scenes.centre[batch, place] * cell, scenes.radius[batch, place] * cell
    reach = max(SIZES.values()) * (1 + RADIUS_JITTER)
    side = min(size, 2 * ceil(reach * cell + 1) + 1)
    corner = (centre - side / 2).round().clamp(0, size - side).to(torch.int64)  # (M, 2), x and y
    cover = stamps(scenes.shape[batch, place], centre - corner, radius, side)  # (M, side, side)
    paint = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[scenes.colour[batch, place]] - ground[batch]
    step = torch.arange(side)
    inside = (corner[:, 1, None, None] + step[:, None]) * size + corner[:, 0, None, None] + step  # (M, side, side)
    channel = torch.arange(3).view(1, 3, 1, 1)
    where = (batch.view(-1, 1, 1, 1) * 3 + channel) * size * size + inside[:, None]
    canvas = ground[:, :, None].repeat(1, 1, size * size).view(-1)
    # Objects never touch, so that no pixel of one order of additions differs from that of another.
    canvas.index_add_(0, where.view(-1), (cover[:, None] * paint[:, :, None, None]).view(-1))
    return canvas.view(len(scenes), 3, size, size).round_().to(torch.uint8)


def stamps(shape: Tensor, centre: Tensor, radius: Tensor, side: int) -> Tensor:
    """Return how much of each pixel shapes cover.

    Args:
        shape: ``(M,)`` int64, which of ``SHAPES``.
        centre: ``(M, 2)`` x and y in pixels, from the upper left corner of the stamp.
        radius: ``(M,)`` half extents in pixels.
        side: of the stamps, in pixels.

    Returns:
        ``(M, side, side)`` float32 in [0, 1].
    """
    axis = (torch.arange(side * _POINTS) + 0.5) / _POINTS
    cover = torch.empty(len(shape), side, side)
    for kind, name in enumerate(SHAPES):
        of = torch.nonzero(shape == kind)[:, 0]
        if not len(of):
            continue
        scale = radius[of, None]
        x = ((axis - centre[of, :1]) / scale)[:, None, :]  # (m, 1, points)
        y = ((axis - centre[of, 1:]) / scale)[:, :, None]  # (m, points, 1)
        distance = _distance(name, x, y).mul_(scale[..., None] * -_POINTS)
        points = distance.add_(0.5).clamp_(0, 1)  # (m, points, points)
        rows = points.view(len(of), side, _POINTS, side, _POINTS)
        cover[of] = rows.mean((2, 4))
    return cover


def _distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance from the edge of a shape of half extent 1, negative inside."""
    match name:
        case "circle":
            return (x * x + y * y).sqrt() - _DISC
        case "ring":
            inner, outer = _RING
            return ((x * x + y * y).sqrt() - (inner + outer) / 2).abs() - (outer - inner) / 2
        case "square":
            return torch.maximum(x.abs(), y.abs()) - _SQUARE
        case "cross":
            wide, high = torch.maximum(x.abs() - 1, y.abs() - _ARM), torch.maximum(x.abs() - _ARM, y.abs() - 1)
            return torch.minimum(wide, high)
        case "triangle":
            height = _TOP + _BASE
            length = sqrt(_WIDTH**2 + height**2)
            flank = (x.abs() * height - (y + _TOP) * _WIDTH) / length
            return torch.maximum(flank, y - _BASE)
    raise AssertionError(name)
