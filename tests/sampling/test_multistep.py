"""The tables of the multistep methods against their published algorithms, and their orders."""

import math
from typing import Any

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
    VarianceExploding,
    VariancePreserving,
    linear,
    scaled_linear,
)
from unfog.sampling.adams import Start
from unfog.sampling.grid import Karras, LogSNRUniform, Trailing
from unfog.sampling.multistep import (
    DEIS,
    PNDM,
    Bh,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Interpolation,
    UniPC,
    lms,
)
from unfog.sampling.noise import noises
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.table import Grid, Row, gaussian_moments

RNG = Rng.of(8, 5)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1, torch.tensor([0.4, 0.6], dtype=torch.float64))


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


def run(sampler: TableSampler, schedule: Schedule, times: Tensor) -> Tensor:
    return sample(data(schedule), sampler, times, prior(schedule), rng=RNG)


def scales(schedule: Schedule, times: Tensor) -> list[tuple[float, float]]:
    return list(zip(schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True))


def weights_of(rows: list[Row]) -> list[tuple[float, ...]]:
    return [move.x0 for row in rows for move in row.moves]


# --- DPM-Solver++(2M)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_dpm_solver_pp_2m_is_its_published_update(eta: float) -> None:
    # Lu et al. 2022 (arXiv 2211.01095), algorithm 2, and its SDE form for eta = 1; between them the exact solution for
    # constant x0 of the SDE of Xue et al. 2023 (arXiv 2309.05019), which is both at the ends.
    schedule = VariancePreserving()
    times = Karras(sigma_min=0.02).times(schedule, 12)
    x, denoise = prior(schedule), data(schedule)
    nodes = scales(schedule, times)
    lam = [math.log(a / s) if s > 0 else math.inf for a, s in nodes]
    draws = noises(DPMSolverPP2M(eta).table(schedule, times), x, RNG)
    older: Tensor | None = None
    for i in range(12):
        newest = denoise(x, times[i]).x0
        h = lam[i + 1] - lam[i]
        estimate = newest
        if older is not None and math.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            estimate = (1 + 1 / (2 * r)) * newest - 1 / (2 * r) * older
        (_, s_t), (a_s, s_s) = nodes[i : i + 2]
        damping = math.exp(-(eta**2) * h) if eta > 0 else 1.0
        noise = next(draws, torch.zeros_like(x))
        x = (
            s_s / s_t * damping * x
            - a_s * math.expm1(-(1 + eta**2) * h) * estimate
            + s_s * math.sqrt(1 - damping**2) * noise
        )
        older = newest
    torch.testing.assert_close(run(DPMSolverPP2M(eta), schedule, times), x, rtol=0, atol=1e-12)


def constant_x0(sampler: TableSampler, schedule: Schedule, times: Tensor) -> tuple[float, float, float]:
    """Return what a table makes of the state, of an x0 that stays the same, and the variance of its noise."""
    x, x0, variance = 1.0, 0.0, 0.0
    for row in sampler.table(schedule, times):
        (move,) = row.moves
        x, x0, variance = move.x * x, move.x * x0 + sum(move.x0), move.x**2 * variance + move.noise**2
    return x, x0, variance


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_steps_of_dpm_solver_pp_are_one_long_step_where_x0_stays(eta: float) -> None:
    schedule = VariancePreserving()
    times = schedule.time(torch.tensor([-4.0, -1.0, -0.5, 3.0], dtype=torch.float64))
    many, one = (constant_x0(DPMSolverPP2M(eta), schedule, t) for t in (times, times[[0, -1]]))
    assert many == pytest.approx(one, rel=1e-12)


def test_dpm_solver_pp_starts_again_after_a_step_from_pure_noise() -> None:
    rows = DPMSolverPP2M().table(Cosine(), Trailing().times(Cosine(), 5))
    # The first step has no past, the second's is infinitely long, the last is infinitely long itself.
    assert [len(row.moves[0].x0) for row in rows] == [1, 1, 2, 2, 1]
    rows = DPMSolverPP2M().table(linear(), Trailing().times(linear(), 5))
    assert [len(row.moves[0].x0) for row in rows] == [1, 2, 2, 2, 1]


