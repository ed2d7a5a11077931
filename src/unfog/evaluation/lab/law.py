"""How far the law of some samples is from the right one: the sliced Wasserstein distance.

In the plane a law is known by its projections, and along a line the Wasserstein-1 distance is the mean distance
between quantiles. Those of a mixture are exact, so only the samples are uncertain.

Source:
    Bonneel, Rabin, Peyre, Pfister 2015, "Sliced and Radon Wasserstein barycenters of measures", J. Math. Imaging Vis.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.random import seed_of
from unfog.evaluation.lab.mixture import Mixture
from unfog.metrics.interval import Score, bootstrap

_DIRECTIONS = 16


def directions() -> Tensor:
    """Return unit vectors that halve the plane evenly, ``(16, 2)`` float64."""
    angles = torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def quantiles_of(x: Tensor) -> Tensor:
    """Return the quantiles of samples ``(N, 2)`` along each direction, ``(N, directions)``, rising."""
    return (x @ directions().T).sort(0).values


def exact_quantiles(mixture: Mixture, count: int, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """Return as many quantiles of ``alpha x0 + sigma eps`` along each direction, ``(count, directions)``.

    They are those of the probabilities ``(k + 1/2) / count``, found by bisection.
    """
    probabilities = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    reach = alpha * float(mixture.means.abs().sum() + 10 * mixture.stds.max()) + 10 * sigma
    columns = []
    for direction in directions():
        low, high = torch.full_like(probabilities, -reach), torch.full_like(probabilities, reach)
        for _ in range(60):  # 2^-60 of the range: all the digits there are
            middle = 0.5 * (low + high)
            above = mixture.distribution(direction, middle, alpha, sigma) > probabilities
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        columns.append(0.5 * (low + high))
    return torch.stack(columns, dim=1)


def sliced_distance(x: Tensor, quantiles: Tensor, *, seed: int) -> Score:
    """Return the sliced Wasserstein-1 distance between samples and a law, with its bootstrap interval.

    Args:
        x: ``(N, 2)``.
        quantiles: ``(N, directions)`` of the law, rising.
        seed: of the resampling.
    """
    projected = x @ directions().T

    def distance(which: Sequence[Tensor]) -> float:
        return (projected[which[0]].sort(0).values - quantiles).abs().mean().item()

    note = f"sliced Wasserstein-1 distance along {_DIRECTIONS} directions"
    return bootstrap(distance, [len(x)], seed=seed_of("sliced", seed), resamples=60, recentre=True, note=note)
