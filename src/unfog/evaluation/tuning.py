"""The numbers of a fitted sampler, and better ones by the method of Levenberg and Marquardt.

A result that is off by ``r(v)`` on some trajectories is improved by the step that solves

    (J^T J + damping diag(J^T J)) step = -J^T r,     J = dr / dv,

no number being moved by more than 1.

The quotient ``(r(v + h e_k) - r(v)) / h`` stands for column k of J: only the evaluations after the k-th number are
repeated for it, and no denoiser has to be differentiable. What is minimised is the mean over trajectories of the root
mean square of r, so each is weighted by what is left of it (Weiszfeld's way to the geometric median): else the few
that end in another picture, which no small step reaches, would rule.

Sources:
    Levenberg 1944, "A method for the solution of certain non-linear problems in least squares"; Marquardt 1963, "An
    algorithm for least-squares estimation of nonlinear parameters".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.sweep import distances
from unfog.sampling.fitted import Fitted, Stage
from unfog.sampling.sampler import instants
from unfog.sampling.table import Move, Row

NOISIEST = -5.0
"""Least half log-SNR that a denoiser is told when a fit begins: that of pure noise could not be moved."""

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried for each step."""

_QUOTIENT = 1e-2  # far above the rounding of float32 networks, far below the distance of two times
_FLAT = 1e-3  # of the largest curvature: numbers that change nothing here, as what pure noise is told, stay
_LEAST = 1e-6  # of a mean square, so that a trajectory that is met exactly has a finite weight


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Some trajectories of a model, by both their ends.

    Attributes:
        denoiser: as it is to be used, guided or not.
        cond: the condition.
        noise: ``(B, ...)`` where they begin.
        solution: ``(B, ...)`` where they end.
    """

    denoiser: Denoiser
    cond: Cond
    noise: Tensor
    solution: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def run(self, rows: Sequence[Row], known: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return what the table of a fitted sampler makes of the noise, and all estimates, oldest first.

        Args:
            rows: the table.
            known: the estimates of its first evaluations, which are then not made.
        """
        estimates, times = list(known), instants([row.t for row in rows], self.noise.device).unbind()
        for k in range(len(estimates), len(rows)):
            point = self._point(rows[k - 1].moves[0], estimates) if k else self.noise
            estimates.append(self.denoiser(point, times[k], self.cond).x0)
        return self._point(rows[-1].moves[0], estimates), estimates

    def _point(self, move: Move, estimates: Sequence[Tensor]) -> Tensor:
        point = self.noise * move.x
        for weight, estimate in zip(move.x0, reversed(estimates), strict=True):
            point.add_(estimate, alpha=weight)
        return point


