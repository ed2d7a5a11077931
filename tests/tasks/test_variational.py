import math

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.nn.autoencoder import LatentModel
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.variational import DiscretizedLogistic, Normal, Variational

SLOPE, SCALE, OFFSET = 1.5, 0.7, 0.3


class LinearGaussian(LatentModel):
    """x = SLOPE z + OFFSET + SCALE noise, whose evidence and posterior are known; the posterior may be wrong."""

    def __init__(self, shift: float = 0.0, stretch: float = 0.0) -> None:
        super().__init__()
        self.latent_dim, self.num_classes = 1, None
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE), dtype=torch.float64))
        self.shift, self.stretch = shift, stretch

    def encode(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        variance = SCALE**2 / (SLOPE**2 + SCALE**2)
        mean = SLOPE * (x - OFFSET) / (SLOPE**2 + SCALE**2) + self.shift
        return mean, torch.full_like(x, math.log(variance) + self.stretch)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return SLOPE * z + OFFSET


def expected_bound(network: LinearGaussian, x: Tensor) -> Tensor:
    """Return the bound with the expectation over z by Gauss-Hermite quadrature, exact as the integrand is quadratic."""
    nodes = torch.tensor([-math.sqrt(3.0), 0.0, math.sqrt(3.0)], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    task = Variational(network, Normal())
    bounds = torch.stack([task.terms(x, node.expand(len(x), 1)).bound for node in nodes])
    return weights @ bounds


def numbers(*values: float) -> list[Tensor]:
    """Return float64 numbers, which torch's distributions would otherwise make float32 of."""
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def evidence(x: Tensor) -> Tensor:
    return -torch.distributions.Normal(*numbers(OFFSET, math.hypot(SLOPE, SCALE))).log_prob(x)[:, 0]


X = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]


def test_the_bound_of_the_true_posterior_is_the_evidence() -> None:
    torch.testing.assert_close(expected_bound(LinearGaussian(), X).detach(), evidence(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "stretch"), [(0.2, 0.0), (0.0, 0.5), (0.0, -0.5), (-0.3, 0.2)])
def test_another_posterior_costs_its_divergence_from_the_true_one(shift: float, stretch: float) -> None:
    variance = SCALE**2 / (SLOPE**2 + SCALE**2)
    own = torch.distributions.Normal(*numbers(shift, math.sqrt(variance * math.exp(stretch))))
    true = torch.distributions.Normal(*numbers(0.0, math.sqrt(variance)))
    gap = expected_bound(LinearGaussian(shift, stretch), X).detach() - evidence(X)
    divergence = torch.distributions.kl_divergence(own, true)
    assert divergence > 1e-3
    torch.testing.assert_close(gap, divergence.expand(len(X)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("location", [-1.6, -1.0, 0.1, 1.0])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_the_probabilities_of_the_levels_sum_to_one(location: float, log_scale: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    where, scale = (torch.tensor(value, dtype=torch.float64) for value in (location, log_scale))
    found = DiscretizedLogistic().log_prob(levels, where, scale)
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_probability_of_a_level_is_finite_far_from_the_location() -> None:
    levels = torch.linspace(-1, 1, 256)
    location = torch.tensor(50.0, requires_grad=True)
    found = DiscretizedLogistic().log_prob(levels, location, torch.tensor(-4.0)).sum()
    found.backward()
    assert found.isfinite()
    assert location.grad is not None
    assert location.grad.isfinite()


def batch(count: int) -> Batch:
    ids = torch.arange(count)
    return Batch({"x0": torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]}, ids, 0 * ids, ids)


def test_the_loss_is_distortion_and_weighed_rate_by_dimension() -> None:
    given, rng = batch(6), Rng.of(3, 6)
    loss = Variational(LinearGaussian(), Normal(), beta=0.25).loss(given, "model", rng=rng)
    terms = Variational(LinearGaussian(), Normal()).terms(given.values["x0"], rng.normal((1,), Purpose.NOISE))
    assert float(loss.total.detach()) == pytest.approx(
        float((terms.distortion + 0.25 * terms.rate).detach().mean()), abs=1e-12
    )
    assert float(loss.parts["bound"]) == pytest.approx(float(terms.bound.detach().mean()), abs=1e-12)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="beta"):
        Variational(LinearGaussian(), beta=-1.0)
