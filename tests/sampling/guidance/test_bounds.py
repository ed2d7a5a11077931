import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import VariancePreserving
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.bounds import Bounded, Bounds, Clip, DynamicThreshold
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.sampler import sample

SCHEDULE = VariancePreserving()
X0 = 1.5 * Rng.of(0, 3).normal((2, 5, 5), Purpose.SCRATCH)
T = torch.tensor(0.5, dtype=torch.float64)


class Told(Denoiser):
    """Answers with what it was made of, and keeps count of its trajectories and what was prepared."""

    def __init__(self, x0: Tensor, fraction: Tensor | None = None) -> None:
        super().__init__()
        self.process = Gaussian(SCHEDULE)
        self.x0, self.fraction = x0, fraction
        self.begun, self.times = 0, 0

    def begin(self) -> Denoiser:
        self.begun += 1
        return self

    def prepared(self, times: object) -> Denoiser:
        self.times += 1
        return self

    def select(self, index: Tensor) -> Denoiser:
        return Told(self.x0[index])

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.x0, self.fraction)


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_clipping_cuts_off_at_the_range(limit: float) -> None:
    found = Clip(limit).apply(X0)
    inside = X0.abs() <= limit
    assert torch.equal(found[inside], X0[inside])
    assert (found[~inside] == limit * X0[~inside].sign()).all()


@pytest.mark.parametrize("limit", [1.0, 0.5])
@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_the_threshold_is_the_percentile_of_each_example(percentile: float, limit: float) -> None:
    found = DynamicThreshold(percentile, limit).apply(X0)
    for x0, one in zip(X0, found, strict=True):
        sizes = x0.abs().flatten().sort().values
        s = max(sizes[math.ceil(percentile * 50 - 1e-9) - 1].item(), limit)
        torch.testing.assert_close(one, x0.clamp(-s, s) * limit / s)
        # Saharia et al. 2022: what is cut off comes to lie on the range's ends, and all the rest within.
        assert one.abs().max().item() == pytest.approx(min(limit, x0.abs().max().item()))


@pytest.mark.parametrize("bounds", [Clip(), DynamicThreshold(), DynamicThreshold(0.3)], ids=repr)
def test_what_lies_within_the_range_stays(bounds: Bounds) -> None:
    x0 = X0 / X0.abs().max()
    assert torch.equal(bounds.apply(x0), x0)


def test_an_example_is_bounded_whatever_its_neighbours() -> None:
    bounds = DynamicThreshold(0.9)
    for k in range(3):
        assert torch.equal(bounds.apply(X0[k : k + 1])[0], bounds.apply(X0)[k])


def test_a_range_of_shrinking_percentiles_shrinks_the_example() -> None:
    sizes = [DynamicThreshold(p).apply(X0).abs().mean() for p in (1.0, 0.95, 0.8, 0.5)]
    assert sizes == sorted(sizes)


def test_a_learned_variance_passes_through() -> None:
    fraction = torch.rand_like(X0)
    found = Bounded(Told(X0, fraction), Clip())(X0, T)
    assert found.variance_fraction is fraction
    assert torch.equal(found.x0, Clip().apply(X0))


def test_the_denoiser_within_begins_and_prepares_and_is_selected() -> None:
    inner = Told(X0)
    bounded = Bounded(inner, Clip()).begin().prepared([T])
    assert (inner.begun, inner.times) == (1, 1)
    index = torch.tensor([2, 2, 0])
    assert torch.equal(bounded.select(index)(X0[index], T).x0, Clip().apply(X0[index]))


def test_guidance_comes_first() -> None:
    means = torch.tensor([[-0.9, 0.2], [0.9, 0.1]], dtype=torch.float64)
    inner = analytic.mixture(Gaussian(SCHEDULE), means, 0.01)
    cond, null = {"label": torch.tensor([0, 1])}, {"label": torch.tensor([2, 2])}
    x_t = torch.tensor([[0.1, 0.1], [-0.2, 0.3]], dtype=torch.float64)
    guided = ClassifierFree(inner, 4.0, null)
    raw = guided(x_t, T, cond).x0
    assert raw.abs().max() > 1.2
    assert torch.equal(Bounded(guided, Clip())(x_t, T, cond).x0, raw.clamp(-1, 1))


def test_the_sampler_goes_on_with_the_noise_that_follows() -> None:
    # One step of DDIM: x_s = alpha_s x0 + sigma_s eps with eps from the bounded estimate.
    x0 = torch.full((1, 2), 3.0, dtype=torch.float64)
    times = torch.tensor([0.8, 0.3], dtype=torch.float64)
    x = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    found = sample(Bounded(Told(x0), Clip()), DDIM(), times, x, rng=Rng.of(0, 1))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    eps = (x - alpha_t) / sigma_t
    torch.testing.assert_close(found, alpha_s * torch.ones_like(x) + sigma_s * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bounds", [Clip(), DynamicThreshold(0.9)], ids=repr)
def test_a_bounded_sample_stays_within_the_range(bounds: Bounds) -> None:
    inner = analytic.gaussian(Gaussian(SCHEDULE), torch.zeros(2, 4, dtype=torch.float64), 4.0)
    rng = Rng.of(1, 16)
    x = inner.process.prior((2, 4), rng=rng, dtype=torch.float64)
    times = Trailing().times(SCHEDULE, 10)
    assert sample(inner, DDIM(), times, x, rng=rng).abs().max() > 2
    assert sample(Bounded(inner, bounds), DDIM(), times, x, rng=rng).abs().max() <= 1 + 1e-12


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Clip(0.0), "limit above 0"),
        (lambda: DynamicThreshold(0.0), r"percentile in \(0, 1\]"),
        (lambda: DynamicThreshold(1.5), r"percentile in \(0, 1\]"),
        (lambda: DynamicThreshold(limit=-1.0), "limit above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"expected {expected}"):
        make()
