import math

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import VariancePreserving
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.classifier_free import ClassifierFree, scale_from_w
from unfog.sampling.sampler import sample

SCHEDULE = VariancePreserving()
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
X_T = torch.tensor([[0.3, -0.2], [-0.8, 1.0], [0.1, 0.0]], dtype=torch.float64)
LABEL = {"label": torch.tensor([0, 1, 1])}
NULL = {"label": torch.tensor([2, 2, 2])}
T = torch.tensor(0.5, dtype=torch.float64)


class Counting(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.inner = analytic.mixture(Gaussian(SCHEDULE), MEANS, 0.2)
        self.process = self.inner.process
        self.batches: list[int] = []
        self.begun = 0

    def begin(self) -> Denoiser:
        self.begun += 1
        return self

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.batches.append(len(x_t))
        prediction: Prediction = self.inner(x_t, t, cond)
        return prediction


def test_some_samples_of_a_batch_are_guided_away_from_their_own_negatives() -> None:
    negative = {"label": torch.tensor([2, 0, 1])}
    guided = ClassifierFree(Counting(), 2.5, negative)
    whole = guided(X_T, T, LABEL).x0
    for index in (torch.tensor([1]), torch.tensor([2, 0]), torch.tensor([1, 1, 2, 0])):
        some = guided.select(index)(X_T[index], T, {"label": LABEL["label"][index]}).x0
        torch.testing.assert_close(some, whole[index], rtol=0, atol=1e-14)


def test_a_learned_variance_is_that_under_the_condition() -> None:
    class Learned(Counting):
        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            fraction = (cond["label"] / 4.0)[:, None].expand_as(x_t)
            return Prediction(super().forward(x_t, t, cond).x0, fraction)

    expected = (LABEL["label"] / 4.0)[:, None].expand_as(X_T)
    for scale in (1.0, 2.5):
        fraction = ClassifierFree(Learned(), scale, NULL)(X_T, T, LABEL).variance_fraction
        assert fraction is not None
        assert torch.equal(fraction, expected)
    assert ClassifierFree(Counting(), 2.5, NULL)(X_T, T, LABEL).variance_fraction is None


def test_scale_1_is_the_conditional_denoiser_bit_for_bit_at_one_evaluation() -> None:
    inner = Counting()
    guided = ClassifierFree(inner, 1.0, NULL)(X_T, T, LABEL).x0
    assert inner.batches == [3]
    assert torch.equal(guided, inner(X_T, T, LABEL).x0)


def test_scale_0_is_unconditional_at_one_evaluation() -> None:
    inner = Counting()
    guided = ClassifierFree(inner, 0.0, NULL)(X_T, T, LABEL).x0
    assert inner.batches == [3]
    assert torch.equal(guided, inner(X_T, T, NULL).x0)


@pytest.mark.parametrize("scale", [-1.0, 0.4, 1.5, 7.5])
def test_other_scales_extrapolate_in_one_call_of_twice_the_batch(scale: float) -> None:
    inner = Counting()
    guided = ClassifierFree(inner, scale, NULL)(X_T, T, LABEL).x0
    assert inner.batches == [6]
    positive, negative = inner(X_T, T, LABEL).x0, inner(X_T, T, NULL).x0
    torch.testing.assert_close(guided, negative + scale * (positive - negative), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_two_classes_have_the_closed_form(scale: float) -> None:
    # Equal Gaussians at m_0, m_1: E[x0 | x, k] = m_k + g (x - a m_k), so the unconditional estimate is that of the mean
    # m = sum p_k m_k, and guidance moves the mean to m + w (m_k - m).
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    spread = alpha**2 * 0.2 + sigma**2
    gain = alpha * 0.2 / spread
    distance = ((X_T[:, None] - alpha * MEANS) ** 2).sum(2)
    p = torch.softmax(-0.5 * distance / spread, 1)
    mean = p @ MEANS
    moved = mean + scale * (MEANS[LABEL["label"]] - mean)
    guided = ClassifierFree(Counting(), scale, NULL)(X_T, T, LABEL).x0
    torch.testing.assert_close(guided, moved + gain * (X_T - alpha * moved), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 4.0])
def test_both_published_conventions_agree(w: float) -> None:
    # Ho, Salimans 2022 (arXiv 2207.12598), eq. 6: (1 + w) eps_cond - w eps_null, here turned into x0.
    inner = Counting()
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    eps = [(X_T - alpha * inner(X_T, T, cond).x0) / sigma for cond in (LABEL, NULL)]
    x0 = (X_T - sigma * ((1 + w) * eps[0] - w * eps[1])) / alpha
    guided = ClassifierFree(inner, scale_from_w(w), NULL)(X_T, T, LABEL).x0
    torch.testing.assert_close(guided, x0, rtol=1e-12, atol=1e-13)


def test_each_example_may_have_its_own_time() -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    guided = ClassifierFree(Counting(), 2.0, NULL)
    whole = guided(X_T, t, LABEL).x0
    for i in range(3):
        alone = ClassifierFree(Counting(), 2.0, {"label": NULL["label"][i : i + 1]})
        x0 = alone(X_T[i : i + 1], t[i], {"label": LABEL["label"][i : i + 1]}).x0
        torch.testing.assert_close(whole[i : i + 1], x0, rtol=1e-13, atol=1e-14)


def test_guidance_sharpens_the_choice_of_a_class() -> None:
    rng, times = Rng.of(0, 3), Trailing().times(SCHEDULE, 20)
    x = Gaussian(SCHEDULE).prior((2,), rng=rng, dtype=torch.float64)
    plain, strong = (
        sample(ClassifierFree(Counting(), scale, NULL), DDIM(), times, x, LABEL, rng=rng) for scale in (1.0, 4.0)
    )
    other = MEANS[1 - LABEL["label"]]
    assert ((strong - other).norm(dim=1) > (plain - other).norm(dim=1)).all()


def test_each_trajectory_begins_the_inner_denoiser() -> None:
    inner = Counting()
    begun = ClassifierFree(inner, 2.0, NULL).begin()
    assert inner.begun == 1
    assert isinstance(begun, ClassifierFree)
    assert begun.scale == 2.0


def test_what_is_prepared_inside_gives_the_same_answer() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            return (self.weight + label[:, None]) * x

    guided = ClassifierFree(NetworkDenoiser(Linear(), Gaussian(SCHEDULE), V()), 2.0, NULL)
    prepared = guided.prepared([T])
    assert isinstance(prepared, ClassifierFree)
    assert prepared.denoiser is not guided.denoiser
    torch.testing.assert_close(prepared(X_T, T, LABEL).x0, guided(X_T, T, LABEL).x0, rtol=1e-14, atol=0)


@pytest.mark.parametrize("cond", [None, {}, {"label": LABEL["label"], "vector": X_T}, {"vector": X_T}])
def test_conditions_without_their_negatives_are_refused(cond: Cond | None) -> None:
    with pytest.raises(ValueError, match=r"a negative for each condition: conditions \[.*\], negatives \['label'\]"):
        ClassifierFree(Counting(), 2.0, NULL)(X_T, T, cond)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite guidance scale, not {scale}"):
        ClassifierFree(Counting(), scale, NULL)


# --- rescale


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 7.5])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_a_rescale_goes_a_share_of_the_way_to_the_conditional_deviation(scale: float, share: float) -> None:
    inner = Counting()
    positive, guided = inner(X_T, T, LABEL).x0, ClassifierFree(inner, scale, NULL)(X_T, T, LABEL).x0
    found = ClassifierFree(inner, scale, NULL, rescale=share)(X_T, T, LABEL).x0
    # Lin et al. 2024 (arXiv 2305.08891), section 3.4.
    rescaled = guided * positive.std(1, keepdim=True) / guided.std(1, keepdim=True)
    torch.testing.assert_close(found, share * rescaled + (1 - share) * guided, rtol=1e-12, atol=1e-14)
    if share == 1:
        torch.testing.assert_close(found.std(1), positive.std(1), rtol=1e-12, atol=0)


def test_a_rescale_of_0_is_none_bit_for_bit() -> None:
    expected = ClassifierFree(Counting(), 2.5, NULL)(X_T, T, LABEL).x0
    assert torch.equal(ClassifierFree(Counting(), 2.5, NULL, rescale=0.0)(X_T, T, LABEL).x0, expected)


def test_an_estimate_without_contrast_is_not_rescaled() -> None:
    class Flat(Counting):
        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            return Prediction((cond["label"] + 1.0)[:, None].expand_as(x_t).to(x_t))

    found = ClassifierFree(Flat(), 3.0, NULL, rescale=1.0)(X_T, T, LABEL).x0
    assert torch.equal(found, (3.0 + 3.0 * (LABEL["label"] - 2.0))[:, None].expand_as(X_T))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_rescale_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"expected rescale in \[0, 1\]"):
        ClassifierFree(Counting(), 2.0, NULL, rescale=share)
