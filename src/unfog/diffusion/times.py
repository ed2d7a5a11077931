"""Densities from which training times are drawn.

A density is given by its quantile function, which turns a uniform number into a time; ``draw`` says where the uniform
numbers come from: independent ones, or a low-discrepancy sequence over the running number of the example, which covers
[0, 1] evenly in every batch whatever the batch size, the order or the number of processes.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239): uniform levels. Karras et al. 2022 (2206.00364), table 1: lognormal.
    Esser et al. 2024 (2403.03206), eq. 19: logit-normal. Kingma et al. 2021 (2107.00630), appendix I.1: low-discrepancy
    times, here by the additive recurrence of the golden ratio (Weyl).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Schedule, Tabulated

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SMALLEST = 2.0**-24


class Times(ABC):
    """The interface: a quantile function."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the time below which lies the share u of the draws.

        Args:
            u: ``(B,)`` float64 in the open interval (0, 1).
            schedule: the noise schedule.
        """

    def uniforms(self, rng: Rng) -> Tensor:
        """Return a uniform number for each example, ``(B,)`` float64 (hook)."""
        return rng.uniform((), Purpose.TIME).double()

    @final
    def draw(self, rng: Rng, schedule: Schedule) -> Tensor:
        """Draw a time for each example: ``(B,)`` float64 in [0, 1], where ``sigma_t`` is above 0."""
        t = self.quantile(self.uniforms(rng), schedule)
        return torch.where(schedule.sigma(t) == 0, _SMALLEST, t)


@dataclass(frozen=True)
class Uniform(Times):
    """Uniform in t."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return u


@dataclass(frozen=True)
class Levels(Times):
    """Uniform over the whole levels of a ``Tabulated`` schedule, as DDPM trains."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        if not isinstance(schedule, Tabulated):
            raise ValueError(f"Levels needs a Tabulated schedule, not {type(schedule).__name__}: use Uniform")
        return schedule.time_of((u * schedule.levels).floor().clamp_max(schedule.levels - 1))


@dataclass(frozen=True)
class LogNormal(Times):
    """Normal in ``log(sigma_t / alpha_t)``, as EDM trains; what lies beyond the schedule is drawn at its ends."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, f"std above 0, not {self.std}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.time(-2.0 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogUniform(Times):
    """Uniform in ``log(sigma_t / alpha_t)`` between two values, as the VE SDE trains."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max, f"0 < sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}"
        )

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return schedule.time(-2.0 * (low + (high - low) * u))


@dataclass(frozen=True)
class LogitNormal(Times):
    """Normal in ``log(t / (1 - t))``."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require(self.std > 0, f"std above 0, not {self.std}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Stratified(Times):
    """Another density with low-discrepancy numbers: ``frac(offset + n / golden ratio)`` for running number n.

    The offset depends on the seed alone, and is uniform over seeds: each draw keeps the density.
    """

    density: Times

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.density.quantile(u, schedule)

    def uniforms(self, rng: Rng) -> Tensor:
        zeros = torch.zeros_like(rng.sample)
        offset = Rng(rng.seed, zeros, torch.zeros_like(rng.step), zeros).uniform((), Purpose.TIME).double()
        # n mod 2^26 keeps 26 bits of the fraction in float64; a wrap starts another stretch of the sequence.
        shifted = offset + (rng.position % (1 << 26)).double() * _GOLDEN
        return (shifted - shifted.floor()).clamp(_SMALLEST, 1.0 - _SMALLEST)
