"""Densities from which training times are drawn.

A density is given by its quantile function, which turns a uniform number into a time; ``draw`` says where the uniform
numbers come from: independent ones, or a low-discrepancy sequence over the running number of the example, which covers
[0, 1] evenly in every batch whatever the batch size, the order or the number of processes.

``Curriculum`` passes from one density to another in the course of training. ``Importance`` asks for more draws where
losses were large; the history that it needs is state of the task (``tasks.history``), so here it is the density whose
expectation stays the objective.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239): uniform levels. Karras et al. 2022 (2206.00364), table 1: lognormal.
    Esser et al. 2024 (2403.03206), eq. 19: logit-normal. Kingma et al. 2021 (2107.00630), appendix I.1: low-discrepancy
    times, here by the additive recurrence of the golden ratio (Weyl). Nichol, Dhariwal 2021 (2102.09672), section 3.3:
    importance sampling by a history of losses.
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

    def place(self, u: Tensor, rng: Rng, schedule: Schedule) -> Tensor:
        """Turn the examples' uniform numbers into times (hook: their quantiles, whatever the example)."""
        return self.quantile(u, schedule)

    def at_end(self) -> "Times":
        """Return the density of the end of training, which does not change any more (hook: this one)."""
        return self

    @final
    def at(self, u: Tensor, rng: Rng, schedule: Schedule) -> Tensor:
        """Return the times of uniform numbers: ``(B,)`` float64 in [0, 1], where ``sigma_t`` is above 0.

        Args:
            u: ``(B,)`` float64 in (0, 1).
            rng: the keys of the examples.
            schedule: the noise schedule.
        """
        t = self.place(u, rng, schedule)
        return torch.where(schedule.sigma(t) == 0, _SMALLEST, t)

    @final
    def draw(self, rng: Rng, schedule: Schedule) -> Tensor:
        """Draw a time for each example: ``(B,)`` float64 in [0, 1], where ``sigma_t`` is above 0."""
        return self.at(self.uniforms(rng), rng, schedule)


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

    def __post_init__(self) -> None:
        require(
            not isinstance(self.density, Importance),
            "a density without importance sampling: give Importance one that is stratified",
        )

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.density.quantile(u, schedule)

    def place(self, u: Tensor, rng: Rng, schedule: Schedule) -> Tensor:
        return self.density.place(u, rng, schedule)

    def at_end(self) -> Times:
        return Stratified(self.density.at_end())

    def uniforms(self, rng: Rng) -> Tensor:
        zeros = torch.zeros_like(rng.sample)
        offset = Rng(rng.seed, zeros, torch.zeros_like(rng.step), zeros).uniform((), Purpose.TIME).double()
        # n mod 2^26 keeps 26 bits of the fraction in float64; a wrap starts another stretch of the sequence.
        shifted = offset + (rng.position % (1 << 26)).double() * _GOLDEN
        return (shifted - shifted.floor()).clamp(_SMALLEST, 1.0 - _SMALLEST)


@dataclass(frozen=True)
class Curriculum(Times):
    """One density at the start of training, another after some examples, and in between a mixture of both.

    After n examples the second has the share ``min(n / examples, 1)``: the objective passes from the one's expectation
    to the other's in a straight line. The share belongs to the running number of the example, so neither the batch size
    nor a resumed run changes it. The uniform numbers are those of the second, which is what measurements are made over.

    Attributes:
        start: the density at the start.
        end: the density at the end.
        examples: after how many examples, counted with repetition, only the second is left; at least 1.
    """

    start: Times
    end: Times
    examples: int

    def __post_init__(self) -> None:
        require(self.examples >= 1, f"examples of at least 1, not {self.examples}")
        for density in (self.start, self.end):
            require(not isinstance(density, Curriculum | Importance), f"plain densities, not {type(density).__name__}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.end.quantile(u, schedule)

    def uniforms(self, rng: Rng) -> Tensor:
        return self.end.uniforms(rng)

    def place(self, u: Tensor, rng: Rng, schedule: Schedule) -> Tensor:
        # The lower part of (0, 1) belongs to the first density and the upper to the second, each stretched to (0, 1).
        kept = 1.0 - (rng.position.double() / self.examples).clamp(0.0, 1.0)
        first = u < kept
        within = torch.where(first, u / kept, (u - kept) / (1.0 - kept)).clamp(_SMALLEST, 1.0 - _SMALLEST)
        start, end = (density.place(within, rng, schedule) for density in (self.start, self.end))
        return torch.where(first, start, end)

    def at_end(self) -> Times:
        return self.end.at_end()


@dataclass(frozen=True)
class Importance(Times):
    """A density that is drawn from more often where losses were large, each draw weighing as much less.

    The share of a level is proportional to the root of the mean square of its last losses, and the loss of a draw is
    divided by what its level is drawn more often: the objective stays the expectation over the density, and its
    estimate varies less. Until every level has its losses, nothing is changed.

    Attributes:
        density: what is drawn from, and what measurements are made over.
        levels: parts of equal share into which the density is cut, at least 2.
        history: losses kept of each level, at least 1.
        uniform: share of the draws that follow the density whatever the losses, in (0, 1].
    """

    density: Times
    levels: int = 100
    history: int = 10
    uniform: float = 0.001

    def __post_init__(self) -> None:
        require(not isinstance(self.density, Importance), "a density without importance sampling of its own")
        require(self.levels >= 2, f"levels of at least 2, not {self.levels}")
        require(self.history >= 1, f"history of at least 1, not {self.history}")
        require(0 < self.uniform <= 1, f"uniform in (0, 1], not {self.uniform}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.density.quantile(u, schedule)

    def uniforms(self, rng: Rng) -> Tensor:
        return self.density.uniforms(rng)

    def place(self, u: Tensor, rng: Rng, schedule: Schedule) -> Tensor:
        return self.density.place(u, rng, schedule)

    def at_end(self) -> Times:
        return self.density.at_end()
