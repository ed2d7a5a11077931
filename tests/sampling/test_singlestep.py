"""The tables of the singlestep methods against their published algorithms, written out step by step."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    cosine,
    linear,
    scaled_linear,
)
from unfog.sampling.gaussian import DDIM, Heun, Variable
from unfog.sampling.grid import Karras, Trailing
from unfog.sampling.noise import noises
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.singlestep import RK4, DPMSolver, DPMSolverPP, DPMSolverPPSDE, EDMChurn
from unfog.sampling.table import Row, gaussian_moments

RNG = Rng.of(8, 5)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1, torch.tensor([0.4, 0.6], dtype=torch.float64))


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


def times_of(schedule: Schedule, steps: int = 9) -> Tensor:
    return Karras(sigma_min=0.02).times(schedule, steps)


def run(sampler: TableSampler, schedule: Schedule) -> Tensor:
    return sample(data(schedule), sampler, times_of(schedule), prior(schedule), rng=RNG)


def draws(sampler: TableSampler, schedule: Schedule) -> Iterator[Tensor]:
    return noises(sampler.table(schedule, times_of(schedule)), prior(schedule), RNG)


class Rescaled:
    """What papers call D(y; sigma): the denoiser of y = x / alpha at a level, here sigma / alpha."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.denoise = schedule, data(schedule)

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        t = self.schedule.time(torch.tensor(-2.0 * math.log(sigma), dtype=torch.float64))
        x0: Tensor = self.denoise(y * self.schedule.alpha(t), t).x0
        return x0

    def eps(self, y: Tensor, sigma: float) -> Tensor:
        return (y - self(y, sigma)) / sigma


def solved(schedule: Schedule, step: Callable[[Rescaled, Tensor, float, float], Tensor]) -> Tensor:
    """Go from level to level in y by a published step, and to sigma = 0 by Euler's."""
    denoise, y = Rescaled(schedule), prior(schedule) / schedule.alpha(torch.ones((), dtype=torch.float64))
    levels = torch.exp(-0.5 * schedule.log_snr(times_of(schedule))).tolist()
    for t, s in pairwise(levels):
        y = step(denoise, y, t, s) if s > 0 else denoise(y, t)
    return y


with_alpha = pytest.mark.parametrize(
    "schedule", [VariancePreserving(), VarianceExploding(), linear()], ids=lambda schedule: type(schedule).__name__
)
# In y published forms round states of size 150, and weights of up to 1e2 on differences of estimates multiply that.
CLOSE = {"rtol": 0.0, "atol": 1e-10}


# --- Runge-Kutta


def classical(slope: Callable[[Tensor, float], Tensor], y: Tensor, t: float, s: float) -> Tensor:
    middle, h = 0.5 * (t + s), s - t
    k1 = slope(y, t)
    k2 = slope(y + 0.5 * h * k1, middle)
    k3 = slope(y + 0.5 * h * k2, middle)
    k4 = slope(y + h * k3, s)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@with_alpha
def test_rk4_is_the_classical_method_in_sigma(schedule: Schedule) -> None:
    expected = solved(schedule, lambda denoise, y, t, s: classical(denoise.eps, y, t, s))
    torch.testing.assert_close(run(RK4(), schedule), expected, **CLOSE)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), RectifiedFlow(3.0)], ids=repr)
def test_rk4_in_flow_time_is_the_classical_method_on_the_velocity(schedule: RectifiedFlow) -> None:
    # From pure noise with alpha = 0 on, whichever the variable is, the first step is made in flow time.
    times = Trailing().times(schedule, 6)
    x, denoise = prior(schedule), data(schedule)

    def velocity(x: Tensor, tau: float) -> Tensor:
        t = torch.tensor(tau / (tau + schedule.shift * (1 - tau)), dtype=torch.float64)
        return (x - denoise(x, t).x0) / tau

    for tau, following in pairwise(schedule.sigma(times).tolist()):
        x = classical(velocity, x, tau, following) if following > 0 else x - tau * velocity(x, tau)
    found = sample(denoise, RK4(Variable.FLOW), times, prior(schedule), rng=RNG)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", [Cosine(), cosine()], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize(("method", "each"), [(RK4, 4), (Heun, 2)])
