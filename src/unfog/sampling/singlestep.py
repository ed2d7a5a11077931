"""Samplers whose steps start afresh: each evaluates several times between two nodes of the grid and forgets the past.

A grid interval is one whole step of the solver: its intermediate points lie between the nodes, wherever the method
puts them. The step to t = 0, as a rule to sigma = 0 where log-SNR is infinite, is Euler's and costs one evaluation, so
n steps of a method of k evaluations make ``k (n - 1) + 1``. A step from pure noise, ``sigma > 1000 alpha``, where
log-SNR may be infinite as well and steps in it are out of proportion, is made in flow time, as ``Heun`` makes it, and
injects no noise: the state is all noise there. Having no past, the methods need no minimal number of steps.

Sources:
    Lu et al. 2022 (arXiv 2206.00927), algorithms 1 and 2: DPM-Solver-2 and -3. Lu et al. 2022 (2211.01095), algorithm
    1: DPM-Solver++(2S). The third order of the latter is that of the authors' code, github.com/LuChengTHU/dpm-solver,
    ``singlestep_dpm_solver_third_update``. Karras et al. 2022 (2206.00364), algorithm 2: churn. Crowson's k-diffusion:
    ancestral noise around either solver, and the noise of the SDE form of DPM-Solver++(2S) at the middle and at the end
    of the step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from unfog.diffusion.checks import require
from unfog.sampling.gaussian import Variable, eta_of_step, runge_kutta
from unfog.sampling.sampler import TableSampler
from unfog.sampling.table import Grid, Node, Row, forward, log_kept, transition


@dataclass(frozen=True)
class RK4(TableSampler):
    """The classical Runge-Kutta method on the probability-flow ODE: four evaluations a step, one on that to t = 0."""

    variable: Variable = Variable.SIGMA
    order: ClassVar[int] = 4

    def rows(self, grid: Grid) -> Iterator[Row]:
        inner = [self.variable.leaving(t).between(t, s, 0.5) for t, s in pairwise(grid) if s.t > 0]
        middles = iter(grid.levels(inner))
        slopes = (1.0,), (0.0, 1.0), (0.0, 0.0, 1.0), (1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0)
        for t, s in pairwise(grid):
            if s.t == 0:
                yield Row(t.t, (transition(t, s),), s.t)
                continue
            middle = next(middles)
            stages = list(zip((middle, middle, s, s), slopes, strict=True))
            yield from runge_kutta(t, stages, self.variable.leaving(t))

    def evaluations(self, steps: int) -> int:
        return 4 * steps - 3


@dataclass(frozen=True)
class DPMSolver(TableSampler):
    """DPM-Solver-1, -2 (r1 = 1/2) and -3 (r1 = 1/3, r2 = 2/3): exponential integrators for the predicted noise.

    ``eta`` makes it ancestral: each step goes down to the level from which the noise of DDIM's eta leads up to the
    next node. Order 2 is k-diffusion's "DPM2", with ``eta = 1`` its "DPM2 a"; order 1 is DDIM. Ancestral steps of order
    3 would evaluate beyond the next node and are refused.

    Attributes:
        order: as many evaluations a step, one on that to t = 0.
        eta: how much of the posterior's noise is injected, in [0, 1].
    """

    order: int = 3
    eta: float = 0.0

    def __post_init__(self) -> None:
        _check(self.order, self.eta)

    def rows(self, grid: Grid) -> Iterator[Row]:
        return _solver(grid, self.order, self.eta, Variable.SIGMA)

    def evaluations(self, steps: int) -> int:
        return self.order * (steps - 1) + 1


@dataclass(frozen=True)
class DPMSolverPP(TableSampler):
    """DPM-Solver++(2S) and (3S): the same points as ``DPMSolver``'s, integrated for the predicted x0.

    With ``eta = 1`` order 2 is k-diffusion's "DPM++ 2S a".

    Attributes:
        order: as many evaluations a step, one on that to t = 0.
        eta: how much of the posterior's noise is injected, in [0, 1]; ancestral, as in ``DPMSolver``.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        _check(self.order, self.eta)

    def rows(self, grid: Grid) -> Iterator[Row]:
        return _solver(grid, self.order, self.eta, None)

    def evaluations(self, steps: int) -> int:
        return self.order * (steps - 1) + 1


