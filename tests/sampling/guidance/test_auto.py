import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, VariancePreserving
from unfog.sampling.guidance.auto import AutoGuided
from unfog.sampling.guidance.classifier_free import ClassifierFree

PROCESS = Gaussian(VariancePreserving())
MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5]], dtype=torch.float64)
GOOD, WEAK = analytic.mixture(PROCESS, MEANS, 0.1), analytic.mixture(PROCESS, 0.7 * MEANS, 0.5)
X_T = Rng.of(3, 3).normal((2,), Purpose.SCRATCH).double()
LABEL, NULL = {"label": torch.tensor([0, 1, 1])}, {"label": torch.tensor([2, 2, 2])}
T = torch.tensor(0.4, dtype=torch.float64)


def score(x: Tensor, denoiser: analytic.Analytic, cond: Cond | None = None) -> Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(denoiser.log_density(point, T, cond).sum(), point)[0]


def guided_score(x0: Tensor) -> Tensor:
    alpha, sigma = PROCESS.schedule.scales(T)
    return (alpha * x0 - X_T) / sigma**2


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1.0, 2.2])
def test_it_follows_the_density_over_that_of_the_weak_model(scale: float) -> None:
    # p^w p_weak^(1 - w): Karras et al. 2024.
    expected = scale * score(X_T, GOOD, LABEL) + (1 - scale) * score(X_T, WEAK, LABEL)
    found = guided_score(AutoGuided(GOOD, WEAK, scale)(X_T, T, LABEL).x0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_it_nests_with_classifier_free_guidance() -> None:
    both = AutoGuided(ClassifierFree(GOOD, 2.0, NULL), ClassifierFree(WEAK, 1.5, NULL), 1.7)
    good, weak = (d(X_T, T, LABEL).x0 for d in (GOOD, WEAK))
    good_null, weak_null = (d(X_T, T, NULL).x0 for d in (GOOD, WEAK))
    strong, feeble = good_null + 2.0 * (good - good_null), weak_null + 1.5 * (weak - weak_null)
    torch.testing.assert_close(both(X_T, T, LABEL).x0, feeble + 1.7 * (strong - feeble), rtol=0, atol=1e-12)


def test_a_learned_variance_is_the_better_models() -> None:
    class Learned(Denoiser):
        def __init__(self, fraction: float) -> None:
            super().__init__()
            self.process, self.fraction = PROCESS, fraction

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(x_t, torch.full_like(x_t, self.fraction))

    for scale in (1.0, 2.5):
        fraction = AutoGuided(Learned(0.2), Learned(0.9), scale)(X_T, T).variance_fraction
        assert fraction is not None
        assert (fraction == 0.2).all()


def test_a_scale_of_0_asks_the_weak_model_alone() -> None:
    class Silent(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process = PROCESS

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            raise AssertionError("asked")

    assert torch.equal(AutoGuided(Silent(), WEAK, 0.0)(X_T, T, LABEL).x0, WEAK(X_T, T, LABEL).x0)


def test_another_process_is_refused() -> None:
    other = analytic.mixture(Gaussian(Cosine()), MEANS, 0.1)
    with pytest.raises(ValueError, match=r"expected a weak denoiser of the same process .*Variance.*, not of .*Cosine"):
        AutoGuided(GOOD, other, 2.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite guidance scale, not {scale}"):
        AutoGuided(GOOD, WEAK, scale)
