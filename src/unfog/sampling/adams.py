"""Linear multistep methods as weights over estimates of x0.

With l = log(alpha / sigma) and E = e^l = alpha / sigma, the probability-flow ODE is an integral in two ways:

    z = x / sigma:  z_s = z_t + int x0 dE,          y = x / alpha:  y_s = y_t + int eps d(1 / E).

An Adams method puts a polynomial through recent estimates, of x0 or of eps, in some variable v (l, time, sigma / alpha)
and integrates it. With u the part of the way from v_t to v_s, only the moments of the measure are wanted,

    m_k = int u^k dM / int dM,     M = E or 1 / E,     so that   sum_k c_k m_k = sum_j w_j f_j

for the polynomial ``sum_k c_k u^k`` through the estimates f_j. Methods differ in the variable, in the measure, and in
what published code rounds its moments to: DPM-Solver++(2M) puts 1/2 for m_1.

A step in eps is one in x0 as well. ``eps = z - E x0`` at the point that was asked, and points of the past follow from
the state by the moves since; hence ``eps_j = z - p_j``, p_j a combination of estimates of x0, and for weights c_j that
sum to one

    y_s = y_t + (1 / E_s - 1 / E_t) sum_j c_j eps_j   is   z_s = z_t + (E_s - E_t) sum_j c_j p_j / E_t.

Each p_j is a sum of positive multiples of what went before: nothing cancels but what the c_j make cancel. It reaches
back to all the estimates since, whose weights fade by a factor a step: those below rounding are left out, so that some
tens of estimates are kept while sampling, where a method in x0 keeps as many as its order.

Sources:
    Hochbruck, Ostermann 2005 (exponential multistep methods, not verified); Lu et al. 2022 (arXiv 2206.00927, section
    3) and Zhang, Chen 2023 (2204.13902): both integrals. The start that is taken anew is ours.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule, Tabulated
from unfog.sampling.table import Grid, Move, Node, Row, transition

Rule = Callable[[Node, Node, Sequence[Node]], Sequence[float]]
"""Weights of the estimates at some nodes, all of finite log-SNR, for the step from one node to another."""

_NEGLIGIBLE = 1e-17
"""Of weights that sum to one, which rounding moves by 1e-16: older ones below it are left out."""

_LONG = 3.0
"""A first step of more than so many times the second, in log-SNR, stands apart."""


class Start(Enum):
    """How a method of order p begins, which has p - 1 estimates too few.

    RISING raises the order with the estimates there are, as published code does. Its first step, of first order, leaves
    an error of h^2: the whole is of order 2 at most.

    ANEW takes each of the first p - 1 steps from where the steps begin to be alike (``beginning``), through all
    estimates so far, and commits the last of them only; for p = 3 that is the midpoint rule over two steps. It keeps
    the order, for no evaluation more. The estimate after k such steps errs by h^(k + 1), which is harmless once
    multiplied by h^(p - k - 1): for p = 3 a step does that. For p = 4 the estimate after one step errs by too much. It
    is left out later on, and has a weight of order h in the start where neighbouring steps are alike up to h, as they
    are on grids that refine one curve. Three of few steps taken at once are too long a step, though: on fewer than 15
    it begins as for p = 3.
    """

    RISING = "rising"
    ANEW = "anew"


class Past:
    """The estimates so far, while the rows of one table are formed; evaluations are counted from 0.

    Attributes:
        nodes: the times of the newest evaluations, by their number, the oldest first.
    """

    def __init__(self, *, of_noise: bool, keep: int) -> None:
        """Begin.

        Args:
            of_noise: whether coefficients are for eps rather than for x0.
            keep: how many evaluations to remember.
        """
        self.nodes: dict[int, Node] = {}
        self._of_noise, self._keep, self._asked = of_noise, keep, 0
        self._parts: dict[int, list[float]] = {}  # p_j of the module's text, the newest estimate first
        self._ahead: list[float] = []  # z of the next point minus z of the state, likewise

    def ask(self, t: Node) -> int:
        """Record an evaluation at the point, which lies at time t, and return its number."""
        number, self._asked = self._asked, self._asked + 1
        self.nodes[number] = t
        if self._of_noise:
            for part in self._parts.values():
                part.insert(0, 0.0)
            self._parts[number] = [t.alpha / t.sigma, *(-ahead for ahead in self._ahead)]
        if len(self.nodes) > self._keep:
            self.forget(next(iter(self.nodes)))
        return number

    def forget(self, *numbers: int) -> None:
        """Drop evaluations that no later step is made of."""
        for number in numbers:
            del self.nodes[number]
            self._parts.pop(number, None)

    def newest(self, count: int) -> dict[int, Node]:
        """Return the newest evaluations, the newest first."""
        return dict(list(reversed(self.nodes.items()))[:count])

    def step(self, t: Node, s: Node, coefficients: Mapping[int, float], *, commits: bool = True) -> Move:
        """Return the move of the state from t to s.

        Args:
            t: where the state is. From alpha = 0, where eps says nothing of x0, the coefficients are those of x0.
            s: where it goes. At sigma = 0 it becomes the newest estimate.
            coefficients: of x0 or eps, by the number of the evaluation; their sum is one.
            commits: whether the result becomes the state.
        """
        weights = (1.0,) if s.sigma == 0 else self._weights(t, coefficients)
        if self._of_noise and s.sigma > 0:
            gained = -s.alpha / s.sigma * math.expm1(t.half_log_snr - s.half_log_snr)
            self._ahead = [gained * weight for weight in weights]
            if commits:
                for part in self._parts.values():
                    _add(part, self._ahead)
                self._ahead = []
        return transition(t, s, weights=weights, commits=commits)

    def _weights(self, t: Node, coefficients: Mapping[int, float]) -> tuple[float, ...]:
        weights: list[float] = []
        if self._of_noise and t.alpha > 0:
            for number, coefficient in coefficients.items():
                scale = coefficient * t.sigma / t.alpha
                _add(weights, [scale * part for part in self._parts[number]])
        else:
            weights = [0.0] * (self._asked - min(coefficients))
            for number, coefficient in coefficients.items():
                weights[self._asked - 1 - number] = coefficient
        while abs(weights[-1]) < _NEGLIGIBLE:
            del weights[-1]
        return tuple(weights)


def _add(total: list[float], terms: Sequence[float]) -> None:
    total.extend([0.0] * (len(terms) - len(total)))
    for place, term in enumerate(terms):
        total[place] += term


def require_steps(grid: Grid, order: int, name: str) -> None:
    """Raise ``ValueError`` if a grid has fewer steps than the order that a method was set to."""
    require(
        grid.steps >= order,
        f"at least {order} steps for {name} of order {order}, not {grid.steps}; use a lower order or more steps",
    )


def adams(grid: Grid, order: int, rule: Rule, start: Start, *, of_noise: bool) -> Iterator[Row]:
    """Yield the rows of an Adams method, one evaluation a step.

    Steps from alpha = 0 and to sigma = 0 are of first order, and later ones use no estimate from alpha = 0.

    Args:
        grid: the times.
        order: number of estimates that a step is made of; fewer on a grid of fewer steps.
        rule: the weights of the estimates.
        start: how it begins.
        of_noise: whether the rule is for eps rather than for x0.
    """
    first, order = beginning(grid), min(order, grid.steps)
    begun = 0 if start is Start.RISING else (order if grid.steps >= 5 * (order - 1) else min(order, 3)) - 1
    rough = grid[first + 1 : first + begun - 1] if begun > 1 else ()
    past = Past(of_noise=of_noise, keep=order)
    for k, (t, s) in enumerate(pairwise(grid), start=-first):
        past.ask(t)
        anew = 0 <= k < begun
        begin = grid[first] if anew else t
        known = {n: node for n, node in past.newest(order).items() if anew or node not in rough}
        move = past.step(begin, s, coefficients(rule, begin, s, known), commits=not anew or k == begun - 1)
        yield Row(t.t, (move,), s.t)


def beginning(grid: Grid) -> int:
    """Return the node, 0 or 1, from which on neighbouring steps are alike.

    The first step of many grids is far longer in log-SNR than the others, from almost pure noise or from alpha = 0.
    Starts that make a step of several at once begin after it: they would extrapolate over all its length.
    """
    if grid.steps < 2:
        return 0
    first, second = (s.half_log_snr - t.half_log_snr for t, s in pairwise(grid[:3]))
    return int(first > _LONG * second)


def coefficients(rule: Rule, t: Node, s: Node, known: Mapping[int, Node]) -> dict[int, float]:
    """Return the coefficients of evaluations for a step from t to s.

    Args:
        rule: the weights of those with alpha above 0.
        t: where it starts.
        s: where it goes. Steps from alpha = 0 and to sigma = 0 are of first order: t's evaluation alone.
        known: times of evaluations by their number.
    """
    if t.alpha == 0 or s.sigma == 0:
        return {next(number for number, node in known.items() if node is t or s.sigma == 0): 1.0}
    known = {number: node for number, node in known.items() if node.alpha > 0}
    return dict(zip(known, rule(t, s, list(known.values())), strict=True))


def interpolated(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return the weights of values at some places: the integral of the polynomial through them.

    Args:
        places: all different.
        moments: of the measure, as many as there are places.
    """
    weights = []
    for j, here in enumerate(places):
        polynomial = [1.0]  # the one that is 1 here and 0 at the other places, lowest power first
        for k, there in enumerate(places):
            if k != j:
                gap = here - there
                shifted = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
                polynomial = [(low - there * high) / gap for low, high in shifted]
        weights.append(sum(moment * coefficient for moment, coefficient in zip(moments, polynomial, strict=True)))
    return weights