@dataclass(frozen=True)
class DPMSolverPPSDE(TableSampler):
    """The SDE form of DPM-Solver++(2S): two evaluations a step, noise at its middle and at its end.

    Both noises are increments of one path, those of the first half and of the whole step: the estimate at the middle
    then varies with the noise of the end as it should, which the order of the moments rests on; with independent noise
    it is 1. ``eta`` is that of ``DPMSolverPP2M``: the reverse SDE with eta times its noise.
    """

    eta: float = 1.0
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, f"eta in [0, 1], not {self.eta}")

    def rows(self, grid: Grid) -> Iterator[Row]:
        inner = [0.5 * (t.half_log_snr + s.half_log_snr) for t, s in pairwise(grid) if not t.is_noise and s.t > 0]
        middles = iter(grid.levels(inner))
        for t, s in pairwise(grid):
            if t.is_noise:
                yield from _solver(Grid(grid.schedule, (t, s)), self.order, 0.0, None)
                continue
            here = t
            if s.t > 0:
                here = next(middles)
                eta = eta_of_step(self.eta, here.half_log_snr - t.half_log_snr)
                yield Row(t.t, (transition(t, here, eta=eta, commits=False),), here.t)
            yield Row(here.t, (transition(t, s, eta=eta_of_step(self.eta, s.half_log_snr - t.half_log_snr)),), s.t)

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


@dataclass(frozen=True)
class EDMChurn(TableSampler):
    """EDM's stochastic sampler: before a step the noise is raised, from sigma / alpha by a factor of up to sqrt(2).

    The factor is ``1 + min(churn / steps, sqrt(2) - 1)``; then follows a step of Heun's method in sigma / alpha, or of
    Euler's, to the next node. No level above that of t = 1 is trained: what would be raised beyond it ends there, so
    the first step of a grid that begins at t = 1 raises nothing. The noise of a raise is no part of the path that step
    counts share: it is added against the direction of sampling.

    Published for ImageNet 64x64: churn 40, sigma_min 0.05, sigma_max 50, noise 1.003. A ``noise`` other than 1 does not
    keep the marginals, however many the steps, and no order is claimed for it.

    Attributes:
        churn: how much is raised in all, at least 0; 0 is Heun's or Euler's method itself.
        sigma_min: lower end of the window in which the noise is raised, sigma / alpha.
        sigma_max: its upper end.
        noise: the standard deviation of the noise that is added, over that which keeps the marginals.
        heun: two evaluations a step, one on that to t = 0; or Euler's one.
    """

    churn: float = 40.0
    sigma_min: float = 0.05
    sigma_max: float = 50.0
    noise: float = 1.0
    heun: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.churn < math.inf, f"churn of at least 0, not {self.churn}; 0 raises no noise")
        window = f"{self.sigma_min}, {self.sigma_max}; they bound the levels where noise is raised"
        require(0 <= self.sigma_min <= self.sigma_max, f"0 <= sigma_min <= sigma_max, not {window}")
        require(0 <= self.noise < math.inf, f"noise of at least 0, not {self.noise}; 1 keeps the marginals")

    @property
    def order(self) -> int:
        return 2 if self.heun else 1

    @property
    def claimed_order(self) -> int:
        return self.order if self.noise == 1 else 0

    def rows(self, grid: Grid) -> Iterator[Row]:
        factor = 1.0 + min(self.churn / grid.steps, math.sqrt(2.0) - 1.0)
        raised = [t for t in grid[:-1] if self._raises(t)]
        hats = iter(grid.levels([t.half_log_snr - math.log(factor) for t in raised]))
        for t, s in pairwise(grid):
            hat = next(hats) if self._raises(t) else t
            raising = None
            if hat.half_log_snr < t.half_log_snr:
                raising = forward(t, hat)
                raising = raising._replace(noise=self.noise * raising.noise)
            stages = [(s, (1.0,)), (s, (0.5, 0.5))] if self.heun and s.t > 0 else [(s, (1.0,))]
            first, *others = runge_kutta(hat, stages, Variable.SIGMA.leaving(hat))
            yield first._replace(before=raising)
            yield from others

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1 if self.heun else steps

    def _raises(self, t: Node) -> bool:
        return self.churn > 0 and t.alpha > 0 and self.sigma_min <= t.sigma / t.alpha <= self.sigma_max