# --- orders


def error(sampler: TableSampler, steps: int) -> float:
    """Return the error of the variance of Gaussian data, over a fixed interval of log-SNR."""
    schedule = VarianceExploding(2.0)
    times = schedule.time(torch.linspace(-1.0, 4.0, steps + 1, dtype=torch.float64))
    first, last = (schedule.sigma(times[i]).item() ** 2 for i in (0, -1))
    # The prior, N(0, 4), is the marginal of the first time.
    return abs(gaussian_moments(sampler.table(schedule, times), schedule, 0.0, 4.0 - first)[1] - (4.0 - first + last))


def order(sampler: TableSampler) -> float:
    return math.log2(error(sampler, 160) / error(sampler, 320))


@pytest.mark.parametrize(
    "sampler",
    [
        DPMSolverPP3M(),
        *(DPMSolverMultistep(order) for order in (1, 2, 3)),
        *(DEIS(order, variable) for order in (1, 2, 3, 4) for variable in Interpolation),
        *(UniPC(order, bh) for order in (1, 2) for bh in Bh),
        *(UniPC(order, of_noise=True) for order in (1, 2, 3)),
        *(UniPC(order, corrector=False) for order in (1, 2, 3)),
        UniPC(3),
        PNDM(),
        PNDM(runge_kutta=False),
    ],
    ids=repr,
)
def test_the_order_is_what_is_claimed_and_no_more(sampler: TableSampler) -> None:
    assert order(sampler) == pytest.approx(sampler.claimed_order, abs=0.2)


@pytest.mark.parametrize(
    "sampler",
    [
        DPMSolverPP3M(published=True),
        DPMSolverMultistep(3, published=True),
        *(DEIS(order, Interpolation.LOG_SNR, Start.RISING) for order in (3, 4)),
    ],
    ids=repr,
)
def test_published_coefficients_and_a_first_step_of_first_order_leave_order_2(sampler: TableSampler) -> None:
    assert sampler.claimed_order == 2
    assert order(sampler) == pytest.approx(2, abs=0.3)


# --- relations


@pytest.mark.parametrize("schedule", [VariancePreserving(), Cosine(), linear()], ids=lambda s: type(s).__name__)
def test_deis_in_log_snr_is_multistep_dpm_solver(schedule: Schedule) -> None:
    times = Trailing().times(schedule, 9)
    for order in (1, 2, 3):
        deis = DEIS(order, Interpolation.LOG_SNR).table(schedule, times)
        assert deis == DPMSolverMultistep(order).table(schedule, times)


def test_deis_in_time_is_lms_where_sigma_is_the_time() -> None:
    schedule = VarianceExploding()
    times = Karras(sigma_min=0.02).times(schedule, 12)
    # sigma = 80 t from log-SNRs, which have lost a digit or two.
    for a, b in zip(weights_of(DEIS(4).table(schedule, times)), weights_of(lms().table(schedule, times)), strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9)


def test_first_order_is_ddim_in_every_form() -> None:
    schedule = VariancePreserving()
    times = Karras(sigma_min=0.02).times(schedule, 6)
    for sampler in (DPMSolverMultistep(1), DEIS(1), lms(1), UniPC(1, corrector=False)):
        assert all(len(weights) == 1 for weights in weights_of(sampler.table(schedule, times)))


def test_unip_with_b2_is_dpm_solver_pp() -> None:
    schedule = VariancePreserving()
    times = Karras(sigma_min=0.02).times(schedule, 9)
    for found, expected in ((UniPC(2, corrector=False), DPMSolverPP2M()), (UniPC(3, corrector=False), DPMSolverPP3M())):
        pairs = zip(weights_of(found.table(schedule, times)), weights_of(expected.table(schedule, times)), strict=True)
        # At order 3 the start goes through two estimates, where B(h) replaces the integral.
        for a, b in list(pairs)[0 if found.order == 2 else 2 :]:
            assert a == pytest.approx(b, rel=1e-13)


