"""Laws of fitted samplers, which the contracts cannot run: a table of its own goes on one schedule and one grid."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.fitted import Fitted, Given, Stage
from unfog.sampling.gaussian import DDIM, DDPM, Heun, Variance
from unfog.sampling.grid import Karras, Leading, LogSNRUniform, TimeGrid, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.table import Grid

EPS = torch.finfo(torch.float64).eps
SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]
STAGES = (Stage(1.0, 0.93, (1.0,)), Stage(0.7, 0.72, (1.4, -0.4)), Stage(0.2, 0.15, (1.3, -0.5, 0.2)))


def own_table(fitted: Fitted) -> list[object]:
    return list(fitted.table(fitted.schedule, fitted.grid.times(fitted.schedule, len(fitted.stages))))


def mixture(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.05)


def drawn(denoiser: Denoiser, sampler: TableSampler, times: Tensor) -> Tensor:
    rng = Rng.of(3, 5)
    return sample(denoiser, sampler, times, denoiser.process.prior((2,), rng=rng, dtype=torch.float64), rng=rng)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("sampler", "grid"),
    [(DDIM(), Trailing()), (DPMSolverPP2M(), Trailing()), (DPMSolverPP2M(), Karras(7.0, 0.1)), (DDIM(), Leading())],
)
def test_a_fixed_table_in_its_form_has_the_same_trajectories(
    sampler: TableSampler, grid: TimeGrid, schedule: Schedule
) -> None:
    times = grid.times(schedule, 6)
    fitted = Fitted.like(sampler, schedule, times)
    assert torch.equal(fitted.grid.times(schedule, 6), times)
    expected, found = (drawn(mixture(schedule), s, times) for s in (sampler, fitted))
    # States of size 80 and weights of size 10 are combined in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_point_mass_is_hit_whatever_the_numbers(schedule: Schedule) -> None:
    fitted = Fitted(schedule, STAGES)
    point = torch.tensor([0.7, -0.2], dtype=torch.float64)
    times = fitted.grid.times(schedule, 3)
    found = drawn(analytic.point_mass(Gaussian(schedule), point), fitted, times)
    # The last point is a sum of three estimates of size 1.
    torch.testing.assert_close(found, point.expand(5, 2), rtol=0, atol=16 * EPS)


def test_every_point_lies_on_the_marginals_and_the_last_is_the_sample() -> None:
    fitted = Fitted(Cosine(), STAGES)
    grid = Grid.of(fitted.schedule, fitted.grid.times(fitted.schedule, 3))
    rows = list(fitted.rows(grid))
    for row, node in zip(rows, grid[1:], strict=True):
        (move,) = row.moves
        assert row.s == node.t
        # From pure noise with alpha = 0 all signal comes from the estimates.
        assert move.x == pytest.approx(node.sigma, rel=4 * EPS)
        assert math.fsum(move.x0) == pytest.approx(node.alpha, rel=8 * EPS)
        assert move.noise == 0
    assert [row.moves[0].commits for row in rows] == [False, False, True]


def test_the_denoiser_is_told_the_fitted_times() -> None:
    told = []

    class Listening(Denoiser):
        process = Gaussian(Cosine())

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            told.append(t.item())
            return Prediction(torch.zeros_like(x_t))

    fitted = Fitted(Cosine(), STAGES)
    drawn(Listening(), fitted, fitted.grid.times(Cosine(), 3))
    assert told == [0.93, 0.72, 0.15]


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (Cosine(), Trailing().times(Cosine(), 3)),
        (Cosine(), Trailing().times(Cosine(), 4)),
        (RectifiedFlow(), Given((1.0, 0.7, 0.2)).times(RectifiedFlow(), 3)),
        (Cosine(), torch.tensor([1.0, 0.7, 0.2, 0.1], dtype=torch.float64)),
    ],
)
def test_another_grid_number_of_steps_or_schedule_is_refused(schedule: Schedule, times: Tensor) -> None:
    with pytest.raises(ValueError, match=r"that this sampler was fitted on, 3 steps .*Cosine"):
        Fitted(Cosine(), STAGES).table(schedule, times)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fitted(Cosine(), ()), "given times that fall strictly"),
        (lambda: Fitted(Cosine(), (STAGES[1],)), r"1 weights in stages\[0\], not 2"),
        (lambda: Fitted(Cosine(), (STAGES[0], replace(STAGES[1], t=1.0))), "given times that fall strictly"),
        (lambda: Stage(0.5, 0.5, (0.5, 0.6)), "weights whose sum is 1, not 1.1"),
        (lambda: Stage(0.5, 1.5, (1.0,)), r"told in \[0, 1\], not 1.5"),
        (lambda: Given((0.5, 0.7)), "given times that fall strictly"),
        (lambda: Given((1.5, 0.7)), "given times that fall strictly"),
        (lambda: Given((0.5, 0.0)), "given times that fall strictly"),
        (lambda: Given((1.0, 0.5)).times(Cosine(), 3), "steps=2, as many as there are given times, not 3"),
    ],
)
def test_numbers_that_make_no_sampler_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (DDPM(), "a sampler without noise"),
        (DPMSolverPP2M(0.5), "a sampler without noise"),
        (DDPM(Variance.BETA), "a sampler without noise"),
        (Heun(), "given times that fall strictly"),
    ],
)
def test_a_table_that_has_another_form_is_refused(sampler: TableSampler, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fitted.like(sampler, Cosine(), Trailing().times(Cosine(), 4))


def test_a_table_that_ends_above_zero_is_refused() -> None:
    times = LogSNRUniform().times(Cosine(), 5)[:-1]
    with pytest.raises(ValueError, match="times that end at 0"):
        Fitted.like(DDIM(), Cosine(), times)
