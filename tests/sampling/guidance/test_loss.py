import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, Schedule, VarianceExploding, VariancePreserving
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.loss import LossFunction, LossGuided
from unfog.sampling.sampler import sample

SCHEDULES = [VariancePreserving(), Cosine(), VarianceExploding(10.0)]
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
VARIANCE = torch.tensor([0.6, 0.2], dtype=torch.float64)
X_T = Rng.of(3, 3).normal((2,), Purpose.SCRATCH).double()
SEEN = torch.tensor([[0.5], [-0.4], [1.2]], dtype=torch.float64)
NOISE = 0.09
"""The variance of a measurement of the first coordinate."""
T = torch.tensor(0.4, dtype=torch.float64)


def data(schedule: Schedule) -> analytic.Analytic:
    return analytic.gaussian(Gaussian(schedule), MEAN, VARIANCE)


def left_open(schedule: Schedule, t: Tensor) -> Tensor:
    """The variance of x0 given x_t."""
    alpha, sigma = schedule.scales(t)
    return VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)


def residual(x0: Tensor, t: Tensor, seen: Tensor) -> Tensor:
    return (x0[:, :1] - seen).square().sum(1) / (2 * NOISE)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("scale", [-0.5, 1.0, 2.0])
def test_the_estimate_moves_by_what_is_left_open_times_the_slope(schedule: Schedule, t: float, scale: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    x0 = data(schedule)(X_T, time).x0
    found = LossGuided(data(schedule), residual, scale, {"seen": SEEN})(X_T, time).x0
    expected = x0.clone()
    expected[:, 0] -= scale * left_open(schedule, time)[0] * (x0[:, 0] - SEEN[:, 0]) / NOISE
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_a_gaussian_likelihood_that_knows_the_time_gives_the_exact_posterior(schedule: Schedule, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)

    def likelihood(x0: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        return (x0[:, 0] - seen[:, 0]).square() / (2 * (NOISE + left_open(schedule, t)[0]))

    found = LossGuided(data(schedule), likelihood, 1.0, {"seen": SEEN})(X_T, time).x0
    # Conditioned on the measurement the data are Gaussian again, and their estimate is known.
    gain = VARIANCE[0] / (VARIANCE[0] + NOISE)
    for k in range(3):
        mean, variance = MEAN.clone(), VARIANCE.clone()
        mean[0] += gain * (SEEN[k, 0] - MEAN[0])
        variance[0] *= 1 - gain
        expected = analytic.gaussian(Gaussian(schedule), mean, variance)(X_T[k : k + 1], time).x0
        torch.testing.assert_close(found[k : k + 1], expected, rtol=1e-10, atol=1e-10)


def test_samples_of_the_exact_posterior_have_its_mean() -> None:
    schedule = SCHEDULES[0]

    def likelihood(x0: Tensor, t: Tensor) -> Tensor:
        return (x0[:, 0] - 1.2).square() / (2 * (NOISE + left_open(schedule, t)[0]))

    rng, times = Rng.of(0, 400), Trailing().times(schedule, 40)
    x = Gaussian(schedule).prior((2,), rng=rng, dtype=torch.float64)
    found = sample(LossGuided(data(schedule), likelihood, 1.0), DDIM(), times, x, rng=rng)
    gain = VARIANCE[0] / (VARIANCE[0] + NOISE)
    mean, variance = MEAN[0] + gain * (1.2 - MEAN[0]), VARIANCE[0] * (1 - gain)
    # Four standard errors of 400 draws, and what 40 steps of first order leave.
    assert found[:, 0].mean().item() == pytest.approx(mean.item(), abs=4 * math.sqrt(variance / 400) + 0.03)
    assert found[:, 0].std().item() == pytest.approx(math.sqrt(variance), rel=0.25)


def in_box(x0: Tensor, t: Tensor) -> Tensor:
    """Red where the box is: how far the first channel is from 1 there, and the others from -1."""
    wanted = torch.tensor([1.0, -1.0, -1.0], dtype=x0.dtype)[:, None, None]
    return (x0[:, :, 1:3, 1:3] - wanted).square().flatten(1).mean(1)


def test_a_colour_is_held_to_a_box() -> None:
    schedule = SCHEDULES[0]
    pictures = analytic.gaussian(Gaussian(schedule), torch.zeros(3, 4, 4, dtype=torch.float64), 0.3)
    rng, times = Rng.of(0, 4), Trailing().times(schedule, 20)
    x = Gaussian(schedule).prior((3, 4, 4), rng=rng, dtype=torch.float64)
    plain = sample(pictures, DDIM(), times, x, rng=rng)
    found = sample(LossGuided(pictures, in_box, 300.0), DDIM(), times, x, rng=rng)
    assert (in_box(found, T) < 0.02).all()
    assert (in_box(plain, T) > 0.3).all()
    outside = torch.ones(4, 4, dtype=torch.bool)
    outside[1:3, 1:3] = False
    # Pixels are independent here: the others stay as they are.
    torch.testing.assert_close(found[..., outside], plain[..., outside], rtol=0, atol=1e-12)


def test_the_time_is_told_as_it_was_asked() -> None:
    told = []

    def noting(x0: Tensor, t: Tensor) -> Tensor:
        told.append(t.clone())
        return x0.square().sum(1)

    denoiser = LossGuided(data(SCHEDULES[0]), noting, 1.0)
    each = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    denoiser(X_T, T)
    denoiser(X_T, each)
    assert torch.equal(told[0], T)
    assert torch.equal(told[1], each)


def test_a_learned_variance_passes_without_a_graph() -> None:
    class Learned(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process = Gaussian(SCHEDULES[0])

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(2.0 * x_t, x_t.sigmoid())

    with torch.no_grad():
        found = LossGuided(Learned(), lambda x0, t: x0.square().sum(1), 1.0)(X_T, T)
    assert found.variance_fraction is not None
    assert torch.equal(found.variance_fraction, X_T.sigmoid())
    assert not found.variance_fraction.requires_grad


def test_gradients_flow_through_guidance_where_they_are_wanted() -> None:
    x = X_T.clone().requires_grad_()
    denoiser = LossGuided(data(SCHEDULES[0]), residual, 0.1, {"seen": SEEN})
    assert torch.autograd.gradcheck(lambda x: denoiser(x, T).x0, x)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda x0, t: x0.square().sum(), r"expected numbers \(3,\), one an example, got \(\)"),
        (lambda x0, t: x0.square(), r"expected numbers \(3,\), one an example, got \(3, 2\)"),
        (lambda x0, t: x0.detach().square().sum(1), "expected numbers that can be differentiated"),
        (lambda x0, t: (x0 > 0).double().sum(1), "expected numbers that can be differentiated"),
    ],
)
def test_a_loss_that_is_no_loss_of_each_example_is_refused(loss: LossFunction, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LossGuided(data(SCHEDULES[0]), loss, 1.0)(X_T, T)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite guidance scale, not {scale}"):
        LossGuided(data(SCHEDULES[0]), residual, scale)
