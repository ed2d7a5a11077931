import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.adaptive import RK45
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.likelihood import decode, dequantized, encode, log_density

RNG = Rng.of(5, 6)
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
SCHEDULES = [Cosine(), RectifiedFlow(3.0), VariancePreserving(), VarianceExploding()]
FINE = RK45(1e-8, 1e-8, 1e-4, 10_000)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    variances = torch.tensor([[0.05, 0.02], [0.1, 0.3], [0.01, 0.03]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, variances, weights)


def examples(count: int = 6) -> Tensor:
    """Some at the modes, some between them, some far out."""
    places = [[-0.9, 0.2], [0.0, 0.0], [0.1, -0.5], [0.6, 1.3], [-0.3, 0.5], [1.2, -0.9]]
    return torch.tensor(places[:count], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(3.0)], ids=lambda schedule: type(schedule).__name__)
def test_the_log_density_of_a_mixture_is_exact_to_a_thousandth_of_a_nat(schedule: Schedule) -> None:
    found = log_density(data(schedule), examples())
    assert (found.nats - data(schedule).log_density(examples(), ZERO)).abs().max() < 1e-3
    assert found.error is None


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_only_error_is_that_of_the_prior(schedule: Schedule) -> None:
    # Where alpha_1 is not 0, x_1 is not quite N(0, sigma_1^2): with the true density there, the result is the truth.
    denoiser = data(schedule)
    found = log_density(denoiser, examples())
    exact = found.nats - found.log_prior + denoiser.log_density(found.latent, ONE)
    assert (exact - denoiser.log_density(examples(), ZERO)).abs().max() < 1e-3
    # alpha_1 / sigma_1 is 1 / 80 at most, and means of x_1 that differ by so much are the error.
    assert (found.nats - exact).abs().max() < 0.05


def test_what_is_left_of_noise_is_stated_and_nothing_else_is_wrong() -> None:
    schedule = Cosine()
    denoiser = data(schedule)
    found = log_density(denoiser, examples(), solver=replace(FINE, sigma_min=0.1))
    assert found.sigma == pytest.approx(0.1, rel=1e-12)
    smoothed = analytic.mixture(
        denoiser.process, denoiser.means, denoiser.variances + 0.1**2, denoiser.log_weights.exp()
    )
    # Steps of 1e-8, some tens of them.
    torch.testing.assert_close(found.nats, smoothed.log_density(examples(), ZERO), rtol=0, atol=1e-5)
    assert log_density(data(linear()), examples(1)).sigma == pytest.approx(0.01, rel=0.01), "DDPM's first level"


def test_probes_agree_with_the_exact_trace_within_their_error() -> None:
    denoiser = data(Cosine())
    exact = log_density(denoiser, examples())
    estimated = log_density(denoiser, examples(), probes=16, rng=RNG)
    assert estimated.error is not None
    assert (estimated.error > 0).all()
    # Six examples: none beyond four standard errors, but for the solver's own.
    assert ((estimated.nats - exact.nats).abs() < 4 * estimated.error + 1e-3).all()
    few = log_density(denoiser, examples(), probes=4, rng=RNG)
    assert few.error is not None
    # 1 / sqrt(4), give or take the error of an error of 4 probes, averaged over six examples.
    assert 1.2 < (few.error.mean() / estimated.error.mean()).item() < 4
    assert log_density(denoiser, examples(), probes=1, rng=RNG).error is None


def test_a_diagonal_jacobian_needs_one_probe() -> None:
    # Signs square to 1: without correlations every probe gives the trace itself.
    denoiser = analytic.gaussian(Gaussian(Cosine()), torch.tensor([0.3, -0.2], dtype=torch.float64), 0.2)
    exact = log_density(denoiser, examples(), solver=FINE)
    probed = log_density(denoiser, examples(), probes=1, rng=RNG, solver=FINE)
    torch.testing.assert_close(probed.nats, exact.nats, rtol=0, atol=1e-6)


def test_an_example_does_not_depend_on_its_batch() -> None:
    denoiser = data(Cosine())
    together = log_density(denoiser, examples(), probes=2, rng=RNG)
    for part in (slice(0, 1), slice(3, 6)):
        alone = log_density(denoiser, examples()[part], probes=2, rng=RNG[part])
        torch.testing.assert_close(alone.nats, together.nats[part], rtol=0, atol=1e-9)
        assert torch.equal(alone.evaluations, together.evaluations[part])


