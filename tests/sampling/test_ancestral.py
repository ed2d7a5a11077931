import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, Schedule, VarianceExploding, linear, linear_betas
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.grid import Trailing
from unfog.sampling.noise import noises
from unfog.sampling.sampler import sample

RNG = Rng.of(8, 5)


class Learned(Denoiser):
    """Answers a fraction of its own for each element."""

    def __init__(self, inner: Denoiser, fraction: Tensor) -> None:
        super().__init__()
        self.process, self.inner, self.fraction = inner.process, inner, fraction

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.inner(x_t, t, cond).x0, self.fraction.expand_as(x_t))


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1)


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [linear(), Cosine(), VarianceExploding()], ids=repr)
@pytest.mark.parametrize(("fraction", "variance"), [(0.0, Variance.POSTERIOR), (1.0, Variance.BETA)])
def test_the_bounds_are_the_fixed_variances(schedule: Schedule, fraction: float, variance: Variance) -> None:
    times = Trailing().times(schedule, 7)
    learned = Learned(data(schedule), torch.full((2,), fraction, dtype=torch.float64))
    found = sample(learned, LearnedDDPM(), times, prior(schedule), rng=RNG)
    expected = sample(data(schedule), DDPM(variance), times, prior(schedule), rng=RNG)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_step_is_that_of_its_paper_also_on_a_shorter_grid() -> None:
    # Nichol, Dhariwal 2021 (arXiv 2102.09672), eq. 15, with the betas of every fourth level.
    schedule = linear(40)
    bar = torch.cumprod(1 - linear_betas(40), 0)[[9, 19, 29, 39]]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    betas = 1 - bar / previous
    v = torch.tensor([0.2, 0.9], dtype=torch.float64)
    denoiser, x, times = Learned(data(schedule), v), prior(schedule), Trailing().times(schedule, 4)
    noise = noises(DDPM().table(schedule, times), x, RNG)
    for i in range(3, -1, -1):
        x0 = denoiser(x, times[3 - i]).x0
        # Ho et al. 2020, eq. 7.
        mean = previous[i].sqrt() * betas[i] / (1 - bar[i]) * x0
        mean = mean + (1 - betas[i]).sqrt() * (1 - previous[i]) / (1 - bar[i]) * x
        x = mean
        if i > 0:
            lower = (1 - previous[i]) / (1 - bar[i]) * betas[i]
            x = mean + torch.exp(0.5 * (v * betas[i].log() + (1 - v) * lower.log())) * next(noise)
    found = sample(denoiser, LearnedDDPM(), times, prior(schedule), rng=RNG)
    # Betas of few levels keep twelve digits of the cumulative products.
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_the_variance_lies_between_its_bounds_element_by_element() -> None:
    schedule, times = Cosine(), torch.tensor([0.6, 0.4], dtype=torch.float64)
    still = analytic.point_mass(Gaussian(schedule), torch.zeros(3, dtype=torch.float64))
    rng, x = Rng.of(0, 1), torch.zeros(1, 3, dtype=torch.float64)
    ends = [sample(Learned(still, torch.tensor(v).double()), LearnedDDPM(), times, x, rng=rng) for v in (0.0, 1.0)]
    mixed = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = sample(Learned(still, mixed), LearnedDDPM(), times, x, rng=rng)[0]
    assert found[0].item() == pytest.approx(ends[0][0, 0].item(), rel=1e-12)
    assert found[2].item() == pytest.approx(ends[1][0, 2].item(), rel=1e-12)
    assert found[1].item() ** 2 == pytest.approx((ends[0] * ends[1])[0, 1].item(), rel=1e-12)
    assert math.copysign(1.0, found[1].item()) == math.copysign(1.0, ends[0][0, 1].item())


def test_a_model_that_has_not_learned_its_variance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has not learned its variance; sample it with ddpm or ddpm_beta"):
        sample(data(Cosine()), LearnedDDPM(), Trailing().times(Cosine(), 3), prior(Cosine()), rng=RNG)