def test_runge_kutta_leaves_pure_noise_in_flow_time(schedule: Schedule, method: type[RK4 | Heun], each: int) -> None:
    # The clipped cosine betas begin at sigma / alpha = 20291: as good as infinite.
    times = Trailing().times(schedule, 4)
    sigma, flow = (method(variable).table(schedule, times) for variable in (Variable.SIGMA, Variable.FLOW))
    assert sigma[:each] == flow[:each]
    assert sigma[each:] != flow[each:]


# --- DPM-Solver, with t = -log(sigma / alpha) as in its papers


def dpm_solver(order: int, denoise: Rescaled, y: Tensor, t: float, s: float) -> Tensor:
    """Lu et al. 2022 (arXiv 2206.00927), algorithms 1 and 2, divided by alpha, which is sigma = e^-lambda there."""
    h, r1, r2 = math.log(t / s), (0.5 if order == 2 else 1 / 3), 2 / 3
    noise = denoise.eps(y, t)
    if order == 1:
        return y - s * math.expm1(h) * noise
    level = t * math.exp(-r1 * h)
    first = denoise.eps(y - level * math.expm1(r1 * h) * noise, level)
    if order == 2:
        return y - s * math.expm1(h) * noise - s / (2 * r1) * math.expm1(h) * (first - noise)
    level, x = t * math.exp(-r2 * h), r2 * h
    middle = y - level * math.expm1(x) * noise - level * r2 / r1 * (math.expm1(x) / x - 1) * (first - noise)
    second = denoise.eps(middle, level)
    return y - s * math.expm1(h) * noise - s / r2 * (math.expm1(h) / h - 1) * (second - noise)


def dpm_solver_pp(order: int, denoise: Rescaled, y: Tensor, t: float, s: float) -> Tensor:
    """Lu et al. 2022 (arXiv 2211.01095), algorithm 1, divided by alpha; order 3 after the authors' code."""
    h, r1, r2 = math.log(t / s), (0.5 if order == 2 else 1 / 3), 2 / 3
    x0 = denoise(y, t)
    if order == 1:
        return s / t * y - math.expm1(-h) * x0
    level = t * math.exp(-r1 * h)
    first = denoise(level / t * y - math.expm1(-r1 * h) * x0, level)
    if order == 2:
        return s / t * y - math.expm1(-h) * ((1 - 1 / (2 * r1)) * x0 + 1 / (2 * r1) * first)
    level, x = t * math.exp(-r2 * h), r2 * h
    middle = level / t * y - math.expm1(-x) * x0 + r2 / r1 * (math.expm1(-x) / x + 1) * (first - x0)
    second = denoise(middle, level)
    return s / t * y - math.expm1(-h) * x0 + 1 / r2 * (math.expm1(-h) / h + 1) * (second - x0)


PUBLISHED: dict[type[DPMSolver | DPMSolverPP], Any] = {DPMSolver: dpm_solver, DPMSolverPP: dpm_solver_pp}
both_solvers = pytest.mark.parametrize("solver", PUBLISHED)


@with_alpha
@both_solvers
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_solver_is_its_published_step(schedule: Schedule, solver: type[DPMSolver], order: int) -> None:
    expected = solved(schedule, lambda denoise, y, t, s: PUBLISHED[solver](order, denoise, y, t, s))
    torch.testing.assert_close(run(solver(order), schedule), expected, **CLOSE)


@with_alpha
@both_solvers
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_an_ancestral_solver_goes_down_and_adds_noise(
    schedule: Schedule, solver: type[DPMSolver], order: int, eta: float
) -> None:
    # k-diffusion's "Euler a", "DPM2 a" and "DPM++ 2S a": the noise is eta times the posterior's, and the solver goes to
    # the level from which it leads to the next one. At order 1 both are Euler's method.
    noise = draws(solver(order, eta), schedule)

    def step(denoise: Rescaled, y: Tensor, t: float, s: float) -> Tensor:
        up = eta * s * math.sqrt(1 - (s / t) ** 2)
        return PUBLISHED[solver](order, denoise, y, t, math.sqrt(s**2 - up**2)) + up * next(noise)

    torch.testing.assert_close(run(solver(order, eta), schedule), solved(schedule, step), **CLOSE)


