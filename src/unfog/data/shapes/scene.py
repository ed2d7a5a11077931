"""What a scene of the set ``shapes`` is: one to four coloured shapes in the cells of a square, and their names.

A scene is a pure function of (seed, part, number), drawn from one Philox stream. The unit of length is the side of a
cell, a third of the picture's side; x grows to the right and y downwards. An object lies wholly inside its cell:
its half extent is at most ``radius * (1 + RADIUS_JITTER)`` and its centre at most ``PLACE_JITTER`` from the cell's,
0.45 together, so that neighbours never touch.

Scenes of three or four objects are groups: their objects are alike in colour, shape and size. Of two objects a quarter
are alike; the others differ in colour or shape, so that "a red circle and a blue circle" names each without doubt.

The first two objects, in the order in which the scene was drawn, are what the attributes describe. All attributes of
one object carry the same number, so that a model is told which colour belongs to which shape.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from unfog.data.dataset import Attribute
from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng, seed_of

COLOURS = {
    "red": (225, 25, 35),
    "orange": (255, 130, 0),
    "yellow": (250, 225, 0),
    "green": (20, 150, 50),
    "cyan": (0, 200, 225),
    "blue": (35, 70, 235),
    "purple": (150, 30, 200),
}
"""Colours of objects, by name: red, green and blue in 0 .. 255."""

BACKGROUNDS = {"black": (16, 16, 16), "grey": (128, 128, 128), "white": (240, 240, 240)}
"""Colours of the ground, likewise."""

SHAPES = ("circle", "square", "triangle", "cross", "ring")

SIZES = {"small": 0.245, "large": 0.38}
"""Half extents of objects, in cells."""

SIDE = 3
"""Cells in a row."""

CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Names of the cells, row by row."""

MOST = 4
"""Objects that a scene can hold."""

SLOTS = 2
"""Objects that attributes describe."""

PLACE_JITTER = 0.05
"""Largest distance of an object's centre from its cell's, in cells and along each axis."""

RADIUS_JITTER = 0.04
"""Largest relative deviation of an object's half extent from that of its size."""

ALIKE = 0.25
"""Share of the scenes of two objects whose objects are alike in colour, shape and size."""

ABSENT = -1
"""In place of a value, of an object that is not there."""


class Relation(IntEnum):
    """Where the first object lies as seen from the second."""

    LEFT = 0
    RIGHT = 1
    ABOVE = 2
    BELOW = 3
    ABOVE_LEFT = 4
    ABOVE_RIGHT = 5
    BELOW_LEFT = 6
    BELOW_RIGHT = 7


RELATIONS = (
    "left of",
    "right of",
    "above",
    "below",
    "above and left of",
    "above and right of",
    "below and left of",
    "below and right of",
)
"""Names of the relations."""

_OF_SIGNS = {
    (-1, 0): Relation.LEFT,
    (1, 0): Relation.RIGHT,
    (0, -1): Relation.ABOVE,
    (0, 1): Relation.BELOW,
    (-1, -1): Relation.ABOVE_LEFT,
    (1, -1): Relation.ABOVE_RIGHT,
    (-1, 1): Relation.BELOW_LEFT,
    (1, 1): Relation.BELOW_RIGHT,
}

_SLOT = (("colour", tuple(COLOURS)), ("shape", SHAPES), ("size", tuple(SIZES)), ("cell", CELLS))

ATTRIBUTES = (
    Attribute("count", tuple(str(n) for n in range(1, MOST + 1))),
    Attribute("background", tuple(BACKGROUNDS)),
    *(Attribute(f"{name} {slot}", values) for slot in range(1, SLOTS + 1) for name, values in _SLOT),
    Attribute("relation", RELATIONS),
)
"""What can be named of a scene; ``Attribute.none`` stands for an object that is absent and for what is not named."""

COUNT, BACKGROUND, RELATION = 0, 1, len(ATTRIBUTES) - 1
"""Columns of attributes."""

SLOT_COLUMNS = tuple(tuple(range(2 + slot * len(_SLOT), 2 + (slot + 1) * len(_SLOT))) for slot in range(SLOTS))
"""Columns of colour, shape, size and cell of each described object."""

