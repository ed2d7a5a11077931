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
    linear,
    scaled_linear,
)
from unfog.sampling.adaptive import RK45
from unfog.sampling.grid import Karras, Trailing
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.sampler import sample

RNG = Rng.of(3, 4)
SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]
FINE = RK45(1e-10, 1e-10, 1e-5, 100_000)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1)


def noise(schedule: Schedule, rng: Rng = RNG) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=rng, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_gaussian_data_come_out_as_the_exact_solution_has_them(schedule: Schedule) -> None:
    # x_t - alpha_t m keeps its place in units of the standard deviation sqrt(alpha_t^2 v + sigma_t^2).
    mean, v = torch.tensor([0.3, -0.5], dtype=torch.float64), 0.2
    denoiser, x = analytic.gaussian(Gaussian(schedule), mean, v), noise(schedule)
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = schedule.scales(one)
    expected = mean + (x - alpha * mean) * (v / (alpha**2 * v + sigma**2)).sqrt()
    found = sample(denoiser, FINE, Trailing().times(schedule, 3), x, rng=RNG)
    # The last step loses (sigma / alpha)^2 / (2 v) of a state: 1e-5 squared, and on a table its first level's 1e-2.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if schedule == linear() else 1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_default_is_as_accurate_as_it_says(schedule: Schedule) -> None:
    x, times = noise(schedule), Trailing().times(schedule, 3)
    fine, coarse = (sample(data(schedule), sampler, times, x, rng=RNG) for sampler in (FINE, RK45()))
    # Errors of 1e-5 a step, over ten steps, grow where paths part.
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-3)


def test_only_the_ends_of_the_grid_bear_on_the_result() -> None:
    schedule = VariancePreserving()
    grids = [Trailing().times(schedule, 1), Trailing().times(schedule, 37), Karras().times(schedule, 10)]
    results = [sample(data(schedule), RK45(), times, noise(schedule), rng=RNG) for times in grids]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_previews_lie_on_the_trajectory() -> None:
    schedule = Cosine()
    times = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64)
    seen = list(RK45(1e-8, 1e-8).steps(data(schedule), noise(schedule), times, rng=RNG))
    for k in (1, 2):
        until = times[[0, k]]
        alone = sample(data(schedule), FINE, until, noise(schedule), rng=RNG)
        # The continuous solution between the steps is of order 4.
        torch.testing.assert_close(seen[k - 1].x, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(seen[k - 1].x0, data(schedule)(alone, times[k]).x0, rtol=0, atol=1e-3)
    assert torch.equal(seen[-1].x, seen[-1].x0)


def test_it_goes_on_from_where_the_noise_is_less() -> None:
    schedule = VariancePreserving()
    whole = list(FINE.steps(data(schedule), noise(schedule), Trailing().times(schedule, 2), rng=RNG))
    rest = sample(data(schedule), FINE, torch.tensor([0.5, 0.0], dtype=torch.float64), whole[0].x, rng=RNG)
    torch.testing.assert_close(rest, whole[1].x, rtol=0, atol=1e-6)


def test_from_below_its_last_noise_one_step_is_left() -> None:
    schedule = RectifiedFlow()
    times = torch.tensor([4e-4, 2e-4, 0.0], dtype=torch.float64)
    seen = list(RK45().steps(data(schedule), noise(schedule), times, rng=RNG))
    x0 = data(schedule)(noise(schedule), times[0]).x0
    torch.testing.assert_close(seen[1].x, x0, rtol=0, atol=1e-12)
    # alpha + sigma is 1: half the noise is half the way.
    torch.testing.assert_close(seen[0].x, torch.lerp(x0, noise(schedule), 0.5), rtol=0, atol=1e-12)


def test_a_grid_that_ends_with_noise_keeps_it() -> None:
    schedule = scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    point = torch.tensor([0.4, -0.3], dtype=torch.float64)
    x = noise(schedule)
    found = sample(analytic.point_mass(Gaussian(schedule), point), RK45(), Trailing().times(schedule, 5), x, rng=RNG)
    (alpha_0, alpha_1), (sigma_0, sigma_1) = schedule.scales(torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = alpha_0 * point + sigma_0 / sigma_1 * (x - alpha_1 * point)
    # Straight lines in flow time: the method is exact, and the time is found from a log-SNR.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_guided_samples_that_arrive_early_leave_the_others_alone() -> None:
    schedule = VariancePreserving()
    label = torch.tensor([0, 1, 2, 0])
    null = torch.full((4,), 3)
    times = Trailing().times(schedule, 2)
    guided = ClassifierFree(data(schedule), 2.0, {"label": null})
    together = sample(guided, RK45(), times, noise(schedule), {"label": label}, rng=RNG)
    for k in range(4):
        one = ClassifierFree(data(schedule), 2.0, {"label": null[:1]})
        x = noise(schedule)[k : k + 1]
        alone = sample(one, RK45(), times, x, {"label": label[k : k + 1]}, rng=RNG[k : k + 1])
        torch.testing.assert_close(alone, together[k : k + 1], rtol=0, atol=1e-10)


def test_a_budget_that_is_too_small_is_refused_by_name() -> None:
    schedule = VariancePreserving()
    with pytest.raises(FloatingPointError, match="max_evaluations is 20"):
        sample(data(schedule), RK45(max_evaluations=20), Trailing().times(schedule, 2), noise(schedule), rng=RNG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": -1e-3}, r"rtol and atol in \[0, 1\)"),
        ({"rtol": 0.0, "atol": 0.0}, "rtol or atol above 0"),
        ({"sigma_min": 0.0}, r"sigma_min in \(0, 1\), not 0.0"),
        ({"max_evaluations": 7}, "max_evaluations of at least 8"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RK45(**settings)  # type: ignore[arg-type]
