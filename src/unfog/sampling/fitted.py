"""Samplers fitted to one model: a table of numbers for one schedule and one number of evaluations.

A deterministic table that keeps the marginals is, however it was derived, a set of points. Point k lies at a time t_k;
it combines the pure noise that the trajectory began with and the estimates of x0 so far,

    x_k = (sigma_k / sigma_0) x_0 + (alpha_k - alpha_0 sigma_k / sigma_0) sum_j w_kj x0_j,     sum_j w_kj = 1,

and the next estimate is asked for there. For N evaluations these are N - 1 times and N (N - 1) / 2 free weights. The
denoiser may be told another time than that of the point: the state of a trajectory of few steps is noisier or cleaner
than its time says, and at the very start, where pure noise says nothing, an earlier time makes the answer useful. With
those times there are ``(N^2 + 3 N - 2) / 2`` numbers, few enough to be found for each model (``evaluation.fit``).

Sources:
    Shaul et al. 2024 (arXiv 2403.01329): solvers whose every point combines the start and all evaluations before, with
    coefficients learned for one model and one budget. Tong et al. 2024 (2405.15506): learned times, and others for the
    network than for the step. Frankel et al. 2025 (2502.17423): learned coefficients of multistep solvers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule
from unfog.sampling.grid import TimeGrid
from unfog.sampling.sampler import TableSampler
from unfog.sampling.table import Grid, Row, transition

_ROUNDING = 1e-9
"""By how much weights may miss a sum of one, and a move the marginals: no more than numbers written in decimals do."""


@dataclass(frozen=True)
class Given(TimeGrid):
    """Times as they are given, for one number of steps; the end, t = 0, follows them.

    Attributes:
        given: falling strictly within (0, 1].
    """

    given: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(t > s for t, s in pairwise(self.given))
        require(
            len(self.given) > 0 and falling and self.given[0] <= 1 and self.given[-1] > 0,
            f"given times that fall strictly within (0, 1], not {list(self.given)}",
        )

    def nodes(self, schedule: Schedule, steps: int) -> Tensor:
        require(steps == len(self.given), f"steps={len(self.given)}, as many as there are given times, not {steps}")
        return torch.tensor(self.given, dtype=torch.float64)


@dataclass(frozen=True)
class Stage:
    """One evaluation, and what is made of the estimates there are then.

    Attributes:
        t: the time of the point.
        told: the time that the denoiser is told, in [0, 1].
        weights: of the estimates in the next point, the newest first; their sum is one.
    """

    t: float
    told: float
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require(0 <= self.told <= 1, f"told in [0, 1], not {self.told}")
        total = math.fsum(self.weights)
        require(abs(total - 1) <= _ROUNDING, f"weights whose sum is 1, not {total}")


@dataclass(frozen=True)
class Fitted(TableSampler):
    """A table of stored numbers, for the model and the number of evaluations that it was fitted to.

    It goes on its own grid only, ``grid``. It claims no order: there is no other number of steps to converge over.

    Attributes:
        schedule: of the model's noise.
        stages: one an evaluation, their times falling strictly; the k-th has k + 1 weights.
    """

    schedule: Schedule
    stages: tuple[Stage, ...]
    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.grid.times(self.schedule, len(self.stages))
        for k, stage in enumerate(self.stages):
            require(len(stage.weights) == k + 1, f"{k + 1} weights in stages[{k}], not {len(stage.weights)}")

    @property
    def grid(self) -> Given:
        """The grid that it goes on."""
        return Given(tuple(stage.t for stage in self.stages))

    def rows(self, grid: Grid) -> Iterator[Row]:
        own = (*(stage.t for stage in self.stages), 0.0)
        require(
            grid.schedule == self.schedule and tuple(node.t for node in grid) == own,
            f"the grid and the schedule that this sampler was fitted on, {len(self.stages)} steps from t = {own[0]:g} "
            f"on {type(self.schedule).__name__}, not {grid.steps} steps from t = {grid[0].t:g} on "
            f"{type(grid.schedule).__name__}; take its own grid, or another sampler",
        )
        for stage, s in zip(self.stages, grid[1:], strict=True):
            last = s is grid[-1]
            yield Row(stage.told, (transition(grid[0], s, weights=stage.weights, commits=last),), s.t)

    @staticmethod
    def like(sampler: TableSampler, schedule: Schedule, times: Tensor) -> "Fitted":
        """Return another table in this form: the same trajectories, up to rounding.

        Args:
            sampler: deterministic.
            schedule: the noise schedule.
            times: ``(N + 1,)`` the grid that the table is for; its last time is 0.

        Raises:
            ValueError: if the table injects noise, does not keep the marginals, evaluates at one time twice, or ends
                elsewhere.
        """
        grid = Grid.of(schedule, times)
        rows, here, stages = list(sampler.rows(grid)), grid[0], list[Stage]()
        require(rows[-1].s == 0, f"times that end at 0, not at {rows[-1].s:g}")
        require(
            all(move.noise == 0 for row in rows for move in row.all_moves), f"a sampler without noise, not {sampler}"
        )
        require(all(row.before is None for row in rows), f"a sampler that only lowers the noise, not {sampler}")
        for row, (noise, *estimates) in zip(rows, _points(rows), strict=True):
            there = grid.at(row.s)
            kept = there.sigma / grid[0].sigma
            off = abs(noise - kept) + abs(math.fsum(estimates) - there.alpha + grid[0].alpha * kept)
            require(off <= _ROUNDING, f"a sampler that keeps the marginals, not {sampler}")
            total = math.fsum(estimates)
            stages.append(Stage(here.t, row.t, tuple(weight / total for weight in reversed(estimates))))
            here = there
        return Fitted(schedule, tuple(stages))


def _points(rows: Sequence[Row]) -> Iterator[list[float]]:
    """Yield what the moves of each row lead to: the weights of the noise and of the estimates so far, oldest first."""
    state = point = [1.0]
    for row in rows:
        state, point = [*state, 0.0], [*point, 0.0]
        for move in row.moves:
            point = [move.x * weight for weight in state]
            for age, weight in enumerate(move.x0):
                point[-1 - age] += weight
            state = point if move.commits else state
        yield point
