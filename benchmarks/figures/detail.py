"""How finely the figures are drawn, and what several of them are about."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.analytic import Analytic, mixture
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Schedule

Lines = list[str]
"""Of Markdown, to stand between the markers of a page."""


@dataclass(frozen=True)
class Detail:
    """How much is computed; tests draw everything with little.

    Attributes:
        points: of a curve.
        paths: trajectories of a picture.
        steps: of solutions that count as exact.
        counts: of evaluations, where error is drawn against cost.
    """

    points: int = 600
    paths: int = 48
    steps: int = 1000
    counts: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def line_mixture(schedule: Schedule) -> Analytic:
    """Return the denoiser of three unequal bumps on a line."""
    means = torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64)
    variances = torch.tensor([[0.02], [0.04], [0.01]], dtype=torch.float64)
    return mixture(Gaussian(schedule), means, variances, torch.tensor([0.35, 0.4, 0.25], dtype=torch.float64))


def plane_mixture(schedule: Schedule) -> Analytic:
    """Return the denoiser of five bumps in the plane, on an arc."""
    angles = torch.linspace(-0.2, 3.6, 5, dtype=torch.float64)
    means = 1.4 * torch.stack([angles.cos(), angles.sin()], dim=1) - torch.tensor([0.0, 0.4], dtype=torch.float64)
    return mixture(Gaussian(schedule), means, 0.02)


def span(low: float, high: float, points: int) -> Tensor:
    """Return evenly spaced float64 numbers."""
    return torch.linspace(low, high, points, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    """Return a float64 number as a tensor."""
    return torch.tensor(value, dtype=torch.float64)
