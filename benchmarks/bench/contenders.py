"""What is measured: our trainer and sampler, around our networks and around those of other libraries.

A network of another library becomes one of ours by a module that calls it, together with the schedule and the quantity
that the library trains it for. Both sides then do the same arithmetic on the same weights.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.peers.ddpm_pytorch_peer import DDPMPytorch
from benchmarks.peers.diffusers_peer import Diffusers
from benchmarks.peers.peer import Peer
from unfog.data.dataset import ArrayDataset
from unfog.data.loader import Prefetched, ShuffledBatches
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.unet_presets import ddpm_cifar10
from unfog.diffusion.parameterization import Eps, Parameterization, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import seed_of
from unfog.diffusion.schedule import Schedule, Tabulated, linear
from unfog.diffusion.times import Levels
from unfog.diffusion.weighting import Constant
from unfog.recipe.build import build_task, fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.networks import build_network
from unfog.recipe.schema import ConditionConfig, Recipe
from unfog.recipes import named
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.denoising import Denoising
from unfog.training.config import Precision, TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer

SEED = 0
DDPM_BATCH = 16


class Foreign(nn.Module):
    """A network of another library, called as ours are."""

    def __init__(self, peer: Peer, network: nn.Module) -> None:
        super().__init__()
        self.peer, self.network = peer, network

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.peer.predict(self.network, x, c_noise)


@dataclass(frozen=True)
class Entrant:
    """Another library with what its networks are trained for.

    Attributes:
        peer: the library, for images of one shape.
        schedule: its noise schedule.
        parameterization: what its networks predict.
    """

    peer: Peer
    schedule: Schedule
    parameterization: Parameterization

    def denoiser(self, network: nn.Module) -> NetworkDenoiser:
        """Return our denoiser around a network of the library."""
        return NetworkDenoiser(Foreign(self.peer, network), Gaussian(self.schedule), self.parameterization)


def entrants(channels: int, size: int) -> tuple[Entrant, ...]:
    """Return the other libraries for images of one shape."""
    # Importing it takes the stand-in that the peer's module puts in place.
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import sigmoid_beta_schedule

    sigmoid = Tabulated.from_betas(sigmoid_beta_schedule(1000))
    return (
        Entrant(Diffusers(channels, size), linear(), Eps()),
        Entrant(DDPMPytorch(channels, size), sigmoid, V()),
    )


def network_near(peer: Peer, wanted: int) -> nn.Module:
    """Return the library's network of its default shape whose size comes nearest, by steps of 5 %.

    Widths come in steps, so that a small network may have no neighbour within the 5 % that a peer insists on.
    """
    for steps in (0, -1, 1, -2, 2, -3, 3):
        with suppress(ValueError):
            return peer.network(round(wanted * (1 + 0.05 * steps)))
    raise ValueError(f"expected a network of {peer.name} with {wanted} parameters within 20 %, found none")


def images(count: int, channels: int, size: int) -> Tensor:
    """Return pictures of noise, ``(count, channels, size, size)`` uint8: speed does not depend on what they show."""
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(SEED)).byte()


def task_of(denoiser: NetworkDenoiser) -> Denoising:
    """Return DDPM's task: whole levels, the plain squared error of what is predicted."""
    return Denoising(denoiser, Unconditional(), Levels(), Constant())


def trainer_of(
    denoiser: NetworkDenoiser, pictures: Tensor, batch: int, precision: Precision = Precision.FLOAT32
) -> Trainer:
    """Return our trainer with what the other libraries do too: AdamW, clipping, one average of the weights.

    Our own networks are laid out channels last, as in our recipes; those of the others as they come.
    """
    config = TrainConfig(
        steps=1_000_000,
        batch_size=batch,
        seed=SEED,
        precision=precision,
        channels_last=not isinstance(denoiser.network, Foreign),
        ema=(0.05,),
        optimizer=OptimizerConfig(lr=1e-4, clip=1.0),
    )
    return Trainer(task_of(denoiser), ShuffledBatches(ArrayDataset(pictures.numpy()), SEED), config)


def recipe_of(name: str, channels: int, size: int) -> Recipe:
    """Return a recipe for pictures of a shape, without classes, as the other libraries train by default."""
    recipe = replace(named(name), condition=ConditionConfig(classes=False))
    return fit_to_data(recipe, DataCard("", "", 0, (channels, size, size), ()))


def default_trainer(recipe: Recipe, network: nn.Module, pictures: Tensor) -> Trainer:
    """Return the trainer of a recipe as ``unfog train`` runs it, without the files that it writes."""
    dataset = ArrayDataset(pictures.numpy())
    batches = ShuffledBatches(dataset, seed_of("data", recipe.train.seed), flip=recipe.data.flip)
    return Trainer(build_task(recipe, network), Prefetched(batches), recipe.train)


def ddpm_network() -> nn.Module:
    """Return our preset of DDPM's network; without dropout, which the others have not."""
    return build_network(replace(ddpm_cifar10(), dropout=0.0))
