"""Samplers of Gaussian diffusion, as tables.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 6, 7, 11 and section 3.2: ancestral sampling with either variance.
    Song, Meng, Ermon 2021 (2010.02502), eqs. 12 and 16: DDIM. Karras et al. 2022 (2206.00364), algorithm 1: Heun.
    Lu et al. 2022 (2211.01095), algorithm 2: DPM-Solver++(2M), and appendix on SDE-DPM-Solver++. Xue et al. 2023
    (2309.05019): the reverse SDE with a variance of its own, for DPM-Solver++ between ODE and SDE.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import ClassVar

from unfog.diffusion.checks import require
from unfog.sampling.sampler import TableSampler
from unfog.sampling.table import Grid, Node, Row, transition


class Variance(Enum):
    """The variance of DDPM's reverse step."""

    POSTERIOR = "posterior"
    BETA = "beta"


@dataclass(frozen=True)
class DDPM(TableSampler):
    """Ancestral sampling; the step to clean data adds no noise.

    With ``Variance.BETA`` the posterior's mean is kept and the noise is that of the forward step, ``sigma_{t|s}``:
    this does not keep the marginals, and needs many steps.
    """

    variance: Variance = Variance.POSTERIOR
    order: ClassVar[int] = 1

    def rows(self, grid: Grid) -> Iterator[Row]:
        for t, s in pairwise(grid):
            move = transition(t, s, eta=1.0)
            if self.variance is Variance.BETA and s.sigma > 0:
                h = s.half_log_snr - t.half_log_snr
                move = move._replace(noise=t.sigma * math.sqrt(-math.expm1(-2.0 * h)))
            yield Row(t.t, (move,), s.t)


@dataclass(frozen=True)
class DDIM(TableSampler):
    """DDIM: deterministic at ``eta = 0``, DDPM with the posterior variance at ``eta = 1``.

    At ``eta = 0`` it is also Euler's method on the probability-flow ODE, in sigma / alpha or in flow time, and
    first-order DPM-Solver++: one table under four names.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, f"eta in [0, 1], not {self.eta}")

    def rows(self, grid: Grid) -> Iterator[Row]:
        for t, s in pairwise(grid):
            yield Row(t.t, (transition(t, s, eta=self.eta),), s.t)


def euler() -> DDIM:
    """Return Euler's method on the probability-flow ODE, which is DDIM at eta = 0."""
    return DDIM(eta=0.0)


class Variable(Enum):
    """What an ODE method integrates in: tau, with ``dy / dtau = (y - x0) / tau`` for the rescaled state y."""

    SIGMA = "sigma / alpha"
    FLOW = "sigma / (alpha + sigma)"

    def of(self, node: Node) -> float:
        """Return tau at a node; sigma / alpha wants ``alpha > 0``."""
        return node.sigma / (node.alpha if self is Variable.SIGMA else node.alpha + node.sigma)


@dataclass(frozen=True)
class Heun(TableSampler):
    """The trapezoidal rule on the probability-flow ODE: two evaluations a step, one on the last.

    The second stage puts ``tau_t / (2 tau_s)`` of the weight on the newer estimate. The last step, as a rule to
    sigma = 0, is Euler's. From pure noise with alpha = 0, where sigma / alpha is infinite, the second stage is formed
    in flow time.
    """

    variable: Variable = Variable.SIGMA
    order: ClassVar[int] = 2

    def rows(self, grid: Grid) -> Iterator[Row]:
        for t, s in pairwise(grid):
            euler_step = transition(t, s)
            if s is grid[-1]:
                yield Row(t.t, (euler_step,), s.t)
                continue
            variable = self.variable if t.alpha > 0 else Variable.FLOW
            newer = variable.of(t) / (2.0 * variable.of(s))
            yield Row(t.t, (euler_step._replace(commits=False),), s.t)
            yield Row(s.t, (transition(t, s, weights=(newer, 1.0 - newer)),), s.t)

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


@dataclass(frozen=True)
class DPMSolverPP2M(TableSampler):
    """DPM-Solver++(2M): two estimates a step, one evaluation; with ``eta = 1`` the SDE form.

    With h the step in log(alpha / sigma) and r the previous step over h, x0 is replaced by
    ``(1 + 1 / (2r)) x0_n - 1 / (2r) x0_{n-1}``. The first step is of first order, and so are the steps to sigma = 0,
    where h is infinite, and after one from alpha = 0, where the previous one was.

    It solves the reverse SDE with eta times its noise, whose marginals are those of the process for every eta. With l
    for log(alpha / sigma) and w for Brownian motion in l, ``z = x / sigma`` obeys

        dz = (-eta^2 z + (1 + eta^2) e^l x0) dl + sqrt(2) eta dw.

    For constant x0 a step therefore keeps ``e^(-eta^2 h)`` of z and adds noise of variance ``1 - e^(-2 eta^2 h)``; two
    steps are then one of their joint length. DDIM keeps ``sqrt(1 - eta^2 (1 - e^(-2h)))``, the same at 0 and 1. In
    between its noise is that of the SDE up to h^2 a step: the marginals would still be of second order, for they do
    not depend on eta, but what is left of the start in the end, and with it how samples follow from their noise, only
    of first. As with the published SDE form, the path for one given w is of first order wherever noise is injected.
    """

    eta: float = 0.0
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, f"eta in [0, 1], not {self.eta}")

    def rows(self, grid: Grid) -> Iterator[Row]:
        previous = math.inf
        for t, s in pairwise(grid):
            h = s.half_log_snr - t.half_log_snr
            extra = 0.0 if math.isinf(h) else h / (2.0 * previous)
            weights = (1.0 + extra, -extra) if extra else (1.0,)
            yield Row(t.t, (transition(t, s, eta=_eta_of_step(self.eta, h), weights=weights),), s.t)
            previous = h


def _eta_of_step(eta: float, h: float) -> float:
    """Return the eta with which a transition over h keeps ``e^(-eta^2 h)`` of the noise."""
    return eta if eta in (0.0, 1.0) else math.sqrt(math.expm1(-2.0 * eta**2 * h) / math.expm1(-2.0 * h))
