"""Laws that every sampler keeps, most of them proven on its table."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import (
    RectifiedFlow,
    Schedule,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    cosine,
    linear,
)
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.grid import Karras, LogSNRUniform, TimeGrid, Trailing
from unfog.sampling.sampler import Sampler, TableSampler, sample
from unfog.sampling.table import Grid, Node, Row, gaussian_moments

EPS = torch.finfo(torch.float64).eps
DATA_MEAN, DATA_VARIANCE = 0.8, 0.3


class Basis:
    """Noise of unit vectors: in a batch of 2 + n, example 2 + k sees the k-th draw as 1, the others as 0."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.seen = dict[int, int]()

    def __len__(self) -> int:
        return 2 + self.draws

    def normals(self, shape: Sequence[int], purpose: Purpose, steps: Sequence[int]) -> Tensor:
        noise = torch.zeros(len(steps), len(self), *shape, dtype=torch.float64)
        for i, step in enumerate(steps):
            noise[i, 2 + self.seen.setdefault(step, len(self.seen))] = 1.0
        return noise


def keeps_marginals(sampler: Sampler) -> bool:
    """DDPM with the variance of the forward step does not, as published; all others are meant to."""
    return sampler != DDPM(Variance.BETA)


def rows_of(sampler: TableSampler, nodes: Grid | None) -> list[Row]:
    """Return the rows of a table; none on a grid that does not exist, or has fewer steps than the order that is set."""
    if nodes is None:
        return []
    try:
        return list(sampler.rows(nodes))
    except ValueError as error:
        refusal = str(error)
    assert f"expected at least {sampler.order} steps" in refusal
    return []


