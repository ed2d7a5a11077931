"""Both sides of a comparison do the same work: the same evaluations, the same noise levels, the same function."""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unfog.data.dataset import ArrayDataset
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.sampling.gaussian import DDIM

for library in ("ema_pytorch", "denoising_diffusion_pytorch"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is installed for benchmarks only", allow_module_level=True)

with warnings.catch_warnings():
    # What other libraries warn of when they are imported is not ours to mend.
    warnings.simplefilter("ignore")
    from benchmarks.bench import host
    from benchmarks.bench.contenders import Entrant, entrants, images, task_of, trainer_of
    from benchmarks.bench.curves import LOG_SNRS, error_of_noise
    from benchmarks.bench.sampling import EVALUATIONS, draw, pipeline_of
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from diffusers import DDPMScheduler, UNet2DModel


def tiny_networks() -> list[nn.Module]:
    """Small networks of both libraries, in the order of ``entrants``."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    first = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    return [first, Unet(dim=8, dim_mults=(1, 2), channels=1)]


@pytest.fixture(params=[0, 1], ids=["diffusers", "ddpm-pytorch"])
def entrant_and_network(request: pytest.FixtureRequest) -> tuple[Entrant, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return entrants(1, 8)[request.param], tiny_networks()[request.param]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # torch's, from within diffusers
@pytest.mark.parametrize("method", host.METHODS)
def test_both_loops_ask_the_network_as_often(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr(host.Nothing, "forward", lambda self, x, t: calls.append(t) or x)
    ours, theirs = host.METHODS[method]
    loops: tuple[Callable[[], object], ...] = (host.our_loop(ours, 5), host.their_loop(theirs(1000), 5))
    counts = []
    for loop in loops:
        calls.clear()
        loop()
        counts.append(len(calls))
    assert counts == [ours.evaluations(5)] * 2


def test_a_foreign_network_is_the_function_that_its_library_calls(
    entrant_and_network: tuple[Entrant, nn.Module],
) -> None:
    entrant, network = entrant_and_network
    network.eval()
    index, x = torch.tensor([3, 700]), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = entrant.denoiser(network).predict(x, entrant.schedule.time_of(index.double()))
        expected = entrant.peer.predict(network, x, index)
    # The index passes through a time in float64 and comes back to float32.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_entrants_schedule_has_the_noise_of_its_library() -> None:
    ours = [entrant.schedule.alpha(entrant.schedule.time_of(torch.arange(1000).double())) for entrant in entrants(1, 8)]
    diffusion = GaussianDiffusion(tiny_networks()[1], image_size=8)
    theirs = [DDPMScheduler(1000).alphas_cumprod, diffusion.alphas_cumprod]
    for alpha, alphas_cumprod in zip(ours, theirs, strict=True):
        # Theirs is a product of a thousand float32 numbers in diffusers: 1000 * 6e-8 relative.
        torch.testing.assert_close(alpha.square(), alphas_cumprod.double(), rtol=6e-5, atol=1e-7)


def test_our_trainer_trains_a_foreign_network(
    entrant_and_network: tuple[Entrant, nn.Module],
) -> None:
    entrant, network = entrant_and_network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step = trainer_of(entrant.denoiser(network), images(8, 1, 8), 4).advance()
    assert step.applied
    assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters())


def test_our_pipeline_samples_from_a_foreign_network(
    entrant_and_network: tuple[Entrant, nn.Module],
) -> None:
    entrant, network = entrant_and_network
    denoiser = entrant.denoiser(network)
    calls: list[object] = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(None))
    assert draw(pipeline_of(denoiser, 1, 8, DDIM()), 2).shape == (2, 1, 8, 8)
    assert len(calls) == EVALUATIONS


def test_the_error_of_the_noise_is_that_of_the_network(entrant_and_network: tuple[Entrant, nn.Module]) -> None:
    entrant, _ = entrant_and_network

    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    # A network that predicts no noise errs by its mean square; one that predicts v = 0 by alpha^2 of that of v, which
    # is alpha^2 + sigma^2 x0^2: here x0 is 1.
    task = task_of(NetworkDenoiser(Zero(), Gaussian(entrant.schedule), entrant.parameterization))
    white = ArrayDataset(np.full((64, 1, 8, 8), 255, dtype=np.uint8))
    share = torch.sigmoid(LOG_SNRS).mean().item() if isinstance(entrant.parameterization, V) else 1.0
    # 64 pictures of 64 numbers: a standard error of sqrt(2 / 4096) = 0.022 for each level, on the same noise.
    assert error_of_noise(task, white, 64) == pytest.approx(share, abs=0.09)