_NULLS = torch.tensor([attribute.none for attribute in ATTRIBUTES])
_KINDS = len(COLOURS) * len(SHAPES)
_OF_OBJECT = 5  # numbers drawn for one object: kind, size, x, y, radius
_DRAWN = 3 + MOST * _OF_OBJECT + SIDE * SIDE
_GRAIN = 2.0**-23  # numbers are drawn as (k + 1/2) grains, k whole


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        background: ``(B,)`` int64, which of ``BACKGROUNDS``.
        count: ``(B,)`` int64 in 1 .. ``MOST``.
        colour: ``(B, MOST)`` int64, which of ``COLOURS``; ``ABSENT`` from object ``count`` on, as are the next three.
        shape: likewise of ``SHAPES``.
        size: likewise of ``SIZES``.
        cell: likewise of ``CELLS``; all cells of a scene differ.
        jitter: ``(B, MOST, 3)`` float32 in (-1, 1), multiples of 2**-23: of x, y and radius, in units of the largest.
    """

    background: Tensor
    count: Tensor
    colour: Tensor
    shape: Tensor
    size: Tensor
    cell: Tensor
    jitter: Tensor

    def __len__(self) -> int:
        return len(self.count)

    @property
    def present(self) -> Tensor:
        """Which objects are there, ``(B, MOST)`` bool."""
        return torch.arange(MOST) < self.count[:, None]

    @property
    def centre(self) -> Tensor:
        """Centres ``(B, MOST, 2)`` as x and y, in cells from the upper left corner; of absent objects no meaning."""
        corner = torch.stack([self.cell % SIDE, self.cell // SIDE], -1)
        return corner + 0.5 + PLACE_JITTER * self.jitter[..., :2]

    @property
    def radius(self) -> Tensor:
        """Half extents ``(B, MOST)`` in cells; of absent objects no meaning."""
        return torch.tensor(list(SIZES.values()))[self.size] * (1 + RADIUS_JITTER * self.jitter[..., 2])


def draw_scenes(seed: int, part: int, numbers: Tensor, objects: tuple[int, int]) -> Scenes:
    """Draw the scenes of some numbers of one of two parts.

    Both parts are distributed alike and share no scene: the last bit of the first object's place along x is the number
    of the part.

    Args:
        seed: of the set.
        part: 0 or 1.
        numbers: ``(B,)`` int64 in [0, 2**32): which scenes of the part.
        objects: fewest and most objects, 1 <= fewest <= most <= ``MOST``; each count is as likely as the others.

    Raises:
        ValueError: if the part or the objects are out of range.
    """
    fewest, most = objects
    require(1 <= fewest <= most <= MOST, f"1 <= fewest <= most <= {MOST} objects, got {fewest} to {most}")
    require(part in (0, 1), f"part 0 or 1, got {part}")
    u = Rng.of(seed_of("shapes", seed, part), numbers).uniform((_DRAWN,), Purpose.SCRATCH)
    count = fewest + _whole(u[:, 0], most - fewest + 1)
    alike = (count > SLOTS) | ((count == SLOTS) & (u[:, 1] < ALIKE))
    drawn = u[:, 3 : 3 + MOST * _OF_OBJECT].reshape(-1, MOST, _OF_OBJECT)
    kind = _whole(drawn[..., 0], _KINDS)
    # The second object's kind is one of the others than the first's, each as likely.
    other = (kind[:, :1] + 1 + _whole(drawn[..., 0], _KINDS - 1)) % _KINDS
    kind = torch.where(alike[:, None], kind[:, :1], torch.cat([kind[:, :1], other[:, 1:]], 1))
    size = _whole(drawn[..., 1], len(SIZES))
    size = torch.where(alike[:, None], size[:, :1], size)
    cell = u[:, 3 + MOST * _OF_OBJECT :].argsort(dim=1, stable=True)[:, :MOST]
    absent = torch.arange(MOST) >= count[:, None]
    return Scenes(
        background=_whole(u[:, 2], len(BACKGROUNDS)),
        count=count,
        colour=(kind // len(SHAPES)).masked_fill(absent, ABSENT),
        shape=(kind % len(SHAPES)).masked_fill(absent, ABSENT),
        size=size.masked_fill(absent, ABSENT),
        cell=cell.masked_fill(absent, ABSENT),
        jitter=_marked(drawn[..., 2:], part) * 2 - 1,
    )


def relation_of(first: Tensor, second: Tensor) -> Tensor:
    """Return where first objects lie as seen from second ones.

    Along an axis they are apart if their centres are by more than half a cell; if they are along neither, then along
    the axis on which they are further apart.

    Args:
        first: ``(..., 2)`` centres in cells, x and y.
        second: the same.

    Returns:
        ``(...)`` int64, values of ``Relation``.
    """
    apart = first - second
    far = apart.abs() > 0.5
    most = apart.abs() >= apart.abs().amax(-1, keepdim=True)
    # Of two equal distances the one along x counts.
    most[..., 1] &= ~most[..., 0]
    signs = torch.where(apart < 0, -1, 1) * torch.where(far.any(-1, keepdim=True), far, most)
    table = torch.full((9,), ABSENT)
    for (x, y), relation in _OF_SIGNS.items():
        table[3 * y + x + 4] = relation
    return table[3 * signs[..., 1] + signs[..., 0] + 4]


def attributes_of(scenes: Scenes) -> Tensor:
    """Return all that can be named of scenes: ``(B, A)`` int64 in the order of ``ATTRIBUTES``."""
    found = _NULLS.repeat(len(scenes), 1)
    found[:, COUNT] = scenes.count - 1
    found[:, BACKGROUND] = scenes.background
    for slot, columns in enumerate(SLOT_COLUMNS):
        values = torch.stack([scenes.colour, scenes.shape, scenes.size, scenes.cell], -1)[:, slot]
        found[:, columns] = torch.where(scenes.present[:, slot, None], values, found[:, columns])
    two = scenes.count >= SLOTS
    centre = scenes.centre
    found[:, RELATION] = torch.where(two, relation_of(centre[:, 0], centre[:, 1]), found[:, RELATION])
    return found


def _whole(u: Tensor, count: int) -> Tensor:
    """Return whole numbers in 0 .. count - 1 from numbers in (0, 1)."""
    # In float32 the product can round up to the count itself.
    return (u * count).to(torch.int64).clamp_(max=count - 1)


def _marked(u: Tensor, part: int) -> Tensor:
    """Return draws ``(B, MOST, 3)`` whose first number of the first object has the part as its last bit."""
    marked = u.clone()
    grains = (u[:, 0, 0].double() / _GRAIN).floor().to(torch.int64)
    marked[:, 0, 0] = ((grains - grains % 2 + part).double() + 0.5).mul(_GRAIN).to(u.dtype)
    return marked
