"""Families of generative models beside each other: what they have in common, and the baselines.

A ``Contender`` is a model of some family with all that is needed to train it, to draw from it and to say how many bits
its likelihood takes. Diffusion models come from recipes; the others are made here, of the kind that is well understood
and with settings from their publications, and as many parameters as the diffusion model that they stand beside.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unfog.data.dataset import Dataset
from unfog.diffusion.bound import require_levels
from unfog.diffusion.checks import require
from unfog.diffusion.nn.autoencoder import Autoencoder
from unfog.diffusion.nn.coupling_flow import CouplingFlow, FlowConfig
from unfog.diffusion.nn.gan import Critic, Generator
from unfog.diffusion.nn.stages import StageConfig
from unfog.diffusion.random import Purpose, Rng, seed_of
from unfog.evaluation.bound import Effort as BoundEffort
from unfog.evaluation.bound import measure_bounds
from unfog.evaluation.loss import chosen_examples, evaluating
from unfog.evaluation.measure import describe
from unfog.metrics.interval import Score, mean
from unfog.pipeline import Pipeline
from unfog.sampling.request import SampleRequest
from unfog.tasks.adversarial import Adversarial
from unfog.tasks.likelihood_flow import LikelihoodFlow
from unfog.tasks.task import Task
from unfog.tasks.variational import Variational
from unfog.training.config import TrainConfig
from unfog.training.ema import Average, average_of
from unfog.training.optim import LinearToZero, OptimizerConfig

Made = TypeVar("Made")

FIT_EXAMPLES = 256
"""Examples that the scales of a flow are set from."""
DRAWS = 16
"""Draws of the bound for each test example: latents of a variational autoencoder, times of a diffusion model."""
WIDTHS = range(4, 513, 4)
"""Widths that a baseline may have."""


class Family(Enum):
    """A way of modelling data."""

    DIFFUSION = "diffusion"
    GAN = "gan"
    VAE = "vae"
    FLOW = "flow"


class Sampling(Protocol):
    """What a model of any family can do."""

    @property
    def evaluations(self) -> int:
        """Evaluations of networks for one sample, at most."""
        ...

    @property
    def settings(self) -> str:
        """How samples are drawn, in words."""
        ...

    def sample(self, count: int, labels: Tensor | None, seed: int, batch_size: int = 100) -> Tensor:
        """Return pictures ``(count, C, H, W)`` in [-1, 1] up to the model's error.

        Sample k is a pure function of the seed, of k and of its label; the batch size changes speed and memory only.
        """
        ...


@dataclass(frozen=True)
class Diffused:
    """A diffusion model as one that samples.

    Attributes:
        pipeline: the model with its settings.
    """

    pipeline: Pipeline

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for one sample, at most."""
        return self.pipeline.settings.evaluations

    @property
    def settings(self) -> str:
        """How samples are drawn, in words."""
        return describe(self.pipeline.settings)

    def sample(self, count: int, labels: Tensor | None, seed: int, batch_size: int = 100) -> Tensor:
        """Draw samples; see ``Sampling``."""
        asked = None if labels is None else labels.tolist()
        return self.pipeline.sample(SampleRequest(count, asked, seed, batch_size=batch_size)).x.cpu()


@dataclass(frozen=True)
class OneShot:
    """A model that maps normal vectors to pictures in one evaluation.

    Attributes:
        network: whose mode and device are looked at.
        decode: takes vectors ``(B, latent_dim)`` and classes ``(B,)`` or None, and returns pictures.
        latent_dim: length of the vectors.
        settings: how samples are drawn, in words.
    """

    network: nn.Module
    decode: Callable[[Tensor, Tensor | None], Tensor]
    latent_dim: int
    settings: str
    evaluations: int = field(default=1, init=False)

    def sample(self, count: int, labels: Tensor | None, seed: int, batch_size: int = 100) -> Tensor:
        """Draw samples; see ``Sampling``.

        Raises:
            FloatingPointError: if a sample is not finite.
        """
        require(labels is None or labels.shape == (count,), f"{count} labels, one a sample, got {labels}")
        drawn = []
        parameter = next(self.network.parameters())
        with evaluating(self.network):
            for index in torch.split(torch.arange(count, device=parameter.device), batch_size):
                z = Rng.of(seed, index).normal((self.latent_dim,), Purpose.PRIOR)
                label = None if labels is None else labels.to(parameter.device)[index]
                drawn.append(self.decode(z.to(parameter), label).cpu())
        samples = torch.cat(drawn)
        if not bool(samples.isfinite().all()):
            raise FloatingPointError(f"a sample is not finite; {self.settings}")
        return samples.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class Bits:
    """How many bits a dimension of a test example takes.

    Attributes:
        score: bits per dimension of 256 levels, with its interval.
        kind: what the number is: an exact likelihood of what, or a bound.
    """

    score: Score
    kind: str


