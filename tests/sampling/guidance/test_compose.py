import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.analytic import Analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, VariancePreserving
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import LogSNRUniform
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.compose import Mixture, Product
from unfog.sampling.sampler import sample

PROCESS = Gaussian(VariancePreserving())
X_T = Rng.of(0, 6).normal((2,), Purpose.SCRATCH).double()
TIMES = [torch.tensor(t, dtype=torch.float64) for t in (1e-3, 0.2, 0.6, 1.0)]


def modes(*means: tuple[float, float], variance: float = 0.3) -> Analytic:
    return analytic.mixture(PROCESS, torch.tensor(means, dtype=torch.float64), variance)


LEFT, RIGHT = modes((-1.0, 0.2), (0.5, 1.0)), modes((1.0, 0.0), (0.2, -1.0), variance=0.6)


def score(denoiser: Denoiser, t: Tensor) -> Tensor:
    """The score that an estimate stands for."""
    alpha, sigma = PROCESS.schedule.scales(t)
    return (alpha * denoiser(X_T, t).x0 - X_T) / sigma**2


def gradient(model: Analytic | Product | Mixture, t: Tensor) -> Tensor:
    x = X_T.clone().requires_grad_()
    return torch.autograd.grad(model.log_density(x, t).sum(), x)[0]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("powers", [(1.0, 1.0), (1.0, -0.3), (2.0, -1.0), (0.5, 0.5), (1.5, 0.0)])
def test_the_score_of_a_product_is_the_sum_of_scores(powers: tuple[float, float], t: Tensor) -> None:
    expected = sum(power * gradient(model, t) for power, model in zip(powers, (LEFT, RIGHT), strict=True))
    product = Product([LEFT, RIGHT], powers)
    # The score is the estimate's difference from x_t over sigma^2, which rounds it.
    tolerance = 1e-13 / float(PROCESS.schedule.sigma(t)) ** 2
    torch.testing.assert_close(score(product, t), expected, rtol=1e-9, atol=tolerance + 1e-12)
    torch.testing.assert_close(gradient(product, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_the_product_of_gaussians_is_a_gaussian(t: Tensor) -> None:
    alpha, sigma = PROCESS.schedule.scales(t)
    one, two = (
        analytic.gaussian(PROCESS, torch.full((2,), m, dtype=torch.float64), v) for m, v in ((0.5, 0.4), (-1, 2.0))
    )
    widths = [alpha**2 * v + sigma**2 for v in (0.4, 2.0)]
    precision = 1 / widths[0] + 1 / widths[1]
    mean = alpha * (0.5 / widths[0] - 1.0 / widths[1]) / precision
    expected = -(X_T - mean) * precision
    tolerance = 1e-13 / float(sigma) ** 2
    torch.testing.assert_close(score(Product([one, two], (1, 1)), t), expected, rtol=1e-9, atol=tolerance + 1e-12)


def test_powers_that_add_up_to_one_are_guidance() -> None:
    cond, null = {"label": torch.zeros(6, dtype=torch.int64)}, {"label": torch.full((6,), 2)}

    class Conditional(Denoiser):
        def __init__(self, label: dict[str, Tensor]) -> None:
            super().__init__()
            self.process, self.label = PROCESS, label

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            prediction: Prediction = LEFT(x_t, t, self.label)
            return prediction

    product = Product([Conditional(cond), Conditional(null)], (3.0, -2.0))
    guided = ClassifierFree(LEFT, 3.0, null)
    torch.testing.assert_close(product(X_T, TIMES[2]).x0, guided(X_T, TIMES[2], cond).x0, rtol=1e-12, atol=1e-12)


def test_samples_of_a_product_come_near_it_where_both_are_likely() -> None:
    one, two = modes((-1.0, 0.0), (1.0, 0.0), variance=0.01), modes((1.0, 0.0), (0.0, 1.0), variance=0.01)
    rng = Rng.of(0, 64)
    x = PROCESS.prior((2,), rng=rng, dtype=torch.float64)
    times = LogSNRUniform(0.02, 20.0).times(PROCESS.schedule, 60)
    found = sample(Product([one, two], (1.0, 1.0)), DDIM(), times, x, rng=rng)
    near = (found - torch.tensor([1.0, 0.0])).norm(dim=1) < 0.4
    # The one mode that both have; the product of noisy densities is not that of the product's, so not all arrive.
    assert near.double().mean() > 0.5


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("weights", [None, (1.0, 1.0), (0.2, 0.8), (5.0, 1.0)])
def test_a_mixture_of_models_is_the_model_of_the_mixture(weights: tuple[float, ...] | None, t: Tensor) -> None:
    one, two = (
        analytic.gaussian(PROCESS, torch.tensor(m, dtype=torch.float64), 0.3) for m in ([-1.0, 0.0], [1.0, 0.5])
    )
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    both = analytic.mixture(PROCESS, means, 0.3, torch.tensor(weights or (1.0, 1.0), dtype=torch.float64))
    mixture = Mixture([one, two], weights)
    torch.testing.assert_close(mixture(X_T, t).x0, both(X_T, t).x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixture.log_density(X_T, t), both.log_density(X_T, t), rtol=1e-12, atol=1e-12)


def test_compositions_can_be_composed() -> None:
    t = TIMES[1]
    nested = Mixture([Product([LEFT, RIGHT], (1.0, 1.0)), RIGHT], (1.0, 3.0))
    tolerance = 1e-12 / float(PROCESS.schedule.sigma(t)) ** 2
    torch.testing.assert_close(score(nested, t), gradient(nested, t), rtol=1e-9, atol=tolerance)


class Counting(Denoiser):
    """Knows no density."""

    def __init__(self) -> None:
        super().__init__()
        self.process = PROCESS
        self.begun = 0

    def begin(self) -> Denoiser:
        self.begun += 1
        return self

    def select(self, index: Tensor) -> Denoiser:
        self.begun += 10
        return self

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(x_t)


def test_models_begin_and_are_selected_together() -> None:
    one, two = Counting(), Counting()
    Product([one, two], (1.0, 1.0)).begin().select(torch.tensor([0]))
    assert (one.begun, two.begun) == (11, 11)
    # One that knows its density keeps no state here, and is itself for each trajectory.
    assert Mixture([LEFT, RIGHT]).begin()(X_T, TIMES[1]).x0.shape == X_T.shape


def test_a_model_without_a_density_is_refused_where_one_is_needed() -> None:
    with pytest.raises(TypeError, match="expected denoisers that know their density, got Counting: learn an energy"):
        Mixture([LEFT, Counting()])
    with pytest.raises(TypeError, match="expected denoisers that know their density, got Counting"):
        Product([LEFT, Counting()], (1.0, 1.0)).log_density(X_T, TIMES[0])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Product([], ()), "at least one denoiser"),
        (lambda: Product([LEFT], (1.0, 2.0)), "1 finite powers, one for each denoiser"),
        (lambda: Product([LEFT], (math.inf,)), "1 finite powers, one for each denoiser"),
        (lambda: Mixture([LEFT, RIGHT], (1.0, 0.0)), "positive weights"),
        (lambda: Product([LEFT, analytic.point_mass(Gaussian(Cosine()), torch.zeros(2))], (1, 1)), "of one process"),
        (
            lambda: Product([analytic.point_mass(Gaussian(Cosine()), torch.zeros(2))], (2,)),
            "powers that add up to 1 on",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"expected .*{expected}"):
        make()