def exponential_moments(x: float, count: int) -> list[float]:
    """Return ``int_0^1 u^k x e^(x u) du / (e^x - 1)`` for k below ``count``, at most 5; x is not 0."""
    if abs(x) < 1:
        # Upwards the recurrence below would divide rounding errors by x each time: downwards from a series instead.
        term, n = 1.0, 0
        integrals = [1.0 / count]
        while abs(term) > 1e-18:
            n += 1
            term *= x / n
            integrals[0] += term / (n + count)
        for k in range(count - 1, 0, -1):
            integrals.append((math.exp(x) - x * integrals[-1]) / k)
        return [integral / integrals[-1] for integral in reversed(integrals)]
    end = math.exp(x) / math.expm1(x) if x < 0 else -1.0 / math.expm1(-x)
    moments = [1.0]
    for k in range(1, count):
        moments.append(end - k / x * moments[-1])
    return moments


def log_snr_places(t: Node, s: Node, nodes: Sequence[Node], *, of_noise: bool) -> tuple[list[float], float]:
    """Return where nodes lie between t and s in log-SNR, and x: the measure is proportional to ``e^(x u)``."""
    h = s.half_log_snr - t.half_log_snr
    return [(node.half_log_snr - t.half_log_snr) / h for node in nodes], -h if of_noise else h


