"""Restart sampling: a deterministic method that goes back to more noise, several times, and comes down again.

What a deterministic method got wrong above an interval of noise levels stays; fresh noise over the interval forgets a
part of it, and the way down is again without noise. The whole is a table: going back is the forward step
``x_t = (alpha_t / alpha_s) x_s + sigma_{t|s} z`` before an evaluation.

Source:
    Xu et al. 2023 (arXiv 2306.14878), algorithm 1; its code has the interval, the repeats and the steps that are the
    defaults here (CIFAR-10), and Karras' grid in each interval.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Schedule
from unfog.sampling.gaussian import Heun
from unfog.sampling.sampler import Sampler, Step, TableSampler, follow
from unfog.sampling.table import Grid, Move, Node, Row, forward

_RHO = 7.0


@dataclass(frozen=True)
class Interval:
    """Where to restart, how often, and how finely the interval is gone through again.

    Attributes:
        low: the ``sigma / alpha`` from which to go back: at the first time of the grid that is no noisier, or its last.
        high: the ``sigma / alpha`` to go back to; where the grid begins below it, that of its first time.
        repeats: how often, K of the paper.
        steps: steps of the grid from high to low, N_Restart of the paper.
    """

    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    steps: int = 3

    def __post_init__(self) -> None:
        require(0 < self.low < self.high < math.inf, f"0 < low < high, not {self.low}, {self.high}")
        require(self.repeats >= 1, f"repeats of at least 1, not {self.repeats}")
        require(self.steps >= 1, f"steps of at least 1, not {self.steps}")


@dataclass(frozen=True)
class Restart(Sampler):
    """A deterministic table with restarts; it claims no order, for the intervals have steps of their own.

    Attributes:
        solver: a table without noise.
        intervals: where it restarts, in any order.
    """

    solver: Sampler = field(default_factory=Heun)
    intervals: tuple[Interval, ...] = (Interval(),)
    # Where a restart begins at the end of the grid, a method of several stages needs one evaluation less.
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(isinstance(self.solver, TableSampler), f"a solver that is a table, such as Heun(), not {self.solver}")
        require(len(self.intervals) > 0, "at least one of the intervals")

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        yield from follow(self.table(denoiser.process.schedule, times), denoiser, x, cond, rng=rng)

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        self.table(denoiser.process.schedule, times)

    def table(self, schedule: Schedule, times: Tensor) -> list[Row]:
        """Return the whole table, as that of a ``TableSampler``.

        Raises:
            ValueError: if the grid does not reach an interval, or the solver injects noise.
        """
        grid = Grid.of(schedule, times)
        rows, path = list[Row](), list(grid)
        back: Move | None = None
        for interval in sorted(self.intervals, key=lambda interval: -interval.low):
            place, piece = _piece(grid, path, interval)
            for _ in range(interval.repeats):
                rows += self._down(schedule, path[: place + 1], back)
                back = forward(piece[-1], piece[0])
                path, place = [*piece, *path[place + 1 :]], len(piece) - 1
        return [*rows, *self._down(schedule, path, back)]

    def evaluations(self, steps: int) -> int:
        one, solver = self.solver.evaluations(1), self.solver
        return solver.evaluations(steps) + sum(
            interval.repeats * (solver.evaluations(interval.steps + 1) - one) for interval in self.intervals
        )

    def _down(self, schedule: Schedule, path: Sequence[Node], back: Move | None) -> list[Row]:
        """Return the rows of the solver along a path, which a move back to its start may precede."""
        assert isinstance(self.solver, TableSampler)
        if len(path) < 2:
            return []
        first, *others = self.solver.rows(Grid(schedule, tuple(path)))
        quiet = all(move.noise == 0 for row in (first, *others) for move in row.all_moves)
        require(quiet, f"a solver without noise, for restarts bring their own, not {self.solver}")
        return [first._replace(before=back), *others]


def _piece(grid: Grid, path: Sequence[Node], interval: Interval) -> tuple[int, list[Node]]:
    """Return the place of a path from which an interval restarts, and the nodes of the way down to it."""
    place = next((k for k, node in enumerate(path) if _level(node) <= interval.low), len(path) - 1)
    low, top = path[place], grid[0]
    require(
        _level(low) < min(interval.high, _level(top)),
        f"a grid that passes through the interval from sigma / alpha = {interval.high:g} to {interval.low:g}, not one "
        f"from {_level(top):.3g} to {_level(path[-1]):.3g}: leave that interval out",
    )
    first = top if _level(top) <= interval.high else grid.level(-math.log(interval.high))
    ends = [_root(first), _root(low)]
    roots = [ends[0] + k / interval.steps * (ends[1] - ends[0]) for k in range(1, interval.steps)]
    inner = [grid.level(-_RHO * math.log(root)) for root in roots]
    return place, [first, *inner, low]


def _level(node: Node) -> float:
    return math.inf if node.alpha == 0 else node.sigma / node.alpha


def _root(node: Node) -> float:
    return math.exp(math.log(_level(node)) / _RHO) if node.sigma > 0 else 0.0