def test_the_condition_of_each_example_counts() -> None:
    denoiser = data(Cosine())
    label = torch.tensor([0, 1, 2, 1, 0, 2])
    found = log_density(denoiser, examples(), {"label": label})
    truth = [
        torch.distributions.Normal(denoiser.means[k], denoiser.variances[k].sqrt()).log_prob(x).sum()
        for k, x in zip(label.tolist(), examples(), strict=True)
    ]
    # A component's weight stays in the mixture's density: what is found is normalised.
    torch.testing.assert_close(found.nats, torch.stack(truth), rtol=0, atol=1e-2)
    guided = ClassifierFree(denoiser, 1.5, {"label": torch.full((6,), 3)})
    assert log_density(guided, examples(), {"label": label}).nats.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_data_survive_the_way_to_noise_and_back(schedule: Schedule) -> None:
    latent = encode(data(schedule), examples(), solver=FINE)
    torch.testing.assert_close(decode(data(schedule), latent, solver=FINE), examples(), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        log_density(data(schedule), examples(), solver=FINE).latent, latent, rtol=1e-4, atol=1e-4
    )


def test_encoded_gaussian_data_are_the_scaled_data() -> None:
    mean, v = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.2
    denoiser = analytic.gaussian(Gaussian(Cosine()), mean, v)
    # (sigma_min)^2 / (2 v) of the data is lost at 1e-4.
    torch.testing.assert_close(
        encode(denoiser, examples(), solver=FINE), (examples() - mean) / math.sqrt(v), rtol=0, atol=1e-6
    )


def test_bits_are_those_of_levels() -> None:
    # Uniform data: 8 bits a level, up to the density's own shape, here a Gaussian.
    denoiser = analytic.gaussian(Gaussian(Cosine()), torch.zeros(4, dtype=torch.float64), 0.2)
    x = 0.4 * torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    found = log_density(denoiser, x, solver=FINE)
    level = torch.distributions.Normal(0.0, math.sqrt(0.2)).log_prob(x) - math.log(127.5)
    torch.testing.assert_close(found.bits(), -level.mean(1) / math.log(2.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.bits(1.0), -found.nats / 4 / math.log(2.0))
    mean, error = found.mean_bits()
    assert mean == pytest.approx(found.bits().mean().item(), rel=1e-12)
    assert error == pytest.approx(found.bits().std().item() / math.sqrt(3), rel=1e-12)
    with pytest.raises(ValueError, match="at least two examples"):
        log_density(denoiser, x[:1]).mean_bits()


def test_noise_for_dequantisation_fills_a_level_and_no_more() -> None:
    rng = Rng.of(1, 2000)
    pixels = torch.full((2000, 3), 128 / 127.5 - 1)
    noisy = dequantized(pixels, rng=rng)
    offset = (noisy - pixels) * 127.5
    assert offset.abs().max() <= 0.5 + 1e-3
    # Uniform on a width of 1: variance 1/12; six thousand draws.
    assert offset.var().item() == pytest.approx(1 / 12, rel=0.05)
    assert offset.mean().abs() < 0.02
    assert torch.equal(dequantized(pixels[5:9], rng=rng[5:9]), noisy[5:9])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_is_differentiated_in_every_mode_and_left_without_gradients(mode: type) -> None:
    config = UNetConfig(
        in_channels=1, out_channels=1, widths=(8,), blocks=(1,), attention=(0,), groups=4, num_classes=3
    )
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    denoiser = NetworkDenoiser(network, Gaussian(Cosine()), V()).eval()
    with mode():
        x = torch.linspace(-1, 1, 2 * 4).reshape(2, 1, 2, 2)
        cond = {"label": torch.tensor([0, 2])}
        coarse = RK45(1e-2, 1e-2, 0.05)
        exact = log_density(denoiser, x, cond, solver=coarse)
        probed = log_density(denoiser, x, cond, probes=4, rng=Rng.of(0, 2), solver=coarse)
    assert exact.nats.dtype is torch.float64
    assert exact.latent.dtype is torch.float32
    assert probed.error is not None
    # Four elements, a step's error of 2e-2 nats each; and an error of four probes is itself known to a half.
    assert ((probed.nats - exact.nats).abs() < 6 * probed.error + 0.2).all()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bad_settings_are_refused() -> None:
    denoiser = data(Cosine())
    with pytest.raises(ValueError, match="probes of at least 1, or None for the exact trace, not 0"):
        log_density(denoiser, examples(), probes=0, rng=RNG)
    with pytest.raises(ValueError, match="rng: probes are drawn"):
        log_density(denoiser, examples(), probes=2)
    with pytest.raises(ValueError, match="one key per example: 6, not 3"):
        log_density(denoiser, examples(), probes=2, rng=RNG[:3])
    with pytest.raises(ValueError, match="one key per example: 6, not 3"):
        dequantized(examples(), rng=RNG[:3])
