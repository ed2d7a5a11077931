"""Time grids: at which times a sampler evaluates, from pure noise at t = 1 to clean data at t = 0.

A grid of N steps has N + 1 times, the last being 0. The previous time is always read from the grid, never recomputed.

Sources:
    Lin et al. 2024 (arXiv 2305.08891), table 2: leading, linspace and trailing. Song, Meng, Ermon 2021 (2010.02502),
    appendix D.2: linear and quadratic. Lu et al. 2022 (2206.00927): uniform log-SNR. Karras et al. 2022
    (2206.00364), eq. 5.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule, Tabulated


class TimeGrid(ABC):
    """The interface: the times of N evaluations; the last jump, to t = 0, follows."""

    @abstractmethod
    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        """Return ``(steps,)`` float64 times that fall strictly and stay above 0."""

    @final
    def times(self, schedule: Schedule, steps: int) -> Tensor:
        """Return ``(steps + 1,)`` float64 times, the last being 0.

        Raises:
            ValueError: if fewer than one step is asked for, or more than the grid can hold.
        """
        require(steps >= 1, f"at least 1 step, not {steps}")
        return torch.cat([self.nodes(schedule, steps), torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Trailing(TimeGrid):
    """Uniform in t from 1: ``1 - i / N``."""

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@dataclass(frozen=True)
class Leading(TimeGrid):
    """Every ``levels // N``-th level counted from the first: DDPM's and DDIM's habit; it starts below t = 1.

    A table must have as many levels; one that ends at its first level needs an offset, for level 0 is t = 0 there.

    Attributes:
        levels: trained levels of the discrete model.
        offset: added to the index of the level (Stable Diffusion uses 1).
    """

    levels: int = 1000
    offset: int = 0

    def __post_init__(self) -> None:
        require(self.levels >= 1 and self.offset >= 0, f"levels >= 1, offset >= 0, not {self.levels}, {self.offset}")

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        require(steps <= self.levels, f"at most {self.levels} steps on {self.levels} levels, not {steps}")
        index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (self.levels // steps) + self.offset
        room = self.levels - (steps - 1) * (self.levels // steps)
        require(self.offset < room, f"an offset below {room} for {steps} steps, not {self.offset}")
        times = _time_of_level(index, self.levels, schedule)
        require(times[-1].item() > 0, "an offset of at least 1 on a schedule that ends at its first level")
        return times


@dataclass(frozen=True)
class Linspace(TimeGrid):
    """Uniform from the last to the first level, both included; between levels where ``levels - 1`` is no multiple.

    A table must have as many levels, and its clean end below the first: one that ends at its first level would be
    evaluated at t = 0.

    Attributes:
        levels: trained levels of the discrete model.
    """

    levels: int = 1000

    def __post_init__(self) -> None:
        require(self.levels >= 2, f"levels >= 2, not {self.levels}")

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        index = torch.linspace(self.levels - 1, 0, steps, dtype=torch.float64)
        times = _time_of_level(index, self.levels, schedule)
        require(times[-1].item() > 0, "a schedule that goes on below its first level, or another grid: trailing")
        return times


@dataclass(frozen=True)
class Quadratic(TimeGrid):
    """``start (j / N)^2`` for j = N ... 1: finer towards the data. DDIM's published code starts at 0.8."""

    start: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.start <= 1, f"start in (0, 1], not {self.start}")

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        return self.start * (torch.arange(steps, 0, -1, dtype=torch.float64) / steps) ** 2


@dataclass(frozen=True)
class LogSNRUniform(TimeGrid):
    """Uniform in log-SNR between two values of sigma / alpha, as far as the schedule (a table: its levels) goes.

    The first time is 1 whatever ``sigma_max``: that is where the prior is.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        low, high, points = _range(self.sigma_min, self.sigma_max, schedule, steps)
        return _at(torch.linspace(math.log(high), math.log(low), points, dtype=torch.float64).exp()[:steps], schedule)


@dataclass(frozen=True)
class Karras(TimeGrid):
    """Uniform in ``(sigma / alpha)^(1 / rho)`` between two values, as far as the schedule (a table: its levels) goes.

    The first time is 1 whatever ``sigma_max``: that is where the prior is.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(self.rho > 0, f"rho above 0, not {self.rho}")
        _check_range(self.sigma_min, self.sigma_max)

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        low, high, points = _range(self.sigma_min, self.sigma_max, schedule, steps)
        roots = torch.linspace(high ** (1 / self.rho), low ** (1 / self.rho), points, dtype=torch.float64)
        return _at(roots[:steps] ** self.rho, schedule)


def _time_of_level(index: Tensor, levels: int, schedule: Schedule) -> Tensor:
    """Return the times of levels counted from 0; a schedule that is no table is cut into as many."""
    if not isinstance(schedule, Tabulated):
        return (index + 1) / levels
    require(schedule.levels == levels, f"levels={schedule.levels} as the schedule has, not {levels}")
    return schedule.time_of(index)


def _check_range(sigma_min: float, sigma_max: float) -> None:
    require(0 < sigma_min < sigma_max < math.inf, f"0 < sigma_min < sigma_max, not {sigma_min}, {sigma_max}")


def _range(sigma_min: float, sigma_max: float, schedule: Schedule, steps: int) -> tuple[float, float, int]:
    """Return both ends of sigma / alpha and the number of points between them, the ends included."""
    # Below its first level a table has not been trained.
    t_first = schedule.time_of(torch.zeros((), dtype=torch.float64)).item() if isinstance(schedule, Tabulated) else 0.0
    ends = torch.tensor([t_first, 1.0], dtype=torch.float64)
    first, last = torch.exp(-0.5 * schedule.log_snr(ends)).tolist()
    low, high = max(sigma_min, first), min(sigma_max, last)
    require(low < high, f"a range of sigma / alpha that meets the schedule's, {first:.3g} to {last:.3g}")
    # Where the schedule itself ends at `low`, that point is t = 0: the last time, which is no evaluation.
    return low, high, steps + 1 if low == first and t_first == 0 else steps


def _at(sigma: Tensor, schedule: Schedule) -> Tensor:
    times = schedule.time(-2.0 * sigma.log())
    times[0] = 1.0
    return times
