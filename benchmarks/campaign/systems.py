"""The systems that are compared, behind one interface: ours and the peers."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.campaign.jobs import System
from benchmarks.peers.peer import Peer, Training, parameters
from unfog.data.dataset import Dataset, to_uint8
from unfog.data.loader import Prefetched, ShuffledBatches
from unfog.diffusion.random import seed_of
from unfog.evaluation.measure import describe, draw, worded
from unfog.recipe.build import build_pipeline, build_task, fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.load import override
from unfog.recipe.networks import build_network
from unfog.recipe.run import initial_network
from unfog.recipe.schema import Recipe
from unfog.recipes import named
from unfog.sampling.request import SampleRequest
from unfog.training.ema import average_of
from unfog.training.trainer import Trainer

RECIPE = "mnist-small"
CARD = DataCard("mnist", "", 0, (1, 28, 28), ())
"""What the networks are fitted to."""
FAST, ANCESTRAL = 50, 1000
"""Evaluations of the peers' fast and default samplers."""
DPM_SOLVER = 20
"""Evaluations of the peer's multistep solver, as many as our default."""


class Drawn(NamedTuple):
    """Samples ``(N, C, H, W)`` uint8 of one sampler, described in words."""

    name: str
    settings: str
    evaluations: int
    images: Tensor


def recipe(seed: int) -> Recipe:
    """Return our recipe without labels, which the peers' defaults do not have."""
    chosen = override(named(RECIPE), ["condition.classes=false", f"train.seed={seed}"])
    return fit_to_data(chosen, CARD)


def data() -> tuple[Dataset, Dataset]:
    """Return the training and the test images."""
    opened = open_data(named(RECIPE).data)
    return opened.train, opened.test


def pixels(dataset: Dataset) -> Tensor:
    """Return all images of a set, ``(N, C, H, W)`` uint8."""
    pieces = torch.split(torch.arange(len(dataset)), 1000)
    return torch.cat([to_uint8(dataset.gather(ids)["x0"]) for ids in pieces])


def size() -> int:
    """Return the number of parameters of our network, which sets that of the peers'."""
    return parameters(build_network(recipe(0).network))


def peer_of(system: System) -> Peer:
    """Return a peer; its library is imported only then."""
    if system is System.DIFFUSERS:
        from benchmarks.peers.diffusers_peer import Diffusers

        return Diffusers(1, 28)
    from benchmarks.peers.ddpm_pytorch_peer import DDPMPytorch

    return DDPMPytorch(1, 28)


def version_of(system: System) -> str:
    """Return the version of the system's library."""
    return version("unfog") if system is System.UNFOG else peer_of(system).version()


def begin(system: System, dataset: Dataset, seed: int) -> Training:
    """Make network, optimiser and data of a system ready to train."""
    if system is System.UNFOG:
        return UnfogTraining(recipe(seed), dataset)
    peer = peer_of(system)
    torch.manual_seed(seed)
    network = peer.network(size())
    return peer.trainer(network, pixels(dataset), seed)


def fresh_network(system: System) -> nn.Module:
    """Return a network of the system, to be filled with weights."""
    return initial_network(recipe(0)) if system is System.UNFOG else peer_of(system).network(size())


def samples(system: System, network: nn.Module, count: int, seed: int) -> list[Drawn]:
    """Draw with each of the samplers that a system is judged by."""
    if system is System.UNFOG:
        settings = recipe(seed).sample
        pipeline = build_pipeline(recipe(seed), network.eval(), CARD)
        images = draw(pipeline, SampleRequest(count, None, seed, 0, settings, 250))
        return [Drawn("default", describe(settings), settings.evaluations, images)]
    peer = peer_of(system)
    drawn = [Drawn("ddim", f"DDIM, {FAST} evaluations", FAST, peer.sample(network, count, FAST, seed))]
    if system is System.DIFFUSERS:
        from benchmarks.peers.diffusers_peer import Diffusers, Fast

        solver = Diffusers(1, 28, Fast.DPM_SOLVER)
        images = solver.sample(network, count, DPM_SOLVER, seed)
        drawn.append(Drawn("dpm-solver", f"{Fast.DPM_SOLVER.value}, {DPM_SOLVER} evaluations", DPM_SOLVER, images))
    return drawn


@dataclass
class UnfogTraining:
    """Our trainer, one step at a time."""

    recipe: Recipe
    dataset: Dataset

    def __post_init__(self) -> None:
        config = self.recipe.train
        seed = seed_of("data", config.seed)
        batches = Prefetched(ShuffledBatches(self.dataset, seed, flip=self.recipe.data.flip))
        self._trainer = Trainer(build_task(self.recipe, initial_network(self.recipe)), batches, config)
        self.batch_size = config.batch_size
        self.planned: int | None = config.steps

    def step(self) -> float:
        """Take one step and return its loss."""
        return self._trainer.advance().loss

    def plan(self, steps: int) -> None:
        """Move the end of the learning rate's schedule."""
        self._trainer.config = replace(self._trainer.config, steps=steps)
        self.planned = steps

    def ema_network(self) -> nn.Module:
        """Return the network with the average that the recipe samples from."""
        network = initial_network(self.recipe)
        group = "model" if self.recipe.average is None else average_of(self.recipe.average).name
        network.load_state_dict(self._trainer.state().tensors[group])
        return network.eval()

    def settings(self) -> dict[str, str]:
        """Say in words what is trained how."""
        return {
            "optimiser": worded(self.recipe.train.optimizer),
            "learning rate": "falls to zero at the planned end",
            "batch": str(self.batch_size),
            "loss": f"{worded(self.recipe.parameterization)} on {worded(self.recipe.schedule)}, mean squared error",
            "average": f"power profile of relative length {self.recipe.average}",
            "augmentation": "none",
        }