def _check(order: int, eta: float) -> None:
    require(order in (1, 2, 3), f"order 1, 2 or 3, not {order}; RK4 has order 4")
    require(0 <= eta <= 1, f"eta in [0, 1], not {eta}")
    require(order <= 2 or eta == 0, f"order 1 or 2 with eta {eta}, not {order}; order 3 wants eta 0")


class _Plan(NamedTuple):
    """A step: half log-SNRs of its inner points, the weights that lead to them and to its end, and how it is made."""

    inner: list[float]
    slopes: list[tuple[float, ...]]
    variable: Variable | None
    eta: float


def _plan(t: Node, s: Node, order: int, eta: float, variable: Variable | None) -> _Plan:
    h = s.half_log_snr - log_kept(t, s, eta) - t.half_log_snr
    if t.is_noise:
        variable, eta, h = Variable.FLOW, 0.0, 0.0
    parts = _stages(order, h if variable is None else -h) if s.t > 0 else _stages(1, 0.0)
    inner = [Variable.FLOW.between(t, s, part) if t.is_noise else t.half_log_snr + part * h for part, _ in parts[:-1]]
    return _Plan(inner, [slopes for _, slopes in parts], variable, eta)


def _solver(grid: Grid, order: int, eta: float, variable: Variable | None) -> Iterator[Row]:
    """Yield the rows of DPM-Solver (``variable`` sigma / alpha) or of DPM-Solver++ (None)."""
    plans = [_plan(t, s, order, eta, variable) for t, s in pairwise(grid)]
    levels = iter(grid.levels([half for plan in plans for half in plan.inner]))
    for (t, s), plan in zip(pairwise(grid), plans, strict=True):
        inner = [next(levels) for _ in plan.inner]
        # With eta = 1 the middle is s itself, and a rounding must not lead beyond it.
        points = [point if point.t > s.t else s for point in (*inner, s)]
        yield from runge_kutta(t, list(zip(points, plan.slopes, strict=True)), plan.variable, plan.eta)


def _stages(order: int, h: float) -> list[tuple[float, tuple[float, ...]]]:
    """Return the points of a step, as parts of it in log-SNR, with the weights of the values so far, the oldest first.

    Args:
        order: 1 to 3.
        h: the step in log(alpha / sigma) where the values are x0, minus that where they are noise.
    """
    if order == 1:
        return [(1.0, (1.0,))]
    if order == 2:
        return [(0.5, (1.0,)), (1.0, (0.0, 1.0))]
    middle, end = 2.0 * _centre(2.0 / 3.0 * h), 1.5 * _centre(h)
    return [(1.0 / 3.0, (1.0,)), (2.0 / 3.0, (1.0 - middle, middle)), (1.0, (1.0 - end, 0.0, end))]


def _centre(h: float) -> float:
    """Return the centre of [0, 1] under the density ``e^(h u)``: where an exponential integrator weighs a line."""
    if abs(h) < 1e-2:
        return 0.5 + h / 12.0 - h**3 / 720.0  # the next term is below 4e-15; the difference would lose digits
    return -1.0 / math.expm1(-h) - 1.0 / h
