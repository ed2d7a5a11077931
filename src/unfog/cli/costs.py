"""What a network costs, before it is built."""

from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.nn import cost
from unfog.recipe.build import build_network
from unfog.recipe.schema import Recipe


class Cost(NamedTuple):
    """Parameters, and multiply-adds x 2 of one forward pass for one image."""

    parameters: int
    flops: int


def cost_of(recipe: Recipe, height: int, width: int) -> Cost:
    """Return what a recipe's network costs on images of a size."""
    with torch.device("meta"):
        network = build_network(recipe.network)
    x, level, cond = inputs(recipe, height, width)
    return Cost(cost.parameters(network), cost.flops(network, x, level, cond=cond))


def layers_of(recipe: Recipe, height: int, width: int, depth: int) -> list[cost.Layer]:
    """Return the layers of a recipe's network on images of a size."""
    with torch.device("meta"):
        network = build_network(recipe.network)
    x, level, cond = inputs(recipe, height, width)
    return cost.layers(network, x, level, cond=cond, depth=depth)


def inputs(recipe: Recipe, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return stand-ins for what the network takes: one image, its noise level, its condition."""
    network = recipe.network
    cond = {} if network.num_classes is None else {"label": torch.zeros(1, dtype=torch.int64)}
    if network.vector_dim is not None:
        cond["vector"] = torch.zeros(1, network.vector_dim)
    return torch.zeros(1, network.in_channels, height, width), torch.zeros(1), cond


def count(value: float) -> str:
    """Return a large number for people: 35.7 M, 0.158 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (0.1 if unit == "G" else 1.0) * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "
