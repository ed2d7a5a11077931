"""denoising-diffusion-pytorch as its ``Trainer`` trains it by default.

Source: ``Trainer``, ``GaussianDiffusion`` and ``Unet`` of denoising-diffusion-pytorch 2.3.4, read for their defaults;
no code of it is here. Adam (rate 1e-4, betas 0.9 and 0.99), batches of 16, gradient norm clipped at 1, v prediction on
1000 levels of the sigmoid schedule, average of decay 0.995 every ten steps (``ema_pytorch``). The network is the
README's: widths in the ratios 1, 2, 4, 8, as many as the size allows, and ``flash_attn=True``.

Changed in its favour: the default mirrors pictures at random, which spoils digits, and is off. Spared: decoding a
picture file for each example, the accelerate wrapper, and what the class draws, saves and scores every 1000 steps.
"""

import copy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor, nn

from benchmarks.peers import stand_in
from benchmarks.peers.peer import Shuffled, exact_halvings, nearest_width

with stand_in.present():
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

BATCH, LEVELS = 16, 1000
RATIOS = (1, 2, 4, 8)
ANCESTRAL = 1000
DRAWN_AT_ONCE = 250


@dataclass(frozen=True)
class DDPMPytorch:
    """The library for images of one shape.

    Attributes:
        channels: of the images.
        size: side of the images.
    """

    channels: int
    size: int

    @property
    def name(self) -> str:
        """Its name."""
        return "ddpm-pytorch"

    def version(self) -> str:
        """Return the installed version."""
        return version("denoising-diffusion-pytorch")

    def network(self, parameters: int) -> nn.Module:
        """Return the README's network, without the levels that the size does not allow."""
        ratios = RATIOS[: min(len(RATIOS), exact_halvings(self.size) + 1)]
        width = nearest_width(range(8, 257, 2), partial(self._unet, ratios=ratios), parameters)
        return self._unet(width, ratios)

    def _unet(self, width: int, ratios: tuple[int, ...]) -> nn.Module:
        unet: nn.Module = Unet(dim=width, dim_mults=ratios, channels=self.channels, flash_attn=True)
        return unet

    def ddpm_network(self) -> nn.Module:
        """Return the nearest that the library has: DDPM's widths and full attention at 16x16.

        Its blocks stay its own: linear attention at the other levels, normalisation without groups or centring, a
        stem of 7x7 and scale-and-shift from the time. It is smaller: 28,537,475 parameters beside the 35,746,307 of
        DDPM's network.
        """
        unet: nn.Module = Unet(
            dim=128, dim_mults=(1, 2, 2, 2), channels=3, full_attn=(False, True, False, False), flash_attn=True
        )
        return unet

    def predict(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted v."""
        predicted: Tensor = network(x, t)
        return predicted

    def trainer(self, network: nn.Module, images: Tensor, seed: int, steps: int | None = None) -> "DDPMPytorchTraining":
        """Begin training by the loop of the ``Trainer``; its learning rate is constant, so steps change nothing."""
        return DDPMPytorchTraining(GaussianDiffusion(network, image_size=images.shape[-1]), images, seed)

    def sample(self, network: nn.Module, count: int, evaluations: int, seed: int) -> Tensor:
        """Draw with ``GaussianDiffusion.sample``."""
        diffusion = GaussianDiffusion(
            network, image_size=self.size, timesteps=LEVELS, sampling_timesteps=min(evaluations, ANCESTRAL)
        ).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pieces = [
                diffusion.sample(batch_size=min(DRAWN_AT_ONCE, count - start))
                for start in range(0, count, DRAWN_AT_ONCE)
            ]
        return torch.cat(pieces).clamp(0, 1).mul(255).round().to(torch.uint8)


class DDPMPytorchTraining:
    """The loop of the ``Trainer``, one step at a time."""

    def __init__(self, diffusion: GaussianDiffusion, images: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.batch_size = BATCH
        self.planned: int | None = None
        self._diffusion = diffusion.train()
        self._batches = Shuffled(images, BATCH, torch.Generator().manual_seed(seed))
        self._optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self._ema = EMA(diffusion, beta=0.995, update_every=10)

    def step(self) -> float:
        """Take one step and return its loss."""
        loss: Tensor = self._diffusion(self._batches.next())
        told = loss.item()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._diffusion.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._ema.update()
        return told

    def plan(self, steps: int) -> None:
        """Change nothing: the learning rate is constant."""

    def ema_network(self) -> nn.Module:
        """Return the network with the averaged weights."""
        network: nn.Module = copy.deepcopy(self._ema.ema_model.model)
        return network.eval()

    def settings(self) -> dict[str, str]:
        """Say in words what is trained how."""
        return {
            "optimiser": "Adam, rate 1e-4, betas (0.9, 0.99), gradient norm clipped at 1",
            "learning rate": "constant",
            "batch": "16",
            "loss": "v prediction, 1000 levels of the sigmoid schedule, mean squared error",
            "average": "EMA, decay 0.995, every 10 steps",
            "augmentation": "none (the default mirrors at random, which spoils digits)",
        }
