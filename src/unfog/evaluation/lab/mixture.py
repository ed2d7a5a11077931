"""Mixtures of Gaussians in the plane: data whose denoiser, density and marginals are known exactly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.checks import require
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Component:
    """A Gaussian along the axes.

    Attributes:
        mean: both coordinates.
        std: standard deviations along both axes, above 0.
        weight: share of the data, up to a common factor.
    """

    mean: tuple[float, float]
    std: tuple[float, float] = (0.2, 0.2)
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(all(math.isfinite(value) for value in self.mean), f"a finite mean, not {self.mean}")
        require(all(0 < value < math.inf for value in self.std), f"std above 0 along both axes, not {self.std}")
        require(0 < self.weight < math.inf, f"a positive weight, not {self.weight}")


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians in the plane.

    Attributes:
        components: at least one; as a class, each has its place here for its label.
    """

    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        require(len(self.components) >= 1, "at least one component")

    def denoiser(self, schedule: Schedule) -> analytic.Analytic:
        """Return the exact denoiser on a schedule, in float64."""
        return analytic.mixture(Gaussian(schedule), self.means, self.stds**2, self.weights)

    @property
    def means(self) -> Tensor:
        """The means, ``(K, 2)`` float64."""
        return torch.tensor([part.mean for part in self.components], dtype=torch.float64)

    @property
    def stds(self) -> Tensor:
        """The standard deviations, ``(K, 2)`` float64."""
        return torch.tensor([part.std for part in self.components], dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """The shares, ``(K,)`` float64, their sum 1."""
        weights = torch.tensor([part.weight for part in self.components], dtype=torch.float64)
        return weights / weights.sum()

    def draw(self, rng: Rng) -> Tensor:
        """Draw exact data, ``(len(rng), 2)`` float64."""
        normal = rng.normal((2,), Purpose.SCRATCH).double()
        uniform = rng.uniform((1,), Purpose.CONDITION)[:, 0].double()
        edges = self.weights.cumsum(0)
        which = torch.searchsorted(edges, uniform).clamp_max(len(edges) - 1)
        return self.means[which] + self.stds[which] * normal

    def distribution(self, direction: Tensor, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Return the cumulative distribution of ``alpha x0 + sigma eps`` along a direction.

        Args:
            direction: ``(2,)`` of unit length.
            x: any shape.
            alpha: scale of the data.
            sigma: standard deviation of the noise.
        """
        centre, spread = self._along(direction, alpha, sigma)
        return torch.einsum("k,...k->...", self.weights, torch.special.ndtr((x[..., None] - centre) / spread))

    def density(self, direction: Tensor, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Return the density of what ``distribution`` distributes."""
        centre, spread = self._along(direction, alpha, sigma)
        heights = torch.exp(-0.5 * ((x[..., None] - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        return torch.einsum("k,...k->...", self.weights, heights)

    def _along(self, direction: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * (self.stds**2 @ direction**2) + sigma**2
        return alpha * (self.means @ direction), variance.sqrt()


def _ring(count: int, radius: float, std: float) -> Mixture:
    angles = [2 * math.pi * k / count for k in range(count)]
    return Mixture(tuple(Component((radius * math.cos(a), radius * math.sin(a)), (std, std)) for a in angles))


PRESETS: Mapping[str, Mixture] = {
    "two-modes": Mixture((Component((-0.8, -0.3), (0.3, 0.2), 0.6), Component((0.8, 0.4), (0.2, 0.35), 0.4))),
    "three-modes": Mixture(
        (
            Component((-1.0, 0.2), (0.35, 0.25), 0.5),
            Component((0.4, 0.9), (0.25, 0.35), 0.3),
            Component((0.7, -0.8), (0.3, 0.3), 0.2),
        )
    ),
    "ring": _ring(8, 1.0, 0.12),
    "scales": Mixture((Component((0.0, 0.0), (0.8, 0.8), 0.5), Component((0.5, 0.3), (0.06, 0.06), 0.5))),
}
"""Mixtures with names: two and three broad modes, eight narrow ones on a circle, and a narrow one within a broad."""