@dataclass(frozen=True, eq=False)
class Numbers:
    """A fitted sampler as a vector.

    Attributes:
        schedule: of the noise.
        start: the time of the noise, which stays.
        count: of evaluations, N.
        values: float64: half log-SNR of the points but the first, ``(N - 1,)``, and of what the denoiser is told,
            ``(N,)``; then the weights of each stage, all but the newest, which makes their sum one.
    """

    schedule: Schedule
    start: float
    count: int
    values: Tensor

    @staticmethod
    def of(table: Fitted) -> "Numbers":
        """Return the numbers of a table."""
        times = [stage.t for stage in table.stages[1:]] + [stage.told for stage in table.stages]
        half = 0.5 * table.schedule.log_snr(torch.tensor(times, dtype=torch.float64))
        older = torch.tensor([w for stage in table.stages for w in stage.weights[1:]], dtype=torch.float64)
        values = torch.cat([half.clamp_min(NOISIEST), older])
        return Numbers(table.schedule, table.stages[0].t, len(table.stages), values)

    @cached_property
    def table(self) -> Fitted:
        """The sampler.

        Raises:
            ValueError: if its times do not fall.
        """
        n = self.count
        times = self.schedule.time(2.0 * self.values[: 2 * n - 1]).tolist()
        places, told, older = [self.start, *times[: n - 1]], times[n - 1 :], iter(self.values[2 * n - 1 :].tolist())
        stages = []
        for k in range(n):
            weights = [next(older) for _ in range(k)]
            stages.append(Stage(places[k], told[k], (1.0 - math.fsum(weights), *weights)))
        return Fitted(self.schedule, tuple(stages))

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the sampler; raises ``ValueError`` if its times do not fall."""
        return self.table.table(self.schedule, self.table.grid.times(self.schedule, self.count))

    @property
    def first(self) -> list[int]:
        """The first evaluation that each number has a part in; N for those of the last combination."""
        n = self.count
        return [*range(1, n), *range(n), *(k + 1 for k in range(n) for _ in range(k))]

    @property
    def cost(self) -> int:
        """Evaluations that a trajectory costs when all derivatives are taken."""
        return self.count + sum(self.count - first for first in self.first)

    def telling(self, half_log_snr: float) -> "Numbers":
        """Return the numbers with which the denoiser is told this half log-SNR at the first evaluation."""
        values = self.values.clone()
        values[self.count - 1] = half_log_snr
        return replace(self, values=values)

    def plus(self, step: Tensor) -> "Numbers | None":
        """Return the numbers after a step; None if times would not fall, or weights not be finite."""
        moved = replace(self, values=self.values + step)
        try:
            finite = bool(moved.values.isfinite().all()) and len(moved.rows) > 0
        except ValueError:
            return None
        return moved if finite else None

    def quotients(self) -> list[tuple["Numbers", float]]:
        """Return for each number the vector in which it alone is a little larger, or smaller, and by how much.

        A time that has no room beside its neighbours is left as it is.
        """
        found = []
        for axis in torch.eye(len(self.values), dtype=torch.float64):
            tried = ((self.plus(h * axis), h) for h in (_QUOTIENT, -_QUOTIENT))
            found.append(next(((moved, h) for moved, h in tried if moved is not None), (self, 1.0)))
        return found


def distances_of(numbers: Numbers, parts: Sequence[Trajectories]) -> Tensor:
    """Return the distance from the solution of each trajectory, ``(N,)`` float64 on the CPU."""
    return torch.cat([distances(part.run(numbers.rows)[0], part.solution).cpu() for part in parts])


def improved(
    numbers: Numbers, distance: float, parts: Sequence[Trajectories], choosing: Sequence[Trajectories]
) -> tuple[Numbers, float] | None:
    """Return better numbers by one step, and their mean distance, or None if no step is better.

    Args:
        numbers: where it begins.
        distance: their mean distance on ``choosing``.
        parts: trajectories that the step is made from.
        choosing: trajectories on which its damping is chosen.
    """
    equations = [_normal_equations(numbers, part) for part in parts]
    matrix, slope = (torch.stack(terms).sum(0) for terms in zip(*equations, strict=True))
    scale = matrix.diagonal().clamp_min(_FLAT * matrix.diagonal().max())
    best = None
    for damping in DAMPINGS:
        step = torch.linalg.solve(matrix + damping * scale.diag(), -slope)
        moved = numbers.plus(step / step.abs().max().clamp_min(1.0))
        value = math.inf if moved is None else mean_distance(moved, choosing)
        if moved is not None and value < distance:
            best, distance = moved, value
        elif best is not None:
            break  # shorter steps only lead back
    return None if best is None else (best, distance)


def mean_distance(numbers: Numbers, parts: Sequence[Trajectories]) -> float:
    """Return the mean distance from the solutions; infinite where a result is not finite."""
    return distances_of(numbers, parts).mean().nan_to_num(math.inf).item()


def _normal_equations(numbers: Numbers, part: Trajectories) -> tuple[Tensor, Tensor]:
    """Return ``J^T J`` and ``J^T r``, in float64 on the CPU, each trajectory weighted by one over its distance."""
    x, estimates = part.run(numbers.rows)
    residual = (x - part.solution).flatten(1)
    weight = residual.square().mean(1, keepdim=True).clamp_min(_LEAST).pow(-0.25)
    columns = []
    for (moved, h), first in zip(numbers.quotients(), numbers.first, strict=True):
        y, _ = part.run(moved.rows, estimates[:first])
        columns.append(((y - x).flatten(1) * (weight / h)).flatten())
    jacobian = torch.stack(columns)
    matrix, slope = jacobian @ jacobian.T, jacobian @ (residual * weight).flatten()
    return matrix.double().cpu(), slope.double().cpu()