def in_sigma(t: Node, s: Node, nodes: Sequence[Node]) -> list[float]:
    """Integrate the polynomial in sigma / alpha over sigma / alpha."""
    whole = math.expm1(t.half_log_snr - s.half_log_snr)
    places = [math.expm1(t.half_log_snr - node.half_log_snr) / whole for node in nodes]
    return interpolated(places, [1.0 / (k + 1) for k in range(len(nodes))])


class InTime:
    """Integrates the polynomial in time over sigma / alpha, on one grid, by quadrature.

    In half log-SNR, times are as a rule analytic up to pi / 2 from the real axis: Gauss' rule of 12 points is exact to
    rounding on pieces of length 1. Those of a table end at its levels, where the slope of time jumps.
    """

    def __init__(self, grid: Grid, order: int) -> None:
        """Form the moments of all the steps at once.

        Args:
            grid: the times.
            order: the number of moments.
        """
        finite = [node for node in grid if node.alpha > 0 and node.sigma > 0]
        first = beginning(grid)
        anew = [(grid[first], s) for s in grid[first + 2 : first + order] if s.sigma > 0]
        steps = [*pairwise(finite), *anew]
        ends = [(t.t, s.t) for t, s in steps]
        self._moments = dict(zip(ends, _time_moments(grid.schedule, steps, order), strict=True))

    def __call__(self, t: Node, s: Node, nodes: Sequence[Node]) -> list[float]:
        places = [(node.t - t.t) / (s.t - t.t) for node in nodes]
        return interpolated(places, self._moments[t.t, s.t][: len(nodes)])


def _time_moments(schedule: Schedule, steps: Sequence[tuple[Node, Node]], count: int) -> list[list[float]]:
    """Return ``int u^k dr / int dr``, r = sigma / alpha, u the part of each step in time, for k below ``count``."""
    kinks = list[float]()
    if isinstance(schedule, Tabulated):
        levels = schedule.time_of(torch.arange(schedule.levels, dtype=torch.float64))
        kinks = (0.5 * schedule.log_snr(levels)).flip(0).tolist()
    pieces: list[tuple[float, float]] = []
    owners: list[int] = []
    for step, (t, s) in enumerate(steps):
        inner = kinks[bisect_right(kinks, t.half_log_snr) : bisect_left(kinks, s.half_log_snr)]
        for low, high in pairwise([t.half_log_snr, *inner, s.half_log_snr]):
            parts = math.ceil(high - low)
            pieces += [(low + (high - low) * k / parts, low + (high - low) * (k + 1) / parts) for k in range(parts)]
            owners += [step] * parts
    low, high = torch.tensor(pieces, dtype=torch.float64).T[..., None]  # (pieces, 1)
    owner = torch.tensor(owners)
    nodes, weights = gauss_legendre(12)
    half = low + (high - low) * nodes  # (pieces, 12)
    start, end = torch.tensor([[t.t, s.t] for t, s in steps], dtype=torch.float64)[owner].T[..., None]
    begin = torch.tensor([t.half_log_snr for t, _ in steps], dtype=torch.float64)[owner, None]
    part = (schedule.time(2.0 * half) - start) / (end - start)
    mass = (high - low) * weights * torch.exp(begin - half)
    powers = torch.stack([mass * part**k for k in range(count)], -1).sum(1)  # (pieces, count)
    moments = torch.zeros(len(steps), count, dtype=torch.float64).index_add_(0, owner, powers)
    return (moments / moments[:, :1]).tolist()


@cache
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes in [0, 1] and weights of Gauss' rule, ``(count,)`` float64 (Golub and Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    beside = torch.diag(k / torch.sqrt(4.0 * k**2 - 1.0), 1)
    values, vectors = torch.linalg.eigh(beside + beside.T)
    return 0.5 * (values + 1.0), vectors[0] ** 2