@with_alpha
def test_the_sde_form_draws_both_its_noises_from_one_path(schedule: Schedule) -> None:
    # k-diffusion's "DPM++ SDE" with r = 1/2: ancestral steps from t to the middle and, with its estimate, to s.
    sampler = DPMSolverPPSDE()
    noise = draws(sampler, schedule)

    def ancestral(y: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
        up = s * math.sqrt(1 - (s / t) ** 2)
        down = math.sqrt(s**2 - up**2)
        return down / t * y + (1 - down / t) * x0 + up * next(noise)

    def step(denoise: Rescaled, y: Tensor, t: float, s: float) -> Tensor:
        middle = math.sqrt(t * s)
        return ancestral(y, denoise(ancestral(y, denoise(y, t), t, middle), middle), t, s)

    torch.testing.assert_close(run(sampler, schedule), solved(schedule, step), **CLOSE)
    for first, second in zip(*[iter(sampler.table(schedule, times_of(schedule))[:-1])] * 2, strict=True):
        (halfway,), (whole,) = first.moves, second.moves
        assert halfway.span is not None
        assert whole.span is not None
        assert halfway.span[0] == whole.span[0]
        assert sum(whole.span) / 2 == pytest.approx(halfway.span[1], rel=1e-9, abs=1e-12)


def independent(rows: list[Row]) -> list[Row]:
    return [row._replace(moves=tuple(move._replace(span=None) for move in row.moves)) for row in rows]


@pytest.mark.parametrize(("change", "low", "high"), [(list, 1.8, 2.2), (independent, 0.8, 1.2)])
def test_the_order_of_the_sde_form_rests_on_the_one_path(
    change: Callable[[list[Row]], list[Row]], low: float, high: float
) -> None:
    schedule = VarianceExploding(2.0)
    errors = []
    for steps in (128, 256):
        times = schedule.time(torch.linspace(-1.0, 4.0, steps + 1, dtype=torch.float64))
        first, last = schedule.sigma(times[[0, -1]]).square().tolist()
        rows = change(DPMSolverPPSDE().table(schedule, times))
        errors.append(abs(gaussian_moments(rows, schedule, 0.0, 4.0 - first)[1] - (4.0 - first + last)))
    assert low < math.log2(errors[0] / errors[1]) < high


@both_solvers
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_order_1_is_ddim(solver: type[DPMSolver], eta: float) -> None:
    for schedule in (VariancePreserving(), linear(), scaled_linear(clean=CleanEnd.FIRST_LEVEL)):
        times = Trailing().times(schedule, 7)
        assert solver(1, eta).table(schedule, times) == DDIM(eta).table(schedule, times)


def test_without_noise_the_sde_form_is_the_ode_form() -> None:
    times = times_of(VariancePreserving())
    sde, ode = (s.table(VariancePreserving(), times) for s in (DPMSolverPPSDE(0.0), DPMSolverPP(2)))
    for one, other in zip(sde, ode, strict=True):
        assert one.t == pytest.approx(other.t, rel=1e-12)
        # The solver has a weight of 0 on the estimate before the newest.
        assert (one.moves[0].x, one.moves[0].x0[0]) == pytest.approx((other.moves[0].x, other.moves[0].x0[0]), rel=1e-9)
        assert not any(one.moves[0].x0[1:] + other.moves[0].x0[1:])


@pytest.mark.parametrize("h", [1e-7, 1e-3, 0.0099, 0.0101, 0.3, 4.0])
def test_the_weights_of_order_3_hold_their_digits_at_any_step(h: float) -> None:
    # The centre of [0, 1] under e^(x u), by its series; the end of DPM-Solver++ has x = h and 3/2 times the centre.
    terms = [h**k / math.factorial(k) for k in range(60)]
    centre = math.fsum(a / (k + 2) for k, a in enumerate(terms)) / math.fsum(a / (k + 1) for k, a in enumerate(terms))
    schedule = VarianceExploding()
    times = schedule.time(torch.tensor([-1.0, -1.0 + 2 * h], dtype=torch.float64))
    weights = DPMSolverPP(3).table(schedule, times)[-1].moves[0].x0
    # Log-SNRs of size 1 keep 16 digits, their difference h the fewer the smaller it is.
    tolerance = 1e-13 + 1e-15 / h * 1e-1
    assert weights[0] / sum(weights) == pytest.approx(1.5 * centre, abs=tolerance)


@both_solvers
def test_with_all_its_noise_an_ancestral_step_evaluates_at_its_end(solver: type[DPMSolver]) -> None:
    rows = solver(2, 1.0).table(linear(), Trailing().times(linear(), 30))
    for first, second in zip(*[iter(rows[:-1])] * 2, strict=True):
        assert first.s == second.t
        assert second.t == pytest.approx(second.s, rel=1e-9)
        assert second.t >= second.s


@pytest.mark.parametrize("sampler", [DPMSolver(2, 1.0), DPMSolverPP(2, 0.5), DPMSolverPPSDE()], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), cosine()], ids=lambda schedule: type(schedule).__name__)
def test_a_step_from_pure_noise_injects_none(sampler: TableSampler, schedule: Schedule) -> None:
    rows = sampler.table(schedule, Trailing().times(schedule, 4))
    assert [any(move.noise > 0 for move in row.moves) for row in rows[:4]] == [
        False,
        False,
        sampler == DPMSolverPPSDE(),
        True,
    ]
    assert all(math.isfinite(number) for row in rows for move in row.moves for number in (move.x, *move.x0))


