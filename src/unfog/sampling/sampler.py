"""The loop of the samplers: noise in, data out, one denoiser call a row.

Samplers are values without state: two requests may share one, and each call starts afresh. Progress and streaming
need no callbacks: ``steps`` is an iterator.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Schedule
from unfog.sampling.noise import noises
from unfog.sampling.table import Grid, Move, Row


@dataclass(frozen=True, slots=True)
class Step:
    """What is seen after each evaluation.

    Attributes:
        index: number of the step, from 0.
        t: the time that ``x`` belongs to; at the last step the end of the grid, usually 0.
        x: the state after the step: ``x_t``, and at the last step the sample.
        x0: the estimate that led there.
        progress: share of the trajectory that is done, in (0, 1]: 1 at the last step.
    """

    index: int
    t: Tensor
    x: Tensor
    x0: Tensor
    progress: float


class Sampler(ABC):
    """The interface.

    Attributes:
        adaptive: whether the number of evaluations depends on the data, or on where the times of the grid lie;
            ``evaluations`` is then the most that there can be, and steps need not be evaluations.
    """

    adaptive: ClassVar[bool] = False

    @abstractmethod
    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        """Run from noise to data.

        Args:
            denoiser: estimates x0.
            x: ``(B, ...)`` the state at ``times[0]``.
            times: ``(N + 1,)`` times that fall strictly, from a ``grid``.
            cond: the condition, by name, each ``(B, ...)``.
            rng: one key per sample.

        Yields:
            A ``Step`` after each evaluation of the denoiser; of an adaptive sampler, one for each time of the grid.
        """

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        """Raise ``ValueError`` if the sampler cannot run a denoiser on some times (hook: times that do not fall)."""
        Grid.of(denoiser.process.schedule, times)

    @abstractmethod
    def evaluations(self, steps: int) -> int:
        """Return how often the denoiser is called on a grid of ``steps`` steps to t = 0 (``adaptive``: at most)."""


class TableSampler(Sampler):
    """A sampler that is a table: a method gives its rows, the loop is common."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The order of the method; of some it is a setting."""

    @property
    def claimed_order(self) -> int:
        """The claimed order of convergence, of the solution or, where noise is injected, of the moments (hook)."""
        return self.order

    @abstractmethod
    def rows(self, grid: Grid) -> Iterable[Row]:
        """Return the rows of the table for the nodes of a grid."""

    @final
    def table(self, schedule: Schedule, times: Tensor) -> list[Row]:
        """Return the whole table: to be printed, plotted, stored or proven."""
        return list(self.rows(Grid.of(schedule, times)))

    @final
    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        yield from follow(self.table(denoiser.process.schedule, times), denoiser, x, cond, rng=rng)

    @final
    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        self.table(denoiser.process.schedule, times)

    def evaluations(self, steps: int) -> int:
        """Return how often the denoiser is called on a grid of ``steps`` steps to t = 0 (hook: one a step)."""
        return steps


def follow(rows: Sequence[Row], denoiser: Denoiser, x: Tensor, cond: Cond | None, *, rng: Rng) -> Iterator[Step]:
    """Run a table; arguments and steps are those of ``Sampler.steps``."""
    require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
    depth = max(len(move.x0) for row in rows for move in row.all_moves)
    noise = noises(rows, x, rng)
    evaluated = instants([row.t for row in rows], x.device).unbind()
    reached = instants([row.s for row in rows], x.device).unbind()
    denoiser = denoiser.begin().prepared(evaluated)
    state, point, estimates = x, x, list[Tensor]()
    for index, row in enumerate(rows):
        if row.before is not None:
            state = point = applied(row.before, state, estimates, noise)
        x0 = denoiser(point, evaluated[index], cond).x0
        estimates = [x0, *estimates[: depth - 1]]
        for move in row.moves:
            point = applied(move, state, estimates, noise)
            if move.commits:
                state = point
        yield Step(index, reached[index], point, x0, (index + 1) / len(rows))


def sample(
    denoiser: Denoiser, sampler: Sampler, times: Tensor, x: Tensor, cond: Cond | None = None, *, rng: Rng
) -> Tensor:
    """Run a sampler to its end and return the sample, shaped like ``x``.

    Gradients flow from the sample through every evaluation to the noise, the condition and the network's weights, and
    memory grows with the steps; where none are wanted, call it under ``torch.inference_mode()``. (Samplers that do not
    differentiate say so: RK45 and Picard.)

    Args:
        denoiser: estimates x0.
        sampler: the method.
        times: ``(N + 1,)`` times that fall strictly, from a ``grid``.
        x: ``(B, ...)`` pure noise, from ``denoiser.process.prior``.
        cond: the condition, by name, each ``(B, ...)``.
        rng: one key per sample.

    Raises:
        FloatingPointError: if the result is not finite; the message names the samples.
    """
    last = None
    for step in sampler.steps(denoiser, x, times, cond, rng=rng):
        last = step
    if last is None:
        raise ValueError("the sampler made no step: the grid is empty")
    require_finite(last.x)
    return last.x


def require_finite(x: Tensor) -> None:
    """Raise ``FloatingPointError`` naming the samples of ``x`` ``(B, ...)`` that are not finite."""
    finite = x.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"samples {bad[:10]} of {len(x)} are not finite: the denoiser answered with NaN or infinity; "
            "check the checkpoint with 'unfog inspect run', and lower the guidance scale if it is large"
        )


def instants(times: Sequence[float], device: torch.device) -> Tensor:
    """Return times on a device: in float64 where it has that, so that a level of a table is met exactly."""
    return torch.tensor(times, dtype=torch.float32 if device.type == "mps" else torch.float64).to(device)


def applied(move: Move, state: Tensor, estimates: Sequence[Tensor], noise: Iterator[Tensor]) -> Tensor:
    """Return where a move leads; one that adds noise takes it from ``noise``."""
    result = state * move.x
    for weight, x0 in zip(move.x0, estimates, strict=False):
        result = result.add_(x0, alpha=weight)
    if move.noise > 0:
        result = result.add_(next(noise), alpha=move.noise)
    return result
