import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.energy import Density, EnergyDenoiser, Gradient, InnerProduct
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Score, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import VariancePreserving
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.compose import Mixture
from unfog.sampling.sampler import sample

PROCESS = Gaussian(VariancePreserving())
MEANS = torch.tensor([[-1.0, 0.2], [0.5, 1.0]], dtype=torch.float64)
TRUTH = analytic.mixture(PROCESS, MEANS, 0.3)
X_T = Rng.of(0, 6).normal((2,), Purpose.SCRATCH).double()
TIMES = [torch.tensor(t, dtype=torch.float64) for t in (0.05, 0.4, 0.9)]
ALL: list[Parameterization] = [Score(), Eps(), X0(), V(), Flow(), EDM(0.7)]


class Exact(nn.Module):
    """The scalar network whose gradient is the exact prediction of a parameterization, at one time."""

    def __init__(self, parameterization: Parameterization, t: Tensor) -> None:
        super().__init__()
        self.parameterization, self.t = parameterization, t
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        scales = PROCESS.schedule.scales(self.t)
        c_in, (_, _, skip, out) = self.parameterization.c_in(*scales), self.parameterization.solve(*scales)
        x_t = x / c_in
        energy = -TRUTH.log_density(x_t, self.t)
        return self.one * (skip * x_t.square().sum(1) / 2 - scales[1] * energy) * c_in / out


def exact(parameterization: Parameterization, t: Tensor) -> EnergyDenoiser:
    return EnergyDenoiser(NetworkDenoiser(Gradient(Exact(parameterization, t)), PROCESS, parameterization))


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("parameterization", ALL, ids=repr)
def test_an_energy_is_asked_for_and_its_gradient_estimates(parameterization: Parameterization, t: Tensor) -> None:
    denoiser = exact(parameterization, t)
    torch.testing.assert_close(denoiser(X_T, t).x0, TRUTH(X_T, t).x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoiser.log_density(X_T, t), TRUTH.log_density(X_T, t), rtol=1e-9, atol=1e-9)
    assert isinstance(denoiser, Density)


def test_the_energy_of_a_score_is_the_network_itself() -> None:
    t = TIMES[1]
    denoiser = exact(Score(), t)
    network = denoiser.denoiser.network
    assert isinstance(network, Gradient)
    assert torch.equal(denoiser.energy(X_T, t), network.scalar(X_T, t))


def test_a_mixture_of_energies_is_the_energy_of_the_mixture() -> None:
    t = TIMES[1]
    other = analytic.gaussian(PROCESS, torch.tensor([2.0, -1.0], dtype=torch.float64), 0.2)
    found = Mixture([exact(EDM(), t), other], (2.0, 1.0))(X_T, t).x0
    torch.testing.assert_close(found, Mixture([TRUTH, other], (2.0, 1.0))(X_T, t).x0, rtol=1e-9, atol=1e-9)


def image_network(kind: type) -> nn.Module:
    torch.manual_seed(0)
    if kind is UNet:
        network: nn.Module = UNet(
            UNetConfig(1, 1, widths=(8, 8), blocks=(1, 1), attention=(1,), groups=4, num_classes=3)
        )
    else:
        network = DiT(DiTConfig(1, 1, patch=2, dim=16, depth=2, heads=2, num_classes=3))
    # A fresh network answers with zeros, of which gradients tell nothing.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Gradient(InnerProduct(network)).eval()


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_networks_for_images_answer_alike_in_training_and_inference(kind: type) -> None:
    network, label = image_network(kind), torch.tensor([0, 1, 3])
    denoiser = NetworkDenoiser(network, PROCESS, EDM())
    x_t, t = Rng.of(0, 3).normal((1, 8, 8), Purpose.SCRATCH), torch.tensor(0.4)
    trained = denoiser(x_t, t, {"label": label})
    assert trained.x0.requires_grad
    with torch.no_grad():
        plain = denoiser(x_t, t, {"label": label})
    with torch.inference_mode():
        inferred = denoiser(x_t.clone(), t.clone(), {"label": label.clone()})
    for other in (plain, inferred):
        assert not other.x0.requires_grad
        # Attention may be computed by other kernels where it is not differentiated twice.
        torch.testing.assert_close(other.x0, trained.x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(kind: type) -> None:
    network = image_network(kind).double()
    x, level = (
        Rng.of(1, 2).normal((1, 4, 4), Purpose.SCRATCH).double(),
        torch.tensor([300.0, 700.0], dtype=torch.float64),
    )
    weight = next(p for p in network.parameters() if p.ndim == 4)

    def loss() -> Tensor:
        total: Tensor = (network(x, level) - 1.0).square().sum()
        return total

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = Rng.of(2, len(weight)).normal(weight.shape[1:], Purpose.SCRATCH).double()
    with torch.no_grad():
        ends = []
        for side in (1e-5, -1e-5):
            weight.add_(side * direction)
            ends.append(loss())
            weight.sub_(side * direction)
    found = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(found, (gradient * direction).sum(), rtol=1e-6, atol=1e-8)


def test_gradients_reach_the_noisy_data_where_they_are_asked_for() -> None:
    denoiser = exact(V(), TIMES[1])
    x_t = X_T.clone().requires_grad_()
    (found,) = torch.autograd.grad(denoiser(x_t, TIMES[1]).x0.sum(), x_t)
    x = X_T.clone().requires_grad_()
    (expected,) = torch.autograd.grad(TRUTH(x, TIMES[1]).x0.sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_samplers_run_in_inference_mode() -> None:
    denoiser = NetworkDenoiser(image_network(UNet), PROCESS, EDM())
    rng = Rng.of(0, 2)
    with torch.inference_mode():
        x = PROCESS.prior((1, 8, 8), rng=rng)
        label = {"label": torch.tensor([0, 1])}
        found = sample(denoiser, DDIM(), Trailing().times(PROCESS.schedule, 3), x, label, rng=rng)
    assert found.isfinite().all()


def test_the_network_learns_through_its_gradient() -> None:
    # N(0, 4): the score is -x / (4 alpha^2 + sigma^2), the energy |x|^2 over twice that.
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return 0.5 * self.width.exp() * x.square().sum(1)

    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = PROCESS.schedule.scales(t)
    network = Quadratic()
    denoiser = NetworkDenoiser(Gradient(network), PROCESS, Score())
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    eps = Rng.of(5, 4000).normal((2,), Purpose.NOISE)
    x_t = PROCESS.add_noise(2.0 * Rng.of(6, 4000).normal((2,), Purpose.SCRATCH), eps, t)

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = (denoiser.predict(x_t, t) + eps / sigma.float()).square().mean()
        error.backward()
        return error

    optimizer.step(loss)
    # 8,000 numbers: 1 / sqrt(8000) = 1.1 per cent, some times that for the quotient of two sums.
    assert network.width.exp().item() == pytest.approx(1 / (4 * alpha**2 + sigma**2).item(), rel=0.05)


def test_other_networks_have_no_energy() -> None:
    with pytest.raises(ValueError, match="expected a network that is the Gradient of an energy, got Identity"):
        EnergyDenoiser(NetworkDenoiser(nn.Identity(), PROCESS, V()))