COUNTS = [
    (RK4(), 4),
    (DPMSolver(1), 1),
    (DPMSolver(2), 2),
    (DPMSolver(3), 3),
    (DPMSolverPP(3), 3),
    (DPMSolverPPSDE(), 2),
    (EDMChurn(), 2),
    (EDMChurn(heun=False), 1),
    (Heun(), 2),
]


@pytest.mark.parametrize(("sampler", "each"), COUNTS, ids=repr)
@pytest.mark.parametrize("clean", CleanEnd)
def test_each_step_evaluates_as_often_but_that_to_the_end_of_time(
    sampler: TableSampler, each: int, clean: CleanEnd
) -> None:
    schedule = scaled_linear(clean=clean)
    times = Trailing().times(schedule, 5)
    commits = [move.commits for row in sampler.table(schedule, times) for move in row.moves]
    assert commits == ([False] * (each - 1) + [True]) * 4 + [True]
    assert len(commits) == sampler.evaluations(5)
    assert len(sampler.table(schedule, times[:-1])) == 4 * each


@pytest.mark.parametrize("sampler", [sampler for sampler, _ in COUNTS], ids=repr)
def test_one_step_to_the_end_of_time_is_eulers(sampler: TableSampler) -> None:
    for schedule in (VariancePreserving(), Cosine()):
        (row,) = sampler.table(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64))
        assert row == DDIM().table(schedule, torch.tensor([1.0, 0.0]))[0]


# --- churn


@with_alpha
@pytest.mark.parametrize("sampler", [EDMChurn(2.0), EDMChurn(), EDMChurn(3.0, 0.3, 20.0, 1.007, heun=False)], ids=repr)
def test_churn_is_algorithm_2_of_edm(schedule: Schedule, sampler: EDMChurn) -> None:
    # Karras et al. 2022 (arXiv 2206.00364), algorithm 2, with sigma / alpha for its sigma; below the first level.
    noise = draws(sampler, schedule)

    def step(denoise: Rescaled, y: Tensor, t: float, s: float) -> Tensor:
        within = sampler.sigma_min <= t <= sampler.sigma_max and t < first
        gamma = min(sampler.churn / 9, math.sqrt(2) - 1) if within else 0.0
        hat = min(t + gamma * t, first)
        if hat > t:
            y = y + math.sqrt(hat**2 - t**2) * sampler.noise * next(noise)
        d = (y - denoise(y, hat)) / hat
        following = y + (s - hat) * d
        if s == 0 or not sampler.heun:
            return following
        return y + (s - hat) * (0.5 * d + 0.5 * (following - denoise(following, s)) / s)

    denoise, y = Rescaled(schedule), prior(schedule) / schedule.alpha(torch.ones((), dtype=torch.float64))
    levels = torch.exp(-0.5 * schedule.log_snr(times_of(schedule))).tolist()
    first = levels[0]
    for t, s in pairwise(levels):
        y = step(denoise, y, t, s)
    torch.testing.assert_close(run(sampler, schedule), y, **CLOSE)


