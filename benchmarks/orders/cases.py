"""What everybody solves: two mixtures of Gaussians on three schedules, each with the times that are usual there.

All solve the same problem: the probability-flow ODE of the exact denoiser over a fixed interval of log-SNR, from states
with the exact marginal. On every schedule it is the same curve in ``y = x / alpha`` over ``sigma / alpha``; schedules
differ in the times that are natural to them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from unfog.diffusion.parameterization import X0
from unfog.diffusion.schedule import RectifiedFlow, Schedule, VarianceExploding, VariancePreserving
from unfog.evaluation.lab.field import Field, times_between
from unfog.evaluation.lab.measure import INTERVAL, Laboratory, Setup
from unfog.evaluation.lab.mixture import PRESETS
from unfog.sampling.grid import Karras, TimeGrid, Trailing

SAMPLES = 200
Spacing = Callable[[Schedule, int], Tensor]


def _ends(schedule: Schedule) -> tuple[float, float]:
    low, high = schedule.time(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    return low, high


def uniform_in_time(schedule: Schedule, steps: int) -> Tensor:
    """Return ``(steps + 1,)`` times at equal distances."""
    return torch.linspace(*_ends(schedule), steps + 1, dtype=torch.float64)


def as_karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Tensor:
    """Return ``(steps + 1,)`` times uniform in ``(sigma / alpha)^(1 / rho)``."""
    first, last = (torch.exp(torch.tensor(-0.5 * end, dtype=torch.float64)).item() for end in INTERVAL)
    roots = torch.linspace(first ** (1 / rho), last ** (1 / rho), steps + 1, dtype=torch.float64)
    return schedule.time(-2.0 * rho * roots.log())


SCHEDULES: dict[str, tuple[Schedule, Spacing, TimeGrid]] = {
    "variance preserving, uniform in t": (VariancePreserving(), uniform_in_time, Trailing()),
    "rectified flow, uniform in t": (RectifiedFlow(), uniform_in_time, Trailing()),
    "variance exploding, Karras' times": (VarianceExploding(), as_karras, Karras()),
}
"""With the times over the interval, and the usual grid down to t = 0."""
MIXTURES = ("two-modes", "three-modes")


@dataclass(frozen=True)
class Case:
    """One mixture on one schedule.

    Attributes:
        mixture: its name.
        where: the schedule and its times, for people.
        schedule: the schedule.
        times: ``(steps + 1,)`` times over the interval, for a number of steps.
        usual: the same down to t = 0.
    """

    mixture: str
    where: str
    schedule: Schedule
    times: Callable[[int], Tensor]
    usual: TimeGrid

    @cached_property
    def laboratory(self) -> Laboratory:
        """Where the case is solved exactly."""
        return Laboratory(Setup(Field(PRESETS[self.mixture]), self.schedule, self.usual, X0(), samples=SAMPLES))

    def even(self, steps: int) -> Tensor:
        """Return ``(steps + 1,)`` times over the interval at equal distances in log-SNR, from which orders are told."""
        return times_between(self.schedule, *INTERVAL, steps)

    def levels(self, times: Tensor) -> Tensor:
        """Return sigma / alpha at some times."""
        return torch.exp(-0.5 * self.schedule.log_snr(times))

    @cached_property
    def start(self) -> Tensor:
        """The states at the beginning, divided by alpha, ``(B, 2)``."""
        return self.laboratory.start() / self.schedule.alpha(self.times(1)[0])

    def error(self, y: Tensor) -> float:
        """Return the mean distance to the exact solution of states at the end, divided by alpha."""
        end = y * self.schedule.alpha(self.times(1)[-1])
        return float((end - self.laboratory.end).norm(dim=1).mean())

    @cached_property
    def denoise(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The estimate of x0 for states divided by alpha at a level sigma / alpha."""
        largest = 1000.0
        exact = PRESETS[self.mixture].denoiser(VarianceExploding(largest))

        def x0(y: Tensor, level: Tensor) -> Tensor:
            estimate: Tensor = exact(y, level.double() / largest).x0
            return estimate

        return x0


def cases() -> Iterator[Case]:
    """Yield every case."""
    for mixture in MIXTURES:
        for where, (schedule, spacing, usual) in SCHEDULES.items():
            yield Case(mixture, where, schedule, partial(spacing, schedule), usual)
