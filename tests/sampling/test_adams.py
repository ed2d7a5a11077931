"""Adams methods: their integrals, their history of eps written as estimates of x0, and how they begin."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    Cosine,
    RectifiedFlow,
    Schedule,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    linear,
)
from unfog.sampling.adams import InTime, Past, Start, exponential_moments, gauss_legendre, in_sigma, interpolated
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.multistep import DPMSolverPP3M, lms
from unfog.sampling.sampler import sample
from unfog.sampling.table import Grid

RNG = Rng.of(9, 5)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1, torch.tensor([0.4, 0.6], dtype=torch.float64))


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_gauss_rule_is_exact_for_polynomials_of_twice_its_points(count: int) -> None:
    nodes, weights = gauss_legendre(count)
    for k in range(2 * count):
        assert (weights * nodes**k).sum().item() == pytest.approx(1 / (k + 1), rel=1e-14)


@pytest.mark.parametrize("x", [-80.0, -3.0, -1.0001, -0.9999, -1e-3, 1e-9, 0.5, 0.9999, 1.0001, 7.0, 300.0])
def test_exponential_moments_are_their_integrals(x: float) -> None:
    # On 400 pieces the exponential grows by less than e each: Gauss' rule is exact there.
    nodes, weights = gauss_legendre(20)
    u = ((torch.arange(400)[:, None] + nodes) / 400).flatten()
    # Scaled by its largest value, so that nothing overflows.
    mass = weights.repeat(400) * torch.exp(x * u - max(x, 0.0))
    expected = [((mass * u**k).sum() / mass.sum()).item() for k in range(5)]
    assert exponential_moments(x, 5) == pytest.approx(expected, rel=2e-13)


def test_interpolated_values_of_a_polynomial_give_its_integral() -> None:
    places, moments = [0.0, -0.7, -1.9, 1.0], [1.0, 0.6, 0.43, 0.3]
    weights = interpolated(places, moments)
    for k, moment in enumerate(moments):
        assert sum(w * place**k for w, place in zip(weights, places, strict=True)) == pytest.approx(moment, rel=1e-13)


@pytest.mark.parametrize(
    "schedule",
    [VariancePreserving(), SubVariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()],
    ids=lambda schedule: type(schedule).__name__,
)
@pytest.mark.parametrize("times", [(0.95, 0.7, 0.35, 0.05), (0.9, 0.01, 0.001)])
def test_the_integral_in_time_is_that_by_its_rates(schedule: Schedule, times: tuple[float, ...]) -> None:
    # By parts, 1 - k int u^(k-1) g du, g the part of the way in sigma / alpha: an integral in time, in pieces that grow
    # with it and end at each level of a table. The library's is over half log-SNR.
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    edges = torch.cat([torch.logspace(-3, -2, 400, dtype=torch.float64), levels]).unique()
    nodes, weights = gauss_legendre(12)
    grid = Grid.of(schedule, torch.tensor(times, dtype=torch.float64))
    rule = InTime(grid, 3)
    for t, s in pairwise(grid):
        inner = edges[(edges > s.t) & (edges < t.t)].tolist()
        ends = torch.tensor([s.t, *inner, t.t], dtype=torch.float64)
        time = (ends[:-1, None] + ends.diff()[:, None] * nodes).flatten()
        du = (ends.diff()[:, None] * weights).flatten() / (t.t - s.t)
        u = (time - t.t) / (s.t - t.t)
        part = torch.expm1(t.half_log_snr - 0.5 * schedule.log_snr(time)) / math.expm1(t.half_log_snr - s.half_log_snr)
        expected = [1.0] + [1.0 - k * (du * u ** (k - 1) * part).sum().item() for k in (1, 2)]
        found = rule(t, s, [t, s, grid.at(0.5 * (t.t + s.t))])
        moments = [sum(w * place**k for w, place in zip(found, (0.0, 1.0, 0.5), strict=True)) for k in range(3)]
        # The weights add and subtract what is rounded at 1e-16 a few times.
        assert moments == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_a_history_of_eps_is_kept_over_a_thousand_steps() -> None:
    # The same method in its own terms: y = x / alpha, eps at every point kept as it was found.
    schedule = VariancePreserving()
    times = LogSNRUniform(0.01, 100.0).times(schedule, 999)[:-1]
    grid, denoise = Grid.of(schedule, times), data(schedule)
    x, history = prior(schedule), list[Tensor]()
    for k, (t, s) in enumerate(pairwise(grid)):
        history.insert(0, (x - t.alpha * denoise(x, times[k]).x0) / t.sigma)
        newest = [grid[k - j] for j in range(min(4, k + 1))]
        weights = in_sigma(t, s, newest)
        eps = sum((w * e for w, e in zip(weights, history, strict=False)), torch.zeros_like(x))
        x = s.alpha * (x / t.alpha + (s.sigma / s.alpha - t.sigma / t.alpha) * eps)
    found = sample(denoise, lms(4, Start.RISING), times, prior(schedule), rng=RNG)
    # x / alpha is 150 at the start, of which a thousand steps round 1e-16 each.
    torch.testing.assert_close(found, x, rtol=0, atol=1e-11)


def test_the_last_jump_and_that_from_pure_noise_are_of_first_order() -> None:
    grid = Grid.of(Cosine(), torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64))
    past = Past(of_noise=True, keep=3)
    first = past.ask(grid[0])
    assert past.step(grid[0], grid[1], {first: 1.0}).x0 == pytest.approx((grid[1].alpha,), rel=1e-15)
    second = past.ask(grid[1])
    past.step(grid[1], grid[2], {second: 1.5, first: -0.5})
    third = past.ask(grid[2])
    assert past.step(grid[2], grid[3], {third: 1.5, second: -0.5}).x0 == (1.0,)


def test_the_start_anew_is_the_midpoint_rule_over_two_steps() -> None:
    schedule = RectifiedFlow()
    times = torch.tensor([0.95, 0.8, 0.6, 0.4], dtype=torch.float64)
    rows = DPMSolverPP3M().table(schedule, times)
    assert [row.moves[0].commits for row in rows] == [False, True, True]
    t, middle, s = Grid.of(schedule, times)[:3]
    # The straight line through the estimates at t and the middle, over all of E = alpha / sigma from t to s.
    e = [node.alpha / node.sigma for node in (t, s)]
    h, part = (node.half_log_snr - t.half_log_snr for node in (s, middle))
    slope = (e[1] * h - (e[1] - e[0])) / (e[1] - e[0]) / part  # int (l - l_t) dE / (int dE (l_m - l_t))
    expected = s.sigma * (e[1] - e[0]) * torch.tensor([slope, 1 - slope], dtype=torch.float64)
    assert rows[1].moves[0].x0 == pytest.approx(tuple(expected.tolist()), rel=1e-13)


def test_few_steps_are_not_begun_by_three_at_once() -> None:
    schedule = VariancePreserving()
    begun = []
    for steps in (14, 15):
        rows = lms(4).table(schedule, Trailing().times(schedule, steps))
        begun.append(sum(not row.moves[0].commits for row in rows))
    assert begun == [1, 2]
    assert math.isfinite(sum(rows[-1].moves[0].x0))