def test_b_of_unipc_matters_only_where_two_estimates_are_combined() -> None:
    schedule = RectifiedFlow(3.0)
    times = Trailing().times(schedule, 8)
    one, two = (UniPC(3, bh).table(schedule, times) for bh in Bh)
    # From alpha = 0 the first step is of first order. The third evaluation corrects the second step and predicts the
    # third, each through two estimates; from the fourth on there are three.
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, False, *[True] * 5]


def test_a_corrected_step_leads_to_its_own_evaluation() -> None:
    schedule = VariancePreserving()
    rows = UniPC(2).table(schedule, Trailing().times(schedule, 5))
    assert [[move.commits for move in row.moves] for row in rows] == [[False], *[[True, False]] * 3, [True, True]]
    assert len(rows) == UniPC(2).evaluations(5) == 5


def test_pndm_evaluates_four_times_in_each_of_its_first_three_steps() -> None:
    schedule = scaled_linear()
    for steps in (1, 2, 3, 4, 9):
        rows = PNDM().table(schedule, Trailing().times(schedule, steps))
        assert len(rows) == PNDM().evaluations(steps) == steps + 3 * min(3, steps - 1)
    middle = [row.t for row in rows[:12]]
    assert middle[1] == middle[2] == pytest.approx(0.5 * (middle[0] + middle[3]), rel=1e-15)


def test_plms_begins_with_a_trapezoidal_step() -> None:
    schedule = scaled_linear()
    times = Trailing().times(schedule, 6)
    rows = PNDM(runge_kutta=False).table(schedule, times)
    assert len(rows) == PNDM(runge_kutta=False).evaluations(6) == 7
    assert [row.t for row in rows[:3]] == [times[0], times[1], times[1]]
    assert PNDM(runge_kutta=False).evaluations(1) == 1


@pytest.mark.parametrize(
    "sampler", [DEIS(4), lms(), DPMSolverMultistep(3), UniPC(3), UniPC(3, Bh.B1, True), PNDM(), PNDM(False)], ids=repr
)
@pytest.mark.parametrize("schedule", [Cosine(), VariancePreserving(0.5, 100.0), linear()], ids=repr)
def test_all_weights_are_finite_and_those_of_the_past_fade(sampler: TableSampler, schedule: Schedule) -> None:
    rows = sampler.table(schedule, LogSNRUniform().times(schedule, 300))
    weights = weights_of(rows)
    assert all(math.isfinite(weight) for combination in weights for weight in combination)
    # Far fewer than the 300 estimates that a history of eps reaches back to.
    assert max(map(len, weights)) < 100


# --- refusals


@pytest.mark.parametrize(
    ("make", "orders"),
    [(DPMSolverMultistep, (0, 4)), (UniPC, (0, 4)), (DEIS, (0, 5)), (lms, (0, 5))],
    ids=["DPMSolverMultistep", "UniPC", "DEIS", "lms"],
)
def test_orders_that_do_not_exist_are_refused(make: Any, orders: tuple[int, ...]) -> None:
    for value in orders:
        with pytest.raises(ValueError, match=rf"expected an order of 1.*, not {value}$"):
            make(value)


@pytest.mark.parametrize("sampler", [DPMSolverMultistep(3), UniPC(3), UniPC(3, corrector=False), DEIS(3)], ids=repr)
def test_an_order_above_the_steps_is_refused(sampler: TableSampler) -> None:
    grid = Grid.of(VariancePreserving(), Trailing().times(VariancePreserving(), 2))
    name = type(sampler).__name__
    expected = rf"^expected at least 3 steps for {name} of order 3, not 2; use a lower order or more steps$"
    with pytest.raises(ValueError, match=expected):
        list(sampler.rows(grid))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_methods_of_one_order_lower_it_on_few_steps(published: bool, steps: int) -> None:
    rows = DPMSolverPP3M(published).table(VariancePreserving(), Trailing().times(VariancePreserving(), steps))
    assert len(rows) == steps
    assert rows[-1].moves[-1].commits


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_beyond_the_unit_interval_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"expected eta in \[0, 1\], not {eta}"):
        DPMSolverPP2M(eta)
