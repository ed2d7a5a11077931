"""diffusers as its script for unconditional generation trains it.

Source: ``examples/unconditional_image_generation/train_unconditional.py`` of huggingface/diffusers, commit 58eb52c
(2026-08-23), read for its defaults; no code of it is here. AdamW (rate 1e-4, betas 0.95 and 0.999, decay 1e-6) under a
cosine with 500 steps of warm-up, batches of 16, gradient norm clipped at 1, noise prediction on 1000 linear betas,
average of decay min(0.9999, 1 - (1 + step)^-3/4). Mirroring is off in the script. Its cropping to the resolution moves
nothing when pictures have that size already.

Spared in its favour: decoding and transforming a picture file for each example, the accelerate wrapper, and what the
script draws and saves every ten epochs.
"""

import copy
import math
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.peer import Shuffled, exact_halvings, nearest_width

BATCH, EPOCHS, WARMUP, LEVELS = 16, 100, 500, 1000
WIDTHS = (1, 1, 2, 2, 4, 4)
"""The script's widths at 64x64, down to 2x2, over their smallest; attention stands at the last level but one."""
GROUPS, HEAD = 32, 8
"""Defaults of the library's network: groups of a normalisation, and channels of an attention head."""
ANCESTRAL = 1000
DRAWN_AT_ONCE = 250


class Fast(Enum):
    """Samplers of diffusers with few evaluations."""

    DDIM = "DDIM"
    DPM_SOLVER = "DPM-Solver++ multistep"


@dataclass(frozen=True)
class Diffusers:
    """The library for images of one shape.

    Attributes:
        channels: of the images.
        size: side of the images.
        fast: sampler with fewer evaluations than there are levels.
    """

    channels: int
    size: int
    fast: Fast = Fast.DDIM

    @property
    def name(self) -> str:
        """Its name."""
        return "diffusers"

    def version(self) -> str:
        """Return the installed version."""
        return version("diffusers")

    def network(self, parameters: int) -> nn.Module:
        """Return the script's network: the last of its levels that the size allows, each two blocks deep."""
        levels = min(len(WIDTHS), exact_halvings(self.size) + 1)
        ratios = tuple(width // WIDTHS[-levels] for width in WIDTHS[-levels:])
        build = partial(self._unet, ratios=ratios)
        try:
            # The default number of groups needs widths of 32 channels and is faster, so those come first.
            width = nearest_width(range(GROUPS, 513, GROUPS), build, parameters)
        except ValueError:
            step = HEAD // math.gcd(HEAD, ratios[max(levels - 2, 0)])
            width = nearest_width(range(HEAD, 257, step), build, parameters)
        return self._unet(width, ratios)

    def _unet(self, width: int, ratios: tuple[int, ...]) -> nn.Module:
        last = len(ratios) - 1
        attention = max(last - 1, 0)
        unet: nn.Module = UNet2DModel(
            sample_size=self.size,
            in_channels=self.channels,
            out_channels=self.channels,
            layers_per_block=2,
            block_out_channels=tuple(width * ratio for ratio in ratios),
            down_block_types=tuple("AttnDownBlock2D" if k == attention else "DownBlock2D" for k in range(last + 1)),
            up_block_types=tuple("AttnUpBlock2D" if last - k == attention else "UpBlock2D" for k in range(last + 1)),
            norm_num_groups=math.gcd(GROUPS, width),
        )
        return unet

    def ddpm_network(self) -> nn.Module:
        """Return DDPM's network for CIFAR-10 as the configuration of ``google/ddpm-cifar10-32`` has it."""
        unet: nn.Module = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            norm_num_groups=32,
        )
        return unet

    def predict(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise."""
        predicted: Tensor = network(x, t).sample
        return predicted

    def trainer(self, network: nn.Module, images: Tensor, seed: int, steps: int | None = None) -> "DiffusersTraining":
        """Begin training by the script's loop; 100 epochs unless steps are given."""
        return DiffusersTraining(network, images, seed, steps or -(-len(images) // BATCH) * EPOCHS)

    def sample(self, network: nn.Module, count: int, evaluations: int, seed: int) -> Tensor:
        """Draw with the library's own pipelines."""
        generator = torch.Generator().manual_seed(seed)
        pipeline = self._pipeline(network.eval(), evaluations)
        pipeline.set_progress_bar_config(disable=True)
        pieces = []
        for start in range(0, count, DRAWN_AT_ONCE):
            drawn = pipeline(
                batch_size=min(DRAWN_AT_ONCE, count - start),
                generator=generator,
                num_inference_steps=evaluations,
                output_type="np",
            ).images
            pieces.append(torch.from_numpy((drawn * 255).round().astype("uint8")).permute(0, 3, 1, 2))
        return torch.cat(pieces)

    def _pipeline(self, network: nn.Module, evaluations: int) -> Any:
        trained = DDPMScheduler(num_train_timesteps=LEVELS)
        if evaluations == ANCESTRAL:
            return DDPMPipeline(network, trained)
        if self.fast is Fast.DDIM:
            return DDIMPipeline(network, DDIMScheduler.from_config(trained.config))
        return DDPMPipeline(network, DPMSolverMultistepScheduler.from_config(trained.config))


class DiffusersTraining:
    """The script's loop, one step at a time."""

    def __init__(self, network: nn.Module, images: Tensor, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.batch_size = BATCH
        self.planned: int | None = steps
        self._network = network.train()
        self._batches = Shuffled(images, BATCH, torch.Generator().manual_seed(seed))
        self._noise = DDPMScheduler(num_train_timesteps=LEVELS)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self._rate = _cosine(self._optimizer, steps)
        self._ema = EMAModel(
            network.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=UNet2DModel,
            model_config=network.config,
        )

    def step(self) -> float:
        """Take one step and return its loss."""
        clean = self._batches.next().sub_(0.5).div_(0.5)
        noise = torch.randn(clean.shape)
        levels = torch.randint(0, LEVELS, (len(clean),))
        predicted = self._network(self._noise.add_noise(clean, noise, levels), levels).sample
        loss = F.mse_loss(predicted.float(), noise.float())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._rate.step()
        self._optimizer.zero_grad()
        self._ema.step(self._network.parameters())
        return loss.detach().item()

    def plan(self, steps: int) -> None:
        """Move the end of the cosine."""
        # The schedule's function holds the number of steps; one of the same kind, made beside it, takes its place.
        beside = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._rate.lr_lambdas = _cosine(beside, steps).lr_lambdas
        self.planned = steps

    def ema_network(self) -> nn.Module:
        """Return the network with the averaged weights."""
        network = copy.deepcopy(self._network)
        self._ema.copy_to(network.parameters())
        return network.eval()

    def settings(self) -> dict[str, str]:
        """Say in words what is trained how."""
        return {
            "optimiser": "AdamW, rate 1e-4, betas (0.95, 0.999), weight decay 1e-6, gradient norm clipped at 1",
            "learning rate": "cosine to zero after 500 steps of warm-up",
            "batch": "16",
            "loss": "noise prediction, 1000 linear betas, mean squared error",
            "average": "EMA, decay min(0.9999, 1 - (1 + step)^-0.75), every step",
            "augmentation": "none (the script's default)",
        }


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=WARMUP, num_training_steps=steps)
