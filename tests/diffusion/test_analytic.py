"""The exact denoisers against numerical integration and Tweedie's formula."""

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving

MEANS = torch.tensor([[-1.0], [0.3], [1.4]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.05], [0.2], [0.01]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
SCHEDULES = [VariancePreserving(), RectifiedFlow(), VarianceExploding(10.0)]


def mixture(schedule: Schedule) -> analytic.Analytic:
    return analytic.mixture(Gaussian(schedule), MEANS, VARIANCES, WEIGHTS)


def gaussian_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * torch.pi * variance).sqrt()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_the_estimate_is_the_posterior_mean_by_quadrature(schedule: Schedule, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * (alpha + sigma)
    # Equidistant sums of analytic functions that vanish at both ends converge faster than any power.
    x0 = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    prior = (WEIGHTS[:, None] / WEIGHTS.sum() * gaussian_density(x0, MEANS, VARIANCES)).sum(0)
    joint = prior * gaussian_density(x_t, alpha * x0, sigma**2)
    torch.testing.assert_close(
        mixture(schedule)(x_t, time).x0[:, 0], (joint * x0).sum(1) / joint.sum(1), rtol=1e-9, atol=1e-9
    )
    density = joint.sum(1) * (x0[1] - x0[0])
    torch.testing.assert_close(mixture(schedule).log_density(x_t, time), density.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_tweedies_formula_holds_in_several_dimensions(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    means, variances = (
        torch.randn(4, 2, 3, generator=generator, dtype=torch.float64),
        0.1 + torch.rand(4, 2, 3, generator=generator, dtype=torch.float64),
    )
    data = analytic.mixture(Gaussian(schedule), means, variances)
    t = torch.tensor([0.1, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    alpha, sigma = (f(t)[:, None, None] for f in (schedule.alpha, schedule.sigma))
    x_t = (sigma * torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    score = torch.autograd.grad(data.log_density(x_t, t).sum(), x_t)[0]
    # alpha E[x0 | x_t] = x_t + sigma^2 score; both sides are of size 10 at most.
    torch.testing.assert_close(alpha * data(x_t.detach(), t).x0, x_t.detach() + sigma**2 * score, rtol=0, atol=1e-12)


def test_a_point_is_known_whatever_the_state() -> None:
    point = torch.tensor([0.2, -0.7], dtype=torch.float64)
    data = analytic.point_mass(Gaussian(Cosine()), point)
    for t in (1e-8, 0.5, 1.0):
        x_t = torch.tensor([[5.0, -3.0]], dtype=torch.float64)
        assert torch.equal(data(x_t, torch.tensor(t, dtype=torch.float64)).x0, point[None])


def test_a_gaussian_has_the_linear_estimate() -> None:
    schedule, t = VariancePreserving(), torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    data = analytic.gaussian(Gaussian(schedule), torch.tensor([0.5], dtype=torch.float64), 0.3)
    x_t = torch.tensor([[1.7]], dtype=torch.float64)
    expected = 0.5 + alpha * 0.3 / (alpha**2 * 0.3 + sigma**2) * (x_t - alpha * 0.5)
    torch.testing.assert_close(data(x_t, t).x0, expected, rtol=1e-15, atol=0)


def test_a_finite_set_is_averaged_by_its_distances() -> None:
    # Karras et al. 2022 (arXiv 2206.00364), eq. 57.
    points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
    data = analytic.empirical(Gaussian(VarianceExploding(2.0)), points)
    x = torch.tensor([[0.4, 0.2]], dtype=torch.float64)
    weight = torch.exp(-0.5 * ((x - points) ** 2).sum(1) / 1.0**2)
    torch.testing.assert_close(data(x, torch.tensor(0.5).double()).x0[0], weight @ points / weight.sum())


def test_the_clean_state_is_its_own_estimate() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    x0 = torch.tensor([[0.31]], dtype=torch.float64)
    torch.testing.assert_close(mixture(Cosine())(x0, zero).x0, x0)


def test_far_states_do_not_overflow() -> None:
    for x in (1e3, -1e150):
        x0 = mixture(Cosine())(torch.tensor([[x]], dtype=torch.float64), torch.tensor(0.1).double()).x0
        assert x0.isfinite().all()


def test_a_label_selects_a_component_and_the_one_past_the_last_selects_all() -> None:
    data, t = mixture(Cosine()), torch.tensor(0.6, dtype=torch.float64)
    x_t = torch.full((4, 1), 0.2, dtype=torch.float64)
    labelled = data(x_t, t, {"label": torch.tensor([0, 1, 2, 3])}).x0
    for k in range(3):
        alone = analytic.gaussian(data.process, MEANS[k], VARIANCES[k])
        torch.testing.assert_close(labelled[k], alone(x_t[:1], t).x0[0])
    torch.testing.assert_close(labelled[3], data(x_t[:1], t).x0[0])


def test_moments_of_the_data_are_those_of_samples() -> None:
    data, rng = mixture(Cosine()), Rng.of(0, 40000)
    samples = data.sample(rng.normal((1,), Purpose.NOISE).double(), rng.uniform((), Purpose.CONDITION).double())
    # Five standard errors of a deviation of about 1.
    assert abs(samples.mean() - data.data_mean).item() < 5 / 200
    assert abs(samples.var() - data.data_variance).item() < 5 * 2 / 200
    p = WEIGHTS / WEIGHTS.sum()
    torch.testing.assert_close(data.data_mean, (p @ MEANS))
    torch.testing.assert_close(data.data_variance, p @ (VARIANCES + MEANS**2) - (p @ MEANS) ** 2)


def test_frames_may_have_their_own_times() -> None:
    data = analytic.gaussian(Gaussian(VariancePreserving()), torch.zeros(2, 3, dtype=torch.float64), 0.4)
    x_t = torch.ones(1, 2, 3, dtype=torch.float64)
    t = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    x0 = data(x_t, t).x0
    for frame in (0, 1):
        torch.testing.assert_close(x0[:, frame], data(x_t, t[0, frame]).x0[:, frame])


@pytest.mark.parametrize(
    ("means", "variances", "weights"),
    [
        (torch.tensor(0.0), 0.0, None),
        (torch.zeros(2, 1), -1.0, None),
        (torch.zeros(2, 1), 0.0, torch.tensor([1.0])),
        (torch.zeros(2, 1), 0.0, torch.tensor([1.0, 0.0])),
    ],
)
def test_impossible_mixtures_are_refused(means: Tensor, variances: float, weights: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        analytic.Analytic(Gaussian(Cosine()), means, variances, weights)