@dataclass(frozen=True, eq=False)
class Contender:
    """A model of a family, not trained yet.

    Attributes:
        family: which.
        task: what is minimised; its player ``model`` is what samples are drawn from.
        config: how it is trained; its steps are a first guess of what the time will allow.
        average: of the weights that samples are drawn from; None takes those of the last step.
        classes: how many classes it is told, or None.
        sampling: returns what draws, with the weights that the task's network has now.
        bits: measures test examples with these weights, given how many and a seed; None without a likelihood.
        settings: what it is, in words, by topic.
    """

    family: Family
    task: Task
    config: TrainConfig
    average: Average | None
    classes: int | None
    sampling: Callable[[], Sampling]
    bits: Callable[[Dataset, int, int], Bits] | None
    settings: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Trained parameters of all players."""
        return sum(count_parameters(player) for player in self.task.players().values())

    @property
    def drawing_parameters(self) -> int:
        """Parameters that take part in drawing: those of the player ``model``, without an encoder."""
        model = self.task.players()["model"]
        return count_parameters(model.synthesis if isinstance(model, Autoencoder) else model)


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers of a module are learned."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def diffusion(
    pipeline: Callable[[], Pipeline],
    task: Task,
    config: TrainConfig,
    average: Average | None,
    classes: int | None,
    settings: Mapping[str, str],
) -> Contender:
    """Return a diffusion model as a contender.

    Args:
        pipeline: returns the model around the network that the task trains, as it is now.
        task: what is minimised.
        config: how.
        average: of the weights that samples are drawn from; None takes those of the last step.
        classes: how many classes it is told, or None.
        settings: what it is, in words, by topic.
    """

    def bits(test: Dataset, count: int, seed: int) -> Bits:
        made, effort = pipeline(), BoundEffort(count, DRAWS, seed=seed)
        best = measure_bounds(made.denoiser, made.conditioner, test, effort).best
        return Bits(best.total, f"upper bound, {best.method}, {DRAWS} times each")

    return Contender(
        Family.DIFFUSION, task, config, average, classes, lambda: Diffused(pipeline()), bits, dict(settings)
    )


class _Plan(NamedTuple):
    """What a baseline is made for; see ``baseline``."""

    train: Dataset
    classes: int | None
    target: int
    seed: int
    batch_size: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        size = self.train.info.size
        require(len(size) == 2, f"pictures, got examples of shape {self.train.info.fields['x0'].shape}")
        return size[0], size[1]

    def stages(self, width: int) -> StageConfig:
        """Return the shape of a generator, critic or autoencoder."""
        # As the recipes' networks, which begin at half the resolution where there is room for it.
        patch = 2 if all(side >= 16 and side % 4 == 0 for side in self.sides) else 1
        return StageConfig(self.train.info.channels, self.sides, width, num_classes=self.classes, patch=patch)

    def flow(self, width: int) -> FlowConfig:
        """Return the shape of a flow."""
        return FlowConfig(self.train.info.channels, self.sides, width, num_classes=self.classes)

    def config(self, optimizer: OptimizerConfig) -> TrainConfig:
        """Return how it is trained."""
        return TrainConfig(
            1000, self.batch_size, seed=self.seed, channels_last=True, ema=(AVERAGE,), optimizer=optimizer
        )

    def falling(self) -> OptimizerConfig:
        """Return the optimiser of what is trained by a likelihood."""
        return OptimizerConfig(lr=RATE, warmup_examples=WARMUP * self.batch_size, decay=LinearToZero())


def baseline(
    family: Family, train: Dataset, *, classes: int | None, target: int, seed: int, batch_size: int
) -> Contender:
    """Return a baseline of about a given size for some data.

    Args:
        family: gan, vae or flow.
        train: the data.
        classes: how many classes it is told; None for a model without.
        target: trained parameters that it is to have; the width that comes nearest is taken.
        seed: of weights and training.
        batch_size: examples a step.

    Raises:
        ValueError: if the family is another one, or the pictures have a size that its network cannot take.
    """
    makers = {Family.GAN: _gan, Family.VAE: _vae, Family.FLOW: _flow}
    require(family in makers, f"a baseline: {', '.join(known.value for known in makers)}; got {family.value}")
    return makers[family](_Plan(train, classes, target, seed, batch_size))


def _gan(plan: _Plan) -> Contender:
    def pair(width: int) -> tuple[Generator, Critic]:
        return Generator(plan.stages(width)), Critic(plan.stages(width))

    width = _width(pair, plan.target)
    generator, critic = _seeded(lambda: pair(width), plan.seed)
    task = Adversarial(generator, critic, gamma=GAMMA, every=R1_EVERY)
    # Constant: a game has no minimum that a falling rate would settle into, and the average does the settling.
    optimizer = OptimizerConfig(lr=GAN_RATE, betas=(0.0, 0.99), clip=None)
    settings = {
        "model": f"residual generator and projection critic, width {width}, latent {generator.config.latent_dim}",
        "loss": f"{task.game.value}, R1 gamma {GAMMA:g} borne by one example of {R1_EVERY}",
        "optimiser": f"Adam {GAN_RATE:g}, betas 0 and 0.99, constant",
    }

    def sampling() -> Sampling:
        return OneShot(generator, generator, generator.config.latent_dim, "generator, one evaluation")

    config = plan.config(optimizer)
    return Contender(Family.GAN, task, config, average_of(AVERAGE), plan.classes, sampling, None, settings)


def _vae(plan: _Plan) -> Contender:
    width = _width(lambda width: (Autoencoder(plan.stages(width)),), plan.target)
    network = _seeded(lambda: Autoencoder(plan.stages(width)), plan.seed)
    task = Variational(network)
    settings = {
        "model": f"residual encoder and decoder, width {width}, latent {network.latent_dim}",
        "loss": "ELBO, discretised logistic with one learned scale a channel, beta 1",
        "optimiser": f"Adam {RATE:g}, falls to zero at the end of the time",
    }

    def sampling() -> Sampling:
        return OneShot(
            network, network.decode, network.latent_dim, "location of the decoder's distribution, one evaluation"
        )

    def bits(test: Dataset, count: int, seed: int) -> Bits:
        def measured(x0: Tensor, label: Tensor | None, rng: Rng) -> Tensor:
            noises = [rng.at(draw).normal((network.latent_dim,), Purpose.NOISE) for draw in range(DRAWS)]
            bounds = torch.stack([task.terms(x0, noise, label).bound for noise in noises])
            return bounds.double().mean(0) / (x0[0].numel() * math.log(2.0))

        score = _over_examples(network, plan.classes, test, count, seed, measured)
        return Bits(score, f"upper bound (ELBO), {DRAWS} latents each")

    config = plan.config(plan.falling())
    return Contender(Family.VAE, task, config, average_of(AVERAGE), plan.classes, sampling, bits, settings)


def _flow(plan: _Plan) -> Contender:
    width = _width(lambda width: (CouplingFlow(plan.flow(width)),), plan.target)
    network = _seeded(lambda: CouplingFlow(plan.flow(width)), plan.seed)
    task = LikelihoodFlow(network)
    some = plan.train.gather(chosen_examples(plan.train, FIT_EXAMPLES, plan.seed))
    network.fit(some["x0"], some["label"] if plan.classes else None)
    shape = network.config
    settings = {
        "model": f"affine couplings of width {width}, {shape.levels} levels of {shape.steps} steps, mixed channels",
        "loss": "negative log-likelihood of dequantised data",
        "optimiser": f"Adam {RATE:g}, falls to zero at the end of the time",
    }

    def sampling() -> Sampling:
        return OneShot(network, network.inverse, shape.dimensions, "inverse of the flow, one evaluation")

    def bits(test: Dataset, count: int, seed: int) -> Bits:
        def measured(x0: Tensor, label: Tensor | None, rng: Rng) -> Tensor:
            return task.bits(x0, label, rng=rng).double()

        score = _over_examples(network, plan.classes, test, count, seed, measured)
        return Bits(score, "exact, of dequantised data, one draw each")

    config = plan.config(plan.falling())
    return Contender(Family.FLOW, task, config, average_of(AVERAGE), plan.classes, sampling, bits, settings)


AVERAGE = 0.05
"""Relative length of the average of the weights, as in the recipes."""
GAMMA, R1_EVERY, GAN_RATE = 10.0, 16, 1e-3
"""Of the adversarial pair; rate and betas as Karras et al. 2018 (arXiv 1710.10196), appendix A. Chosen on MNIST, of the
rates 2e-4, 4e-4, 1e-3 and 2e-3 and of gamma 1 and 10, by the Frechet distance after 100 s."""
WARMUP = 100
"""Steps over which the rate of a model rises whose rate falls later."""
RATE = 1e-3
"""Learning rate of autoencoder and flow (Kingma, Dhariwal 2018, arXiv 1807.03039, for the flow)."""


def _width(make: Callable[[int], tuple[nn.Module, ...]], target: int) -> int:
    """Return the width whose modules together have the number of parameters that is nearest to a target."""

    def count(width: int) -> int:
        with torch.random.fork_rng([]):  # weights are drawn for nothing, and torch's generator is left as it was
            return sum(map(count_parameters, make(width)))

    above = bisect_left(WIDTHS, target, key=count)
    near = WIDTHS[max(above - 1, 0) : above + 1]
    return min(near, key=lambda width: abs(math.log(count(width) / target)))


def _seeded(make: Callable[[], Made], seed: int) -> Made:
    """Return what is made with torch's generator at a seed, and leave the generator as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_of("init", seed))
        return make()


def _over_examples(
    network: nn.Module,
    classes: int | None,
    test: Dataset,
    count: int,
    seed: int,
    measured: Callable[[Tensor, Tensor | None, Rng], Tensor],
) -> Score:
    """Return the mean over some test examples of 8 bits."""
    device, found = next(network.parameters()).device, []
    with evaluating(network):
        for ids in torch.split(chosen_examples(test, count, seed), 64):
            values = {name: value.to(device) for name, value in test.gather(ids).items()}
            require_levels(values["x0"])
            rng = Rng.of(seed_of("likelihood", seed), ids, device=device)
            found.append(measured(values["x0"], values["label"] if classes else None, rng).cpu())
    every = torch.cat(found)
    return mean(every, note=f"{len(every)} examples of {test.info.name}, seed {seed}")
