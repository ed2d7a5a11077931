"""Samplers of Gaussian diffusion, as tables.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 6, 7, 11 and section 3.2: ancestral sampling with either variance.
    Song, Meng, Ermon 2021 (2010.02502), eqs. 12 and 16: DDIM. Karras et al. 2022 (2206.00364), algorithm 1: Heun.
"""

import math
from collections.abc import Iterator, Sequence
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

    def leaving(self, t: Node) -> "Variable":
        """Return the variable for a step from t: flow time from pure noise, where sigma / alpha is no measure."""
        return Variable.FLOW if t.is_noise else self

    def between(self, t: Node, s: Node, part: float) -> float:
        """Return the half log-SNR a part in (0, 1) of the way from t to s, in tau."""
        tau = (1.0 - part) * self.of(t) + part * self.of(s)
        # The signal beside it, 1 - tau in flow time, would lose its digits near pure noise.
        ends = [1.0 if self is Variable.SIGMA else node.alpha / (node.alpha + node.sigma) for node in (t, s)]
        return math.log((1.0 - part) * ends[0] + part * ends[1]) - math.log(tau)


def runge_kutta(
    t: Node, stages: Sequence[tuple[Node, Sequence[float]]], variable: Variable | None, eta: float = 0.0
) -> Iterator[Row]:
    """Yield the rows of one step of an explicit Runge-Kutta method.

    Its slope at point j is ``(y_j - x0_j) / tau_j``, and y_j itself is made of the state at t and of estimates. Written
    out, a weight on the slope at j is one of ``r = tau_t / tau_j`` on the estimate at j and of ``1 - r`` on the
    combination of estimates that led to j.

    Args:
        t: where the step starts.
        stages: the points that follow, the end of the step last, each with the weights on the slopes so far that lead
            to it, the oldest first; they sum to one.
        variable: tau; None puts the weights on the estimates themselves.
        eta: how much of the posterior's noise the last move injects.
    """
    here, ratios, led = t, list[float](), list[list[float]]([[]])
    for count, (node, slopes) in enumerate(stages, start=1):
        ratios.append(1.0 if variable is None or here is t else variable.of(t) / variable.of(here))
        weights = [slope * ratio for slope, ratio in zip(slopes, ratios, strict=True)]
        for slope, ratio, past in zip(slopes, ratios, led, strict=True):
            for j, weight in enumerate(past):
                weights[j] += slope * (1.0 - ratio) * weight
        last = count == len(stages)
        move = transition(t, node, eta=eta if last else 0.0, weights=weights[::-1], commits=last)
        yield Row(here.t, (move,), node.t)
        led.append(weights)
        here = node


@dataclass(frozen=True)
class Heun(TableSampler):
    """The trapezoidal rule on the probability-flow ODE: two evaluations a step, one on that to t = 0.

    The second stage puts ``tau_t / (2 tau_s)`` of the weight on the newer estimate. The step to t = 0, as a rule to
    sigma = 0, is Euler's. From pure noise, where sigma / alpha is infinite or so large that the rule in it would weigh
    the second stage by hundreds, the stage is formed in flow time.
    """

    variable: Variable = Variable.SIGMA
    order: ClassVar[int] = 2

    def rows(self, grid: Grid) -> Iterator[Row]:
        for t, s in pairwise(grid):
            stages = [(s, (1.0,))] if s.t == 0 else [(s, (1.0,)), (s, (0.5, 0.5))]
            yield from runge_kutta(t, stages, self.variable.leaving(t))

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


def eta_of_step(eta: float, h: float) -> float:
    """Return the eta with which a transition over h keeps ``e^(-eta^2 h)`` of the noise."""
    return eta if eta in (0.0, 1.0) else math.sqrt(math.expm1(-2.0 * eta**2 * h) / math.expm1(-2.0 * h))