def scalars(schedule: Schedule, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return schedule.alpha(time).item(), schedule.sigma(time).item()


def nodes_at(schedule: Schedule, times: set[float]) -> dict[float, Node]:
    """Return the nodes of times, all at once."""
    t = torch.tensor(sorted(times), dtype=torch.float64)
    columns = (column.tolist() for column in (t, *schedule.scales(t)))
    return {node.t: node for node in map(Node, *columns)}


def correlation(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return that of the normalised increments of a stationary path, ``E[Y_l Y_m] = e^(-|l - m|)``, over two spans."""

    def covariance(a: float, b: float, c: float, d: float) -> float:
        terms = ((b, d, 0.0), (a, d, a - b), (b, c, c - d), (a, c, a - b + c - d))
        at = [math.exp(decay) * (1.0 if x == y else math.exp(-abs(x - y))) for x, y, decay in terms]
        return at[0] - at[1] - at[2] + at[3]

    both = covariance(*first, *first) * covariance(*second, *second)
    return covariance(*first, *second) / math.sqrt(both)


def moments(
    rows: Sequence[Row], schedule: Schedule, data: tuple[float, float], start: tuple[float, float]
) -> Iterator[tuple[float, float, float]]:
    """Yield time, mean and variance after each move that commits, by the recursion of means and covariances.

    The vector (state, point, newest noise, newest estimate, the one before, ...) is Gaussian; each operation of the
    loop replaces one of its elements by a linear combination of all and some fresh noise. Noise with a span goes with
    that of the move before where the spans overlap; no table has more of one that overlap.
    """
    size = 3 + max(len(move.x0) for row in rows for move in row.moves)
    mean, last = [start[0]] * 2 + [0.0] * (size - 2), None
    cov = [[start[1] if i < 2 and j < 2 else 0.0 for j in range(size)] for i in range(size)]

    def put(target: int, weights: dict[int, float], constant: float = 0.0, noise: float = 0.0) -> None:
        mean[target] = sum(w * mean[i] for i, w in weights.items()) + constant
        row = [sum(w * cov[i][j] for i, w in weights.items()) for j in range(size)]
        own = sum(w * row[i] for i, w in weights.items()) + noise**2
        for j in range(size):
            cov[target][j] = cov[j][target] = row[j]
        cov[target][target] = own

    def draw(span: tuple[float, float] | None, last: tuple[float, float] | None) -> None:
        overlap = span and last and min(span[1], last[1]) > max(span[0], last[0])
        common = correlation(span, last) if span and last and overlap else 0.0
        put(2, {2: common}, noise=math.sqrt(1.0 - common**2))

    times = torch.tensor([row.t for row in rows], dtype=torch.float64)
    for row, alpha, sigma in zip(rows, schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True):
        gain = alpha * data[1] / (alpha**2 * data[1] + sigma**2)
        for move in row.all_moves:
            if move is row.moves[0]:
                mean[4:] = mean[3:-1]
                cov[:] = [row[:4] + row[3:-1] for row in cov[:4] + cov[3:-1]]
                put(3, {1: gain}, constant=(1 - gain * alpha) * data[0])
            if move.noise > 0:
                draw(move.span, last)
                last = move.span
            put(1, {0: move.x, 2: move.noise, **{3 + j: weight for j, weight in enumerate(move.x0)}})
            if move.commits:
                put(0, {1: 1.0})
                yield row.t if move is row.before else row.s, mean[0], cov[0][0]


def between(schedule: Schedule, steps: int, low: float = -5.0, high: float = 4.0) -> Tensor:
    """Return times uniform in log-SNR on a fixed interval: the jump to sigma = 0 spoils the order of any method."""
    return schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))


# --- the table


@pytest.mark.parametrize(
    ("counts", "others"),
    [
        pytest.param((1, 2, 3, 4, 5, 7, 12, 25), (1, 2, 3, 7), id="some"),
        pytest.param(range(1, 51), (1, 2, 3, 7, 50), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_point_mass_is_hit_at_every_number_of_steps_on_every_schedule_and_grid(
    table_sampler: TableSampler,
    nodes_of: Callable[..., Any],
    all_of: Callable[[type], list[Any]],
    counts: Sequence[int],
    others: Sequence[int],
) -> None:
    point, start, noise = 0.7, -1.3, 0.9
    firsts = [
        next(v for v in all_of(kind) if type(v) is cls)
        for kind in (Schedule, TimeGrid)
        for cls in map(type, all_of(kind))
    ]
    for schedule in all_of(Schedule):
        if schedule.sigma(torch.zeros((), dtype=torch.float64)) > 0:
            continue  # it ends at its first level, with that level's noise
        for grid in all_of(TimeGrid):
            # All counts with the first representative of each class, some with its other settings.
            common = schedule in firsts and grid in firsts
            for steps in counts if common else others:
                rows = rows_of(table_sampler, nodes_of(schedule, grid, steps))
                if not rows:
                    continue
                x = y = start
                for row in rows:
                    for move in row.all_moves:
                        y = move.x * x + sum(move.x0) * point + move.noise * noise
                        x = y if move.commits else x
                # The last row puts the whole weight on x0: no rounding is left but that of the weights' sum.
                assert abs(y - point) <= 4 * EPS, (schedule, grid, steps)
                assert x == y, "the last move commits"


def test_every_move_keeps_the_marginals_it_should(
    table_sampler: TableSampler, nodes_of: Callable[..., Any], all_of: Callable[[type], list[Any]]
) -> None:
    for schedule in all_of(Schedule):
        for grid in all_of(TimeGrid):
            for steps in (1, 2, 7, 30):
                nodes = nodes_of(schedule, grid, steps)
                rows = rows_of(table_sampler, nodes)
                if not rows:
                    continue
                here, places = nodes[0], nodes_at(nodes.schedule, {time for row in rows for time in (row.t, row.s)})
                for row in rows:
                    for move in row.all_moves:
                        # The last leads to the next point; those before it, of a corrector, to that of this row.
                        there = places[row.s if move is row.moves[-1] else row.t]
                        # alpha_s = a alpha_t + b: products of numbers that come from log-SNR differences of up to
                        # 70 and are good to that many roundings.
                        size = 1 + sum(abs(weight) for weight in move.x0)
                        assert abs(move.x * here.alpha + sum(move.x0) - there.alpha) <= 256 * EPS * size
                        if keeps_marginals(table_sampler):
                            variance = (move.x * here.sigma) ** 2 + move.noise**2
                            assert abs(variance - there.sigma**2) <= 256 * EPS * there.sigma**2
                        if move.commits:
                            here = there
                assert here == nodes[-1]


def test_a_table_claims_its_evaluations(
    table_sampler: TableSampler, nodes_of: Callable[..., Any], all_of: Callable[[type], list[Any]]
) -> None:
    for schedule in all_of(Schedule):
        for grid in all_of(TimeGrid):
            for steps in (1, 2, 7):
                rows = rows_of(table_sampler, nodes_of(schedule, grid, steps))
                assert not rows or len(rows) == table_sampler.evaluations(steps)


# --- moments


@pytest.mark.parametrize(
    ("schedule_", "grid_", "steps"),
    [
        (linear(), Trailing(), 7),
        (linear(), Trailing(), 30),
        (linear(), Trailing(), 100),
        pytest.param(linear(), Trailing(), 999, marks=pytest.mark.slow),
        (cosine(), LogSNRUniform(), 30),
        (RectifiedFlow(3.0), Trailing(), 7),
        (VarianceExploding(), Karras(), 30),
        (SubVariancePreserving(), Karras(), 7),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_the_loop_has_the_moments_of_its_table(
    table_sampler: TableSampler, schedule_: Schedule, grid_: TimeGrid, steps: int
) -> None:
    times = grid_.times(schedule_, steps)
    rows = table_sampler.table(schedule_, times)
    sigma = scalars(schedule_, 1.0)[1]
    # A draw for each step, and one for each halving of the path of the noise.
    rng = Basis(64 + 2 * len(rows))
    process = Gaussian(schedule_)
    data = analytic.gaussian(process, torch.full((1,), DATA_MEAN, dtype=torch.float64), DATA_VARIANCE)
    # The loop is affine in the prior and in each draw: example 0 has neither, example 1 the prior, the others a draw.
    x = torch.zeros(len(rng), 1, dtype=torch.float64)
    x[1] = sigma
    result = sample(data, table_sampler, times, x, rng=rng)[:, 0]  # type: ignore[arg-type]
    mean, variance = result[0].item(), (result[1:] - result[0]).square().sum().item()
    *_, (_, expected_mean, expected_variance) = moments(rows, schedule_, (DATA_MEAN, DATA_VARIANCE), (0.0, sigma**2))
    closed_mean, closed_variance = gaussian_moments(rows, schedule_, DATA_MEAN, DATA_VARIANCE)
    # A thousand affine steps of coefficients below 1, each rounded: 1e3 eps = 2e-13.
    assert closed_mean == pytest.approx(expected_mean, rel=1e-12, abs=1e-12)
    assert closed_variance == pytest.approx(expected_variance, rel=1e-12, abs=1e-12)
    assert mean == pytest.approx(expected_mean, rel=1e-12, abs=1e-12)
    assert variance == pytest.approx(expected_variance, rel=1e-12, abs=1e-12)


# --- orders of convergence


ORDER_SCHEDULES = [VariancePreserving(), RectifiedFlow(3.0), VarianceExploding()]


@cache
def solution(schedule: Schedule) -> tuple[Denoiser, Tensor, Tensor]:
    """Return a mixture, where trajectories on the interval of ``between`` start, and where they end."""
    means = torch.tensor([[-1.0], [0.4], [1.5]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    denoiser = analytic.mixture(Gaussian(schedule), means, 0.15, weights)
    alpha, sigma = scalars(schedule, between(schedule, 1)[0].item())
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None] * math.hypot(alpha, sigma)
    # Fourth order on 400 steps is good to 1e-8; the errors of the most accurate tables are 1e-10 on 192.
    return denoiser, x, solve(denoiser, x, between(schedule, 3200))


def solve(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """Integrate the probability-flow ODE by the classical Runge-Kutta method in sigma / alpha."""
    schedule = denoiser.process.schedule
    tau = torch.exp(-0.5 * schedule.log_snr(times))
    y = x / schedule.alpha(times[0])

    def slope(state: Tensor, at: Tensor) -> Tensor:
        t = schedule.time(-2 * at.log())
        return (state - denoiser(schedule.alpha(t) * state, t).x0) / at

    for here, there in pairwise(tau):
        step, middle = there - here, 0.5 * (here + there)
        k1 = slope(y, here)
        k2 = slope(y + 0.5 * step * k1, middle)
        k3 = slope(y + 0.5 * step * k2, middle)
        k4 = slope(y + step * k3, there)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * schedule.alpha(times[-1])


@pytest.mark.parametrize("schedule_", ORDER_SCHEDULES, ids=lambda value: type(value).__name__)
def test_deterministic_tables_solve_the_ode_at_their_order(ode_sampler: TableSampler, schedule_: Schedule) -> None:
    denoiser, x, truth = solution(schedule_)
    rng = Rng.of(0, len(x))
    coarse, fine = (
        (sample(denoiser, ode_sampler, between(schedule_, steps), x, rng=rng) - truth).abs().mean().log2().item()
        for steps in (96, 192)
    )
    assert coarse - fine >= ode_sampler.claimed_order - 0.2


@pytest.mark.parametrize("schedule_", ORDER_SCHEDULES, ids=lambda value: type(value).__name__)
def test_the_moments_converge_to_the_truth_at_the_order(table_sampler: TableSampler, schedule_: Schedule) -> None:
    data = (DATA_MEAN, DATA_VARIANCE)
    errors = []
    for steps in (256, 512):
        times = between(schedule_, steps)
        # Both ends of the interval have the exact marginals of the data.
        start, end = (
            (alpha * data[0], alpha**2 * data[1] + sigma**2)
            for alpha, sigma in (scalars(schedule_, times[i].item()) for i in (0, -1))
        )
        *_, (_, mean, variance) = moments(table_sampler.table(schedule_, times), schedule_, data, start)
        # Every move has alpha_s = a alpha_t + b, so the mean is right but for 512 roundings.
        assert abs(mean - end[0]) <= 512 * EPS
        errors.append(math.log2(abs(variance - end[1])))
    assert errors[0] - errors[1] >= table_sampler.claimed_order - 0.2


def test_the_variance_converges_at_the_order_by_the_closed_form_of_the_library(table_sampler: TableSampler) -> None:
    # gaussian_moments starts from N(0, sigma_1^2): for data of this variance that is the marginal of the first time.
    schedule = VarianceExploding(2.0)
    times = [schedule.time(torch.linspace(-1.0, 4.0, steps + 1, dtype=torch.float64)) for steps in (128, 256)]
    first, last = (scalars(schedule, times[0][i].item())[1] ** 2 for i in (0, -1))
    data_variance = 2.0**2 - first
    errors = []
    for grid in times:
        mean, variance = gaussian_moments(table_sampler.table(schedule, grid), schedule, 0.0, data_variance)
        assert mean == 0
        errors.append(math.log2(abs(variance - (data_variance + last))))
    assert errors[0] - errors[1] >= table_sampler.claimed_order - 0.2


def test_whole_trajectories_converge_to_the_data(
    table_sampler: TableSampler, all_of: Callable[[type], list[Any]]
) -> None:
    for schedule in all_of(Schedule):
        (alpha_0, sigma_0), (alpha_1, sigma_1) = scalars(schedule, 0.0), scalars(schedule, 1.0)
        errors = []
        for steps in (16, 256):
            # Karras' grid from the prior to the clean end, the last jump included.
            times = Karras(sigma_min=0.01).times(schedule, steps)
            rows = table_sampler.table(schedule, times)
            start = alpha_1 * DATA_MEAN, alpha_1**2 * DATA_VARIANCE + sigma_1**2
            *_, (_, mean, variance) = moments(rows, schedule, (DATA_MEAN, DATA_VARIANCE), start)
            errors.append(abs(variance - alpha_0**2 * DATA_VARIANCE - sigma_0**2))
            # Opposite weights cancel; they are large on long steps.
            largest = max(abs(weight) for row in rows for move in row.moves for weight in move.x0)
            assert abs(mean - alpha_0 * DATA_MEAN) <= 1e-12 + 8 * EPS * largest
        # The jump to t = 0 goes along x0 = E[x0 | x] and so lacks variance, however many steps went before: where it
        # leads to sigma = 0, that of x0 given x.
        noise, left = (schedule.log_snr(times[i]).neg().exp().item() for i in (-2, -1))
        kept = math.sqrt(left / noise)
        slope = kept + (1.0 - kept) * DATA_VARIANCE / (DATA_VARIANCE + noise)
        jump = alpha_0**2 * abs(slope**2 * (DATA_VARIANCE + noise) - DATA_VARIANCE - left)
        # 16 times the steps leave at most a fifth of the rest, even at order 1 and with a long first step in it.
        assert errors[1] < 0.2 * errors[0] + 1.05 * jump
