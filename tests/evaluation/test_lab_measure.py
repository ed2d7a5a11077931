import math

import pytest
import torch

from unfog.diffusion.parameterization import EDM, X0, Eps, V
from unfog.diffusion.schedule import CleanEnd, Cosine, RectifiedFlow, VariancePreserving, scaled_linear
from unfog.evaluation.lab.field import Field, times_between
from unfog.evaluation.lab.measure import INTERVAL, Laboratory, Setup, regressed
from unfog.evaluation.lab.mixture import PRESETS
from unfog.sampling.adaptive import RK45
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M, UniPC


def laboratory(schedule=None, guidance=None, parameterization=None, samples=50, **changed):
    field = Field(PRESETS["two-modes"], guidance)
    parameterization = parameterization or X0()
    return Laboratory(Setup(field, schedule or Cosine(), Trailing(), parameterization, samples=samples, **changed))


@pytest.fixture(scope="module")
def plain():
    return laboratory()


def test_the_path_error_falls_with_the_steps_and_the_jump_with_it(plain):
    result = plain.result("dpmpp", DPMSolverPP2M(), [5, 20])
    errors = [reading.path.value for reading in result.readings]
    assert errors[1] < errors[0] / 4
    jumps = [reading.jump for reading in result.readings]
    assert jumps[1] < jumps[0] / 4
    assert not result.noisy


def test_a_very_accurate_sampler_arrives_at_the_exact_solution(plain):
    # Its tolerance is 1e-9 a step, and it stops at sigma / alpha = 1e-4, whose square is left.
    (reading,) = plain.result("rk45", RK45(1e-9, 1e-9, 1e-4), [10]).readings
    assert reading.path.value < 1e-6


def test_one_step_makes_the_jump_alone(plain):
    (reading,) = plain.result("ddim", DDIM(), [1]).readings
    assert reading.path.value == pytest.approx(reading.jump, rel=1e-9)


def test_evaluations_are_counted(plain):
    asked = [plain.result("", sampler, [4]).readings[0].evaluations for sampler in (DDIM(), Heun(), UniPC(2))]
    assert asked == [4, 7, 4]


@pytest.mark.parametrize(("sampler", "order"), [(DDIM(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_the_measured_order_is_the_claimed_one(sampler, order, guidance):
    found = laboratory(RectifiedFlow(), guidance).order(sampler, [40, 80, 160], noisy=False)
    assert found.claimed == order
    assert found.slope == pytest.approx(order, abs=0.2)
    assert found.of == "path"
    assert len(found.errors) == len(found.evaluations) == 3


@pytest.mark.parametrize("sampler", [DDPM(), DPMSolverPP2M(1.0)])
def test_the_order_of_a_sampler_with_noise_is_that_of_the_variance(plain, sampler):
    found = plain.order(sampler, [40, 80, 160], noisy=plain.is_noisy(sampler))
    assert found.of == "variance"
    assert found.slope == pytest.approx(sampler.order, abs=0.2)


def test_a_sampler_with_noise_has_a_law_and_no_path(plain):
    result = plain.result("ddpm", DDPM(), [5, 50])
    assert result.noisy
    assert all(reading.path is None and reading.jump is None for reading in result.readings)
    assert result.readings[1].law.value < result.readings[0].law.value


def test_what_a_sampler_refuses_is_told_and_the_rest_is_measured(plain):
    result = plain.result("unipc", UniPC(3), [2, 5])
    assert [reading.steps for reading in result.readings] == [5]
    assert [refusal.steps for refusal in result.refusals] == [2]
    assert "at least 3 steps" in result.refusals[0].reason


def test_an_order_is_not_measured_where_the_schedule_does_not_reach():
    # Stable Diffusion's first level is at log-SNR 7, but the last is no lower than -5.3: the interval fits; not here.
    lab = laboratory(VariancePreserving(0.01, 0.5))
    assert lab.order(DDIM(), [10, 20], noisy=False).slope is None


def test_there_is_no_jump_on_a_schedule_that_ends_with_noise():
    lab = laboratory(scaled_linear(clean=CleanEnd.FIRST_LEVEL))
    (reading,) = lab.result("ddim", DDIM(), [20]).readings
    assert reading.jump is None
    assert reading.path.value < 0.1


def test_the_parameterization_makes_no_difference_in_float64_and_does_in_bfloat16():
    schedule, times = VariancePreserving(), Trailing().times(VariancePreserving(), 5)
    ends = {}
    for parameterization in (Eps(), V(), EDM()):
        for dtype in (torch.float64, torch.bfloat16):
            lab = laboratory(schedule, parameterization=parameterization, dtype=dtype)
            run = lab.run(DDIM(), times, lab.setup.prior(50))
            ends[type(parameterization), dtype] = run.steps[-1].x
    exact = ends[Eps, torch.float64]
    for kind in (V, EDM):
        # eps at alpha = 0.0066 costs two digits of sixteen.
        torch.testing.assert_close(ends[kind, torch.float64], exact, rtol=0, atol=1e-11)
    assert (ends[Eps, torch.bfloat16] - exact).norm(dim=1).mean() > 1e-3


def test_guided_samples_have_the_law_of_their_own_limit():
    lab = laboratory(guidance=3.0, samples=400)
    assert lab.floor() is None
    for sampler in (DDIM(), DDPM()):
        (reading,) = lab.result("", sampler, [100]).readings
        # Two sets of 400 samples of a spread of 0.3 differ by about 0.03.
        assert reading.law.value < 0.1


def test_the_interval_begins_with_the_exact_marginal():
    lab = laboratory(samples=200)
    t = times_between(Cosine(), *INTERVAL, 1)[0].item()
    alpha, sigma = (scale.item() for scale in Cosine().scales(torch.tensor(t, dtype=torch.float64)))
    start, data = lab.start(), lab.setup.field.mixture.denoiser(Cosine())
    # A standard error is 0.07.
    torch.testing.assert_close(start.mean(0), alpha * data.data_mean, rtol=0, atol=0.3)
    torch.testing.assert_close(start.var(0), alpha**2 * data.data_variance + sigma**2, rtol=0, atol=0.4)


def test_the_same_seed_gives_the_same_numbers():
    first, second = (laboratory(seed=4).result("", DDPM(), [4]).readings[0].law for _ in range(2))
    assert first == second


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="expected at least 50 samples"):
        laboratory(samples=10)


# --- regression


def test_a_power_is_found_with_no_error():
    slope, spread = regressed([(n, 3.0 * n**-2.5) for n in (10, 20, 40, 80)])
    assert slope == pytest.approx(2.5, abs=1e-12)
    assert spread == pytest.approx(0.0, abs=1e-12)


def test_two_points_have_a_slope_and_no_standard_error():
    slope, spread = regressed([(10, 1e-2), (20, 5e-3)])
    assert slope == pytest.approx(1.0)
    assert spread is None


def test_errors_below_the_floor_are_left_out():
    assert regressed([(10, 1e-4), (20, 2.5e-5), (40, 1e-12)])[0] == pytest.approx(2.0)
    assert regressed([(10, 1e-4), (20, 1e-12)]) == (None, None)


def test_the_standard_error_grows_with_the_scatter():
    smooth, rough = (
        regressed([(n, n**-1.0 * math.exp(wave * (-1) ** k)) for k, n in enumerate((10, 20, 40, 80))])[1]
        for wave in (0.01, 0.1)
    )
    assert rough == pytest.approx(10 * smooth, rel=1e-9)
