"""Multistep samplers: one evaluation a step, and the estimates of the steps before.

All but DPM-Solver++(2M) as a reverse SDE are deterministic, and Adams methods or nearly so (``adams``): a polynomial
through recent estimates of x0 or eps, integrated exactly. Claimed orders are measured on a fixed interval of log-SNR.

Sources:
    Lu et al. 2022 (arXiv 2206.00927): DPM-Solver. Lu et al. 2022 (2211.01095), algorithm 2: DPM-Solver++(2M), and its
    appendices on SDE-DPM-Solver++ and on multistep solvers of other orders. Xue et al. 2023 (2309.05019): the reverse
    SDE with a variance of its own, for DPM-Solver++ between ODE and SDE. Zhang, Chen 2023 (2204.13902), sections 3.2
    and 4: DEIS in time and in rho = sigma / alpha. Zhao et al. 2023 (2302.04867), section 3: UniPC. Liu et al. 2022
    (2202.09778), eqs. 9, 12 and 13, algorithm 2: PNDM. Its and the others' coefficients as published in code, which
    ``tests/golden/test_multistep`` holds them to; equations that are not numbered here were not looked up.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import pairwise
from typing import ClassVar

from unfog.diffusion.checks import require
from unfog.sampling.adams import (
    InTime,
    Past,
    Rule,
    Start,
    adams,
    beginning,
    coefficients,
    exponential_moments,
    in_sigma,
    interpolated,
    log_snr_places,
    require_steps,
)
from unfog.sampling.gaussian import eta_of_step
from unfog.sampling.sampler import TableSampler
from unfog.sampling.table import Grid, Node, Row, transition


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
            yield Row(t.t, (transition(t, s, eta=eta_of_step(self.eta, h), weights=weights),), s.t)
            previous = h


def _exact(t: Node, s: Node, nodes: Sequence[Node], *, of_noise: bool) -> list[float]:
    """Integrate the polynomial in half log-SNR."""
    places, x = log_snr_places(t, s, nodes, of_noise=of_noise)
    return interpolated(places, exponential_moments(x, len(nodes)))


def _as_published(t: Node, s: Node, nodes: Sequence[Node], *, of_noise: bool) -> list[float]:
    """Integrate it as the code of DPM-Solver does: 1/2 for the first moment, at order 3 half of the second."""
    places, x = log_snr_places(t, s, nodes, of_noise=of_noise)
    moments = exponential_moments(x, len(nodes))
    if len(nodes) == 2:
        moments[1] = 0.5
    if len(nodes) == 3:
        moments[2] /= 2.0
    return interpolated(places, moments)


@dataclass(frozen=True)
class DPMSolverPP3M(TableSampler):
    """DPM-Solver++(3M): the parabola through three estimates of x0, in log-SNR, integrated exactly.

    Attributes:
        published: the form of published code, for comparison. It takes the second divided difference for the second
            derivative, of which it is half, and begins with a step of first order: it is of order 2.
    """

    published: bool = False

    @property
    def order(self) -> int:
        return 2 if self.published else 3

    def rows(self, grid: Grid) -> Iterator[Row]:
        rule = partial(_as_published if self.published else _exact, of_noise=False)
        return adams(grid, 3, rule, Start.RISING if self.published else Start.ANEW, of_noise=False)


@dataclass(frozen=True)
class DPMSolverMultistep(TableSampler):
    """DPM-Solver in its multistep form: a polynomial through estimates of eps, in log-SNR, integrated exactly.

    Attributes:
        order: 1, 2 or 3.
        published: the form of published code, for comparison: as that of ``DPMSolverPP3M`` at order 3, and with the
            coefficients of DPM-Solver++(2M), those of the midpoint rule, at order 2.
    """

    order: int = 2
    published: bool = False

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3), f"an order of 1, 2 or 3, not {self.order}")

    @property
    def claimed_order(self) -> int:
        return min(self.order, 2) if self.published else self.order

    def rows(self, grid: Grid) -> Iterator[Row]:
        require_steps(grid, self.order, "DPMSolverMultistep")
        rule = partial(_as_published if self.published else _exact, of_noise=True)
        return adams(grid, self.order, rule, Start.RISING if self.published else Start.ANEW, of_noise=True)


class Interpolation(Enum):
    """What the polynomial through the estimates of eps is in."""

    TIME = "t"
    SIGMA = "sigma / alpha"
    LOG_SNR = "log-SNR"


@dataclass(frozen=True)
class DEIS(TableSampler):
    """DEIS: a polynomial through estimates of eps in some variable, integrated over sigma / alpha.

    tAB-DEIS in time, rho-AB-DEIS in sigma / alpha, which is the LMS sampler too; in log-SNR it is multistep DPM-Solver,
    and what published code calls DEIS.

    Attributes:
        order: 1 to 4. At order 4 the start needs neighbouring steps that grow alike as they grow in number.
        variable: of the polynomial.
        start: how it begins; rising, as published, it is of order 2 at most.
    """

    order: int = 3
    variable: Interpolation = Interpolation.TIME
    start: Start = Start.ANEW

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3, 4), f"an order of 1 to 4, not {self.order}")

    @property
    def claimed_order(self) -> int:
        return min(self.order, 2) if self.start is Start.RISING else self.order

    def rows(self, grid: Grid) -> Iterator[Row]:
        require_steps(grid, self.order, "DEIS")
        return adams(grid, self.order, self._rule(grid), self.start, of_noise=True)

    def _rule(self, grid: Grid) -> Rule:
        if self.variable is Interpolation.TIME:
            return InTime(grid, self.order)
        return in_sigma if self.variable is Interpolation.SIGMA else partial(_exact, of_noise=True)


def lms(order: int = 4, start: Start = Start.ANEW) -> DEIS:
    """Return the linear multistep sampler in sigma / alpha, which is DEIS in that variable."""
    return DEIS(order, Interpolation.SIGMA, start)


class Bh(Enum):
    """UniPC's B(h), which stands for the step where one difference is all there is: x and e^x - 1, x = h or -h."""

    B1 = "h"
    B2 = "e^h - 1"


