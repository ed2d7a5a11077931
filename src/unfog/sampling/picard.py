"""Sampling that is parallel in time: the states of many steps are guessed and improved together.

A deterministic table makes all its states from the start and the estimates of x0 at each. Given guesses of the states,
all estimates are asked for in one batch and all states made anew, which is repeated until they stay. State k is right
after k rounds whatever the guesses were, and in practice many become right in one. Where the hardware has room for the
larger batch, the wait for a sample falls; the number of evaluations rises.

Source:
    Shih et al. 2023 (arXiv 2305.16317), algorithm 1: Picard iteration on a window that slides on over all that changed
    little (equation numbers not verified). Here what is integrated is the table's own step, which is right for constant
    x0, so that the guess for new states is the step from the newest estimate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Rng
from unfog.sampling.flow import selected
from unfog.sampling.gaussian import DDIM
from unfog.sampling.langevin import require_single, single_rows
from unfog.sampling.sampler import Sampler, Step, instants, require_finite
from unfog.sampling.table import Grid, Row


@dataclass(frozen=True)
class Picard(Sampler):
    """A deterministic table of one evaluation a step, with the states of a window found together.

    The window of each sample moves on by itself, so that a sample does not depend on its batch. With a tolerance of 0
    the result is that of the table. ``evaluations`` counts batches, each of up to ``window`` states of a sample. All
    states are kept to the end, and no gradients flow through them.

    Attributes:
        solver: a table without noise, of one evaluation a step.
        window: states of a sample that are evaluated at a time.
        tolerance: a state is done when its root mean square change is at most so much of ``sqrt(alpha^2 + sigma^2)``,
            the size of states of data of variance 1.
    """

    solver: Sampler = field(default_factory=DDIM)
    window: int = 16
    tolerance: float = 1e-3
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_single(self.solver, "solver")
        require(self.window >= 1, f"window of at least 1, not {self.window}")
        require(0 <= self.tolerance < 1, f"tolerance in [0, 1), not {self.tolerance}")

    @torch.no_grad()
    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
        grid = Grid.of(denoiser.process.schedule, times)
        rows = self._rows(grid)
        reached = instants([row.s for row in rows], x.device).unbind()
        run = _Windows(denoiser.begin(), x, cond, rows, self.window)
        # The change that is allowed each state.
        allowed = self.tolerance * torch.tensor([(node.alpha**2 + node.sigma**2) ** 0.5 for node in grid[1:]])
        told = 0
        while told < len(rows):
            run.improve(allowed)
            done = int(run.done.min())
            for k in range(told, done):
                yield Step(k, reached[k], run.states[k + 1], run.estimates[k], (k + 1) / len(rows))
            told = done

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        self._rows(Grid.of(denoiser.process.schedule, times))

    def _rows(self, grid: Grid) -> list[Row]:
        rows = single_rows(self.solver, grid, "solver")
        quiet = all(move.noise == 0 for row in rows for move in row.all_moves)
        require(quiet, f"a solver without noise, such as DDIM(), not {self.solver}")
        return rows

    def evaluations(self, steps: int) -> int:
        return steps


class _Windows:
    """All states and estimates of a batch, each sample with a window of its own.

    Args:
        denoiser: estimates x0.
        x: ``(B, ...)`` where the table starts.
        cond: the condition of the batch.
        rows: the table.
        window: states of a sample that are evaluated at a time.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, cond: Cond | None, rows: Sequence[Row], window: int) -> None:
        self.denoiser, self.cond, self.rows, self.window = denoiser, cond, len(rows), window
        self.times = instants([row.t for row in rows], x.device)
        moves = [row.moves[0] for row in rows]
        depth = max(len(move.x0) for move in moves)
        padded = [(move.x, *move.x0, *(0.0,) * (depth - len(move.x0))) for move in moves]
        # The weight of the state, and those of the estimates.
        self.weights = torch.tensor(padded, dtype=torch.float64).to(x)
        self.states = x.new_zeros(len(rows) + 1, *x.shape)
        self.states[0] = x
        self.estimates = x.new_zeros(len(rows), *x.shape)
        # How many states of each sample are right, not counting the start; on the CPU.
        self.done = torch.zeros(len(x), dtype=torch.int64)
        self.who = torch.arange(len(x), device=x.device)
        self._remake(window)

    def improve(self, allowed: Tensor) -> None:
        """Evaluate all windows at once, make their states anew, and move each on.

        Args:
            allowed: ``(N,)`` the change below which a state is done.
        """
        ahead = torch.arange(self.window)
        index = self.done[:, None] + ahead
        offset, sample = (index < self.rows).T.nonzero(as_tuple=True)
        step, sample = index[sample, offset].to(self.who.device), sample.to(self.who.device)
        denoiser = self.denoiser.select(sample)
        x0 = denoiser(self.states[step, sample], self.times[step], selected(self.cond, sample)).x0
        self.estimates[step, sample] = x0
        changes = self._remake(2 * self.window)[: self.window].T
        require_finite(changes)
        small = changes <= allowed[index.clamp_max(self.rows - 1)]
        # The first state that changed much is made of estimates at states that did not: it is where to go on from.
        leading = small.long().cumprod(1).sum(1)
        asked = (self.rows - self.done).clamp_max(self.window)
        self.done += torch.minimum(1 + leading, asked)

    def _remake(self, count: int) -> Tensor:
        """Make the next states of all samples from their estimates, the newest of which serves for all that follow.

        Returns:
            ``(count, B)`` the root mean squares of their changes, on the CPU.
        """
        done, changes = self.done.to(self.who.device), list[Tensor]()
        for ahead in range(count):
            step = (done + ahead).clamp_max(self.rows - 1)
            if ahead >= self.window:
                newest = (done + self.window - 1).clamp_max(self.rows - 1)
                self.estimates[step, self.who] = self.estimates[newest, self.who]
            made = self._weight(step, 0) * self.states[step, self.who]
            for back in range(self.weights.shape[1] - 1):
                made += self._weight(step, 1 + back) * self.estimates[(step - back).clamp_min(0), self.who]
            changes.append((made - self.states[step + 1, self.who]).flatten(1).square().mean(1).sqrt())
            # Those that have come to the end stay as they are.
            kept = (done + ahead >= self.rows).reshape(-1, *(1,) * (made.ndim - 1))
            self.states[step + 1, self.who] = torch.where(kept, self.states[step + 1, self.who], made)
        return torch.stack(changes).cpu()

    def _weight(self, step: Tensor, column: int) -> Tensor:
        return self.weights[step, column].reshape(-1, *(1,) * (self.states.ndim - 2))
