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
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.several import Several, Weighted
from unfog.sampling.sampler import sample

PROCESS = Gaussian(VariancePreserving())
MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5], [0.3, -1.0]], dtype=torch.float64)
X_T = Rng.of(3, 2).normal((2,), Purpose.SCRATCH).double()
T = torch.tensor(0.4, dtype=torch.float64)
NULL = {"label": torch.tensor([3, 3])}


def label(*values: int) -> dict[str, Tensor]:
    return {"label": torch.tensor(values)}


class Counting(Denoiser):
    """The exact denoiser, its learned variance telling the label; notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.process = analytic.mixture(PROCESS, MEANS, 0.3), PROCESS
        self.batches: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.batches.append(len(x_t))
        assert cond is not None
        fraction = (cond["label"] / 4.0)[:, None].expand_as(x_t).to(x_t)
        return Prediction(self.inner(x_t, t, cond).x0, fraction)


def score(cond: Cond) -> Tensor:
    inner, point = Counting().inner, X_T.clone().requires_grad_()
    return torch.autograd.grad(inner.log_density(point, T, cond).sum(), point)[0]


def guided_score(x0: Tensor) -> Tensor:
    alpha, sigma = PROCESS.schedule.scales(T)
    return (alpha * x0 - X_T) / sigma**2


@pytest.mark.parametrize("scales", [(1.5, 0.7), (2.0, -1.0), (0.5, 0.5), (-0.3, 4.0)])
def test_it_follows_the_density_times_each_likelihood_to_its_power(scales: tuple[float, float]) -> None:
    conds = label(0, 1), label(2, 0)
    found = Several(Counting(), [Weighted(c, w) for c, w in zip(conds, scales, strict=True)], NULL)(X_T, T).x0
    # Liu et al. 2022: p(x) prod (p(x | c_i) / p(x))^w_i.
    expected = score(NULL) + sum((w * (score(c) - score(NULL)) for c, w in zip(conds, scales, strict=True)), 0.0)
    torch.testing.assert_close(guided_score(found), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.4, 1.0, 7.5])
def test_one_condition_is_classifier_free_guidance(scale: float) -> None:
    several = Several(Counting(), [Weighted(label(0, 1), scale)], NULL)(X_T, T)
    free = ClassifierFree(Counting(), scale, NULL)(X_T, T, label(0, 1))
    # The two are computed in other orders: rounding of numbers of size 10.
    torch.testing.assert_close(several.x0, free.x0, rtol=0, atol=1e-14)
    if scale != 0:
        torch.testing.assert_close(several.variance_fraction, free.variance_fraction, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("scales", "batches"),
    [
        ((1.5, 0.7), [6]),
        ((1.0, 0.0), [2]),
        ((0.0, 0.0), [2]),
        ((0.25, 0.75), [4]),
        ((2.0, 0.0), [4]),
        ((2.0, -1.0), [4]),
    ],
)
def test_only_what_counts_is_evaluated_and_in_one_call(scales: tuple[float, float], batches: list[int]) -> None:
    inner = Counting()
    several = Several(inner, [Weighted(label(0, 1), scales[0]), Weighted(label(2, 0), scales[1])], NULL)
    several(X_T, T)
    assert inner.batches == batches
    assert several.evaluations == batches[0] / 2


def test_a_mask_holds_a_condition_to_its_region() -> None:
    left = torch.tensor([[1.0, 0.0]])
    found = Several(Counting(), [Weighted(label(0, 1), 3.0, left), Weighted(label(2, 0), 1.0, 1 - left)], NULL)(X_T, T)
    both = [ClassifierFree(Counting(), w, NULL)(X_T, T, c).x0 for c, w in ((label(0, 1), 3.0), (label(2, 0), 1.0))]
    expected = torch.stack([both[0][:, 0], both[1][:, 1]], dim=1)
    torch.testing.assert_close(found.x0, expected, rtol=0, atol=1e-14)
    assert torch.equal(found.variance_fraction, torch.tensor([[0.0, 0.5], [0.25, 0.0]], dtype=torch.float64))


def test_a_mask_may_be_soft_and_each_examples_own() -> None:
    mask = torch.tensor([[0.3, 1.0], [0.0, 0.6]])
    several = Several(Counting(), [Weighted(label(0, 1), 2.0, mask)], NULL)
    negative, positive = Counting()(X_T, T, NULL).x0, Counting()(X_T, T, label(0, 1)).x0
    expected = negative + 2.0 * mask * (positive - negative)
    torch.testing.assert_close(several(X_T, T).x0, expected, rtol=0, atol=1e-14)
    index = torch.tensor([1, 0, 1])
    torch.testing.assert_close(several.select(index)(X_T[index], T).x0, expected[index], rtol=0, atol=1e-14)


def test_regions_of_a_picture_show_their_own_classes() -> None:
    # Data are pictures of one value: 0.8 of class 1, -0.8 of class 0. Held to halves, each half shows its own.
    values = torch.tensor([-0.8, 0.8], dtype=torch.float64)[:, None, None, None].expand(2, 1, 4, 4)
    pictures = analytic.mixture(PROCESS, values, 0.01)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1.0
    rng, null = Rng.of(0, 3), label(2, 2, 2)
    halves = [Weighted(label(0, 0, 0), 1.0, mask), Weighted(label(1, 1, 1), 1.0, 1 - mask)]
    x = PROCESS.prior((1, 4, 4), rng=rng, dtype=torch.float64)
    times = Trailing().times(PROCESS.schedule, 20)
    found = sample(Several(pictures, halves, null), DDIM(), times, x, rng=rng)
    # The variance of a class is 0.01: five standard deviations.
    assert (found[..., :2] + 0.8).abs().max() < 0.5
    assert (found[..., 2:] - 0.8).abs().max() < 0.5


def test_what_the_sampler_gives_under_other_names_is_common_to_all() -> None:
    class Completing(Counting):
        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            prediction = super().forward(x_t, t, {"label": cond["label"]})
            return prediction._replace(x0=prediction.x0 + cond["image"])

    image = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    for scales in ((2.0, 1.0), (1.0, 0.0)):
        parts = [Weighted(label(0, 1), scales[0]), Weighted(label(2, 0), scales[1])]
        plain = Several(Counting(), parts, NULL)(X_T, T).x0
        found = Several(Completing(), parts, NULL)(X_T, T, {"image": image, **label(1, 2)}).x0
        torch.testing.assert_close(found, plain + image, rtol=0, atol=1e-14)


def test_conditions_need_the_names_of_the_negative() -> None:
    with pytest.raises(
        ValueError, match=r"expected conditions with the names of the negative, \['label'\], got \['v'\]"
    ):
        Several(Counting(), [Weighted({"v": X_T}, 1.0)], NULL)


def test_no_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one condition"):
        Several(Counting(), [], NULL)


@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 2, 1)])
def test_a_mask_that_does_not_fit_the_data_is_refused(shape: tuple[int, ...]) -> None:
    several = Several(Counting(), [Weighted(label(0, 1), 2.0, torch.ones(shape))], NULL)
    with pytest.raises(ValueError, match=r"expected a mask with the axes of the data \(2, 2\)"):
        several(X_T, T)


@pytest.mark.parametrize("value", [255.0, -0.1, math.nan])
def test_a_mask_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"expected a mask in \[0, 1\]"):
        Weighted(label(0, 1), 2.0, torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite guidance scale, not {scale}"):
        Weighted(label(0, 1), scale)