@pytest.mark.parametrize("heun", [True, False])
def test_churn_of_0_is_the_method_it_surrounds(heun: bool) -> None:
    times = times_of(VariancePreserving())
    plain = Heun() if heun else DDIM()
    assert EDMChurn(0.0, heun=heun).table(VariancePreserving(), times) == plain.table(VariancePreserving(), times)


def test_the_noise_is_raised_by_at_most_the_root_of_2_and_only_within_the_window() -> None:
    schedule = VariancePreserving()
    times = times_of(schedule, 20)
    rows = EDMChurn(1e6, 0.1, 10.0, heun=False).table(schedule, times)
    levels, raised = (
        torch.exp(-0.5 * schedule.log_snr(torch.as_tensor(at, dtype=torch.float64)))
        for at in (times[:-1], [row.t for row in rows])
    )
    within = (levels >= 0.1) & (levels <= 10.0)
    assert within.any()
    assert not within.all()
    torch.testing.assert_close(raised, torch.where(within, math.sqrt(2) * levels, levels), rtol=1e-12, atol=0)
    assert [row.before is not None for row in rows] == within.tolist()


def test_the_noise_is_raised_no_higher_than_the_schedule_goes() -> None:
    schedule = VarianceExploding(80.0)
    levels = torch.tensor([80.0, 70.0, 20.0, 1.0], dtype=torch.float64)
    rows = EDMChurn(1e6, 0.05, 100.0, heun=False).table(schedule, levels / 80.0)
    assert rows[0].before is None
    assert [80.0 * row.t for row in rows] == pytest.approx([80.0, 80.0, 20.0 * math.sqrt(2)], rel=1e-14)
    assert rows[1].before is not None
    assert rows[1].before.noise == pytest.approx(math.sqrt(80.0**2 - 70.0**2), rel=1e-12)
    (start,) = EDMChurn().table(Cosine(), torch.tensor([1.0, 0.5], dtype=torch.float64))[:1]
    assert start.before is None


def test_raised_noise_is_shared_with_no_other_and_scales_with_its_factor() -> None:
    tables = [EDMChurn(noise=noise).table(linear(), times_of(linear())) for noise in (1.0, 1.1)]
    assert any(row.before for row in tables[0])
    for plain, louder in zip(*tables, strict=True):
        assert plain._replace(before=None) == louder._replace(before=None)
        if plain.before and louder.before:
            assert plain.before.span is None
            assert louder.before == plain.before._replace(noise=louder.before.noise)
            assert louder.before.noise == pytest.approx(1.1 * plain.before.noise, rel=1e-14)


def test_no_order_is_claimed_for_noise_that_does_not_keep_the_marginals() -> None:
    samplers = EDMChurn(), EDMChurn(heun=False), EDMChurn(noise=1.003)
    assert [sampler.claimed_order for sampler in samplers] == [2, 1, 0]


# --- refusals


@both_solvers
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 0}, "expected order 1, 2 or 3, not 0"),
        ({"order": 4}, "expected order 1, 2 or 3, not 4; RK4 has order 4"),
        ({"eta": -0.1}, r"expected eta in \[0, 1\], not -0.1"),
        ({"eta": math.nan}, r"expected eta in \[0, 1\], not nan"),
        ({"order": 3, "eta": 0.5}, "expected order 1 or 2 with eta 0.5, not 3; order 3 wants eta 0"),
    ],
)
def test_settings_out_of_range_are_refused(solver: type[DPMSolver], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver(**settings)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_of_the_sde_form_beyond_the_unit_interval_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"expected eta in \[0, 1\], not {eta}"):
        DPMSolverPPSDE(eta)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"churn": -1.0}, "expected churn of at least 0, not -1.0; 0 raises no noise"),
        ({"churn": math.inf}, "expected churn of at least 0, not inf"),
        ({"sigma_min": -1.0}, "expected 0 <= sigma_min <= sigma_max, not -1.0, 50.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "expected 0 <= sigma_min <= sigma_max, not 2.0, 1.0"),
        ({"noise": -0.5}, "expected noise of at least 0, not -0.5; 1 keeps the marginals"),
    ],
)
def test_churn_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMChurn(**settings)  # type: ignore[arg-type]
