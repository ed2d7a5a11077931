"""What a network costs, before it is built."""

from typing import NamedTuple

from unfog.diffusion.nn import cost
from unfog.recipe.estimate import shapes_of, stand_ins
from unfog.recipe.schema import Recipe


class Cost(NamedTuple):
    """Parameters, and multiply-adds x 2 of one forward pass for one image."""

    parameters: int
    flops: int


def cost_of(recipe: Recipe, height: int, width: int) -> Cost:
    """Return what a recipe's network costs on images of a size."""
    network = shapes_of(recipe)
    x, level, cond = stand_ins(recipe, height, width)
    return Cost(cost.parameters(network), cost.flops(network, x, level, cond=cond))


def layers_of(recipe: Recipe, height: int, width: int, depth: int) -> list[cost.Layer]:
    """Return the layers of a recipe's network on images of a size."""
    network = shapes_of(recipe)
    x, level, cond = stand_ins(recipe, height, width)
    return cost.layers(network, x, level, cond=cond, depth=depth)


def count(value: float) -> str:
    """Return a large number for people: 35.7 M, 0.158 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (0.1 if unit == "G" else 1.0) * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "
