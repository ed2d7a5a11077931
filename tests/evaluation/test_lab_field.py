import math

import pytest
import torch

from unfog.diffusion.parameterization import X0, Eps, V
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, VarianceExploding, VariancePreserving, scaled_linear
from unfog.evaluation.lab.field import Field, Predicting, times_between
from unfog.evaluation.lab.law import directions, exact_quantiles, sliced_distance
from unfog.evaluation.lab.mixture import PRESETS, Component, Mixture

ONE = Mixture((Component((0.3, -0.2), (0.5, 0.2)),))
SCHEDULES = [Cosine(), VariancePreserving(), VarianceExploding(), RectifiedFlow(3.0), scaled_linear()]

by_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda value: type(value).__name__)


def scales(schedule, t):
    return [scale.item() for scale in schedule.scales(torch.tensor(t, dtype=torch.float64))]


# --- mixtures


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Component((0.0, 0.0), (0.2, 0.0)), "std above 0 along both axes"),
        (lambda: Component((0.0, 0.0), weight=-1.0), "a positive weight"),
        (lambda: Component((math.nan, 0.0)), "a finite mean"),
        (lambda: Mixture(()), "at least one component"),
    ],
)
def test_what_is_no_mixture_is_refused(made, told):
    with pytest.raises(ValueError, match=f"expected {told}"):
        made()


def test_the_drawn_data_have_the_moments_of_the_mixture():
    mixture = PRESETS["two-modes"]
    x = mixture.draw(Rng.of(0, 20_000))
    exact = mixture.denoiser(Cosine())
    # Standard errors are below 0.006; a hundred of such tests would see four of them once.
    torch.testing.assert_close(x.mean(0), exact.data_mean, rtol=0, atol=0.025)
    torch.testing.assert_close(x.var(0), exact.data_variance, rtol=0, atol=0.025)


@pytest.mark.parametrize("name", PRESETS)
def test_the_density_is_the_derivative_of_the_distribution(name):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    direction, step = directions()[3], 1e-5
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.8)):
        ends = [PRESETS[name].distribution(direction, x + s, alpha, sigma) for s in (step, -step)]
        difference = (ends[0] - ends[1]) / (2 * step)
        # A central difference errs by the square of the step times a third derivative of up to 1e4.
        torch.testing.assert_close(PRESETS[name].density(direction, x, alpha, sigma), difference, rtol=1e-4, atol=1e-5)


# --- the exact solution


@by_schedule
def test_the_solution_for_gaussian_data_is_the_known_one(schedule):
    # (x - alpha m) / sqrt(alpha^2 v + sigma^2) is constant along the ODE of N(m, v).
    x = torch.tensor([[1.2, -0.4], [-0.3, 0.9]], dtype=torch.float64) * scales(schedule, 1.0)[1]
    times = [1.0, 0.4, 0.1, 0.0]
    found = Field(ONE).solve(schedule, x, times)
    standard = [
        (state - alpha * ONE.means) / (alpha**2 * ONE.stds**2 + sigma**2).sqrt()
        for state, (alpha, sigma) in zip(found, (scales(schedule, t) for t in times), strict=True)
    ]
    for state in standard[1:]:
        # A relative error of 1e-11 in each of a few hundred steps.
        torch.testing.assert_close(state, standard[0], rtol=0, atol=1e-8)


def test_the_solution_is_the_same_curve_on_every_schedule():
    low, high = -3.0, 5.0
    start = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
    ends = []
    for schedule in SCHEDULES:
        first, last = times_between(schedule, low, high, 1).tolist()
        scale = [sum(scales(schedule, t)) for t in (first, last)]
        ends.append(Field(PRESETS["two-modes"]).solve(schedule, start * scale[0], (first, last))[-1] / scale[1])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-9)


def test_a_curve_to_be_looked_at_passes_through_the_solution():
    field, x = Field(PRESETS["two-modes"]), torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
    times = (1.0, 0.6, 0.2, 0.0)
    exact = torch.stack(field.solve(Cosine(), x, times))
    # It is integrated to 1e-7 a step and read off between steps by a polynomial of order 4.
    torch.testing.assert_close(field.curve(Cosine(), x, times), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding()], ids=["cosine", "exploding"])
def test_guidance_at_scale_1_solves_the_field_of_one_component(schedule):
    mixture = PRESETS["three-modes"]
    x = torch.tensor([[0.4, 0.1], [-0.2, 0.7], [0.3, -0.5]], dtype=torch.float64) * scales(schedule, 1.0)[1]
    guided = Field(mixture, 1.0).solve(schedule, x, (1.0, 0.0))[-1]
    for k, component in enumerate(mixture.components):
        alone = Field(Mixture((component,))).solve(schedule, x[[k]], (1.0, 0.0))[-1]
        torch.testing.assert_close(guided[[k]], alone, rtol=0, atol=1e-8)


def test_guidance_at_scale_0_solves_the_whole():
    x = torch.tensor([[0.4, 0.1], [-0.2, 0.7]], dtype=torch.float64)
    whole, unguided = (Field(PRESETS["two-modes"], scale).solve(Cosine(), x, (1.0, 0.0))[-1] for scale in (None, 0.0))
    torch.testing.assert_close(unguided, whole, rtol=0, atol=1e-9)


def test_a_guidance_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="expected a finite guidance scale, not nan"):
        Field(ONE, math.nan)


# --- parameterizations


def test_rounding_reaches_x0_as_much_as_the_parameterization_lets_it():
    schedule, t = VariancePreserving(), torch.tensor(0.9, dtype=torch.float64)
    exact = PRESETS["two-modes"].denoiser(schedule)
    x = torch.tensor([[0.4, 0.1], [-0.2, 0.7]], dtype=torch.float64)
    errors = [
        (Predicting(exact, parameterization, torch.bfloat16)(x, t).x0 - exact(x, t).x0).abs().max().item()
        for parameterization in (X0(), V(), Eps())
    ]
    alpha, sigma = scales(schedule, 0.9)
    assert errors[0] < 2**-8  # the prediction itself, of size below 1
    # An error of eps is one of sigma / alpha times as much of x0, here 59; of v, sigma times.
    assert errors[2] > 5 * errors[0]
    assert errors[2] < 2**-8 * sigma / alpha
    assert errors[1] < 2**-7


def test_a_parameterization_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="expected a prediction that says something at t = 1"):
        Predicting(ONE.denoiser(Cosine()), Eps(), torch.float64)


# --- the interval


def test_a_schedule_that_does_not_reach_over_the_interval_is_refused():
    with pytest.raises(ValueError, match="expected a schedule that reaches from log-SNR -5 to 4"):
        times_between(VarianceExploding(0.5), -5.0, 4.0, 3)


# --- laws


def test_the_quantiles_are_those_of_the_distribution():
    mixture = PRESETS["ring"]
    found = exact_quantiles(mixture, 101, 0.8, 0.1)
    probabilities = (torch.arange(101, dtype=torch.float64) + 0.5) / 101
    for direction, column in zip(directions(), found.T, strict=True):
        torch.testing.assert_close(mixture.distribution(direction, column, 0.8, 0.1), probabilities, rtol=0, atol=1e-9)


def test_the_sliced_distance_of_a_shift_is_its_mean_length():
    quantiles = exact_quantiles(ONE, 400)
    x = ONE.draw(Rng.of(1, 400))
    shift = torch.tensor([30.0, 0.0], dtype=torch.float64)
    found = sliced_distance(x + shift, quantiles, seed=0)
    # |cos| averaged over the sixteen directions; the samples' own distance is below 0.1.
    assert found.value == pytest.approx(30.0 * (directions() @ (shift / 30)).abs().mean().item(), abs=0.1)
    assert found.low <= found.value <= found.high


def test_exact_samples_are_close_and_closer_when_they_are_more():
    distances = [
        sliced_distance(ONE.draw(Rng.of(3, count)), exact_quantiles(ONE, count), seed=0).value
        for count in (100, 10_000)
    ]
    # The distance falls as the root of the count, by 10.
    assert distances[1] < distances[0] / 4