@dataclass(frozen=True)
class UniPC(TableSampler):
    """UniPC: a predictor of order p, and a corrector of order p + 1 that reuses the evaluation at the predicted point.

    Predictor and corrector are the exact integrals of polynomials in log-SNR, but for those through two estimates:
    there the first moment is replaced by ``B(h) / (2 (e^x - 1))``, 1/2 with ``Bh.B2``, where x = h for estimates of eps
    and -h for those of x0. Elsewhere B(h) cancels. The last step is predicted only, and so is, in eps, a first step
    that is much longer than the second. With its start of first order, once corrected, UniPC-p is of order p + 1 for
    p = 1 and 2, and of order 3 for p = 3.

    Attributes:
        order: p: 1, 2 or 3.
        bh: the function B.
        of_noise: whether it predicts eps rather than x0.
        corrector: without it this is UniP, of order p; it begins anew (``Start``).
    """

    order: int = 2
    bh: Bh = Bh.B2
    of_noise: bool = False
    corrector: bool = True

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3), f"an order of 1, 2 or 3, not {self.order}")

    @property
    def claimed_order(self) -> int:
        return min(self.order + 1, 3) if self.corrector else self.order

    def rows(self, grid: Grid) -> Iterator[Row]:
        require_steps(grid, self.order, "UniPC")
        if not self.corrector:
            yield from adams(grid, self.order, self._rule, Start.ANEW, of_noise=self.of_noise)
            return
        past, before = Past(of_noise=self.of_noise, keep=self.order + 1), None
        alone = self.of_noise and beginning(grid) == 1
        for t, s in pairwise(grid):
            newest, moves = past.ask(t), []
            if before is not None:
                begin, used = before
                known = used if alone and begin is grid[0] else {newest: t, **used}
                moves.append(past.step(begin, t, coefficients(self._rule, begin, t, known)))
            before = t, past.newest(self.order)
            moves.append(past.step(t, s, coefficients(self._rule, t, s, before[1]), commits=s is grid[-1]))
            yield Row(t.t, tuple(moves), s.t)

    def _rule(self, t: Node, s: Node, nodes: Sequence[Node]) -> list[float]:
        places, x = log_snr_places(t, s, nodes, of_noise=self.of_noise)
        moments = exponential_moments(x, len(nodes))
        if len(nodes) == 2:
            moments[1] = 0.5 if self.bh is Bh.B2 else -0.5 * x / math.expm1(-x)
        return interpolated(places, moments)


_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PNDM(TableSampler):
    """PNDM: the coefficients of equal steps on any grid, for four estimates of eps.

    They are put into DDIM's step, which is no step of a fixed length in the variable they are meant for: the method is
    of order 2, as its paper says. A first step that is much longer than the second has a table of its own, in x0.

    Attributes:
        runge_kutta: begin with three Runge-Kutta steps of four evaluations, the middle ones half-way in time (F-PNDM).
            Otherwise with one trapezoidal step, which evaluates twice at its end, and orders that rise: PLMS, as in
            Stable Diffusion's code.
    """

    runge_kutta: bool = True
    order: ClassVar[int] = 2

    def rows(self, grid: Grid) -> Iterator[Row]:
        first, single = beginning(grid), self._single(grid.steps)
        begin = first if first + single < grid.steps else 0
        for k, (t, s) in enumerate(pairwise(grid)):
            if k <= first:
                past = Past(of_noise=k == first, keep=7)  # three of the past, four of a Runge-Kutta step
            if begin <= k < begin + single:
                yield from _runge_kutta(past, grid, t, s) if self.runge_kutta else _trapezoid(past, t, s)
                continue
            past.ask(t)
            newest = past.newest(4)
            weights = dict(zip(newest, _ADAMS_BASHFORTH[len(newest) - 1], strict=True))
            yield Row(t.t, (past.step(t, s, weights),), s.t)

    def evaluations(self, steps: int) -> int:
        return steps + (3 if self.runge_kutta else 1) * self._single(steps)

    def _single(self, steps: int) -> int:
        """Return how many steps are taken without a past; the last, as a rule to sigma = 0, is none of them."""
        return min(3 if self.runge_kutta else 1, steps - 1)


def _runge_kutta(past: Past, grid: Grid, t: Node, s: Node) -> Iterator[Row]:
    middle = grid.at(0.5 * (t.t + s.t))
    first = past.ask(t)
    yield Row(t.t, (past.step(t, middle, {first: 1.0}, commits=False),), middle.t)
    second = past.ask(middle)
    yield Row(middle.t, (past.step(t, middle, {second: 1.0}, commits=False),), middle.t)
    third = past.ask(middle)
    yield Row(middle.t, (past.step(t, s, {third: 1.0}, commits=False),), s.t)
    fourth = past.ask(s)
    yield Row(s.t, (past.step(t, s, {first: 1 / 6, second: 1 / 3, third: 1 / 3, fourth: 1 / 6}),), s.t)
    past.forget(second, third, fourth)


def _trapezoid(past: Past, t: Node, s: Node) -> Iterator[Row]:
    first = past.ask(t)
    yield Row(t.t, (past.step(t, s, {first: 1.0}, commits=False),), s.t)
    second = past.ask(s)
    yield Row(s.t, (past.step(t, s, {first: 1 / 2, second: 1 / 2}),), s.t)
    past.forget(second)
