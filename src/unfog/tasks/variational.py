"""Learning a latent model by a bound on its likelihood.

    -log p(x) <= E_{z ~ q(z|x)} [-log p(x|z)] + KL(q(z|x) || N(0, 1)) = distortion + rate

with equality if q is the true posterior. The distortion is estimated with one draw of z; the rate of a normal posterior
is ``(mean^2 + variance - 1 - log variance) / 2`` for each latent.

Sources:
    Kingma, Welling 2014 (arXiv 1312.6114), section 2.2 and appendix B: bound and rate. Higgins et al. 2017
    ("beta-VAE", ICLR): a weight of the rate. Salimans et al. 2017 (1701.05517), section 2.1: the discretised logistic.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.batch import Batch
from unfog.diffusion.checks import require
from unfog.diffusion.nn.autoencoder import LatentModel
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.task import Loss, Task

HALF_LEVEL = 1.0 / 255.0
"""Half the distance between two of the 256 levels in [-1, 1]."""


class Observation(ABC):
    """How data lie about the decoder's answer."""

    @abstractmethod
    def log_prob(self, x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        """Return the logarithm of the probability, or density, of each element of ``x``."""


@dataclass(frozen=True)
class DiscretizedLogistic(Observation):
    """Probability of one of 256 levels in [-1, 1]: the mass of a logistic density there, with its tails at the ends."""

    def log_prob(self, x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        inverse = torch.exp(-log_scale)
        upper, lower = (x + HALF_LEVEL - location) * inverse, (x - HALF_LEVEL - location) * inverse
        # s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)), which keeps its digits where both sigmoids are nearly equal.
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * HALF_LEVEL * inverse))
        lowest, highest = x < -1 + HALF_LEVEL, x > 1 - HALF_LEVEL
        return torch.where(lowest, F.logsigmoid(upper), torch.where(highest, F.logsigmoid(-lower), inside))


@dataclass(frozen=True)
class Normal(Observation):
    """Normal density of numbers that have no levels."""

    def log_prob(self, x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        return -0.5 * ((x - location) * torch.exp(-log_scale)).square() - log_scale - 0.5 * math.log(2 * math.pi)


class Terms(NamedTuple):
    """The two terms of the bound in nats for a whole example, ``(B,)`` each."""

    distortion: Tensor
    rate: Tensor

    @property
    def bound(self) -> Tensor:
        """The bound on ``-log p(x)``, ``(B,)``."""
        return self.distortion + self.rate


class Variational(Task):
    """Minimise the bound, or one whose rate has another weight, by dimension of the data.

    Args:
        network: encoder and decoder.
        observation: how data lie about the decoder's answer.
        beta: weight of the rate, at least 0; only 1 minimises a bound on the likelihood.

    Raises:
        ValueError: if ``beta`` is below 0.
    """

    def __init__(self, network: LatentModel, observation: Observation | None = None, *, beta: float = 1.0) -> None:
        super().__init__()
        require(beta >= 0, f"a beta of at least 0, got {beta}")
        self.network = network
        self.observation = observation or DiscretizedLogistic()
        self.beta = beta

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the loss in nats by dimension, with bound, distortion and rate as parts.

        Args:
            batch: ``x0``, and ``label`` if there is one.
            player: ``"model"``.
            rng: one key per example, for the latents.
        """
        x0 = batch.values["x0"]
        size = x0[0].numel()
        label = batch.values.get("label") if self.network.num_classes is not None else None
        terms = self.terms(x0, rng.normal((self.network.latent_dim,), Purpose.NOISE), label)
        total = (terms.distortion + self.beta * terms.rate).mean() / size
        told = {"bound": terms.bound, "distortion": terms.distortion, "rate": terms.rate}
        return Loss(total, {name: value.detach().mean() / size for name, value in told.items()})

    def terms(self, x0: Tensor, noise: Tensor, label: Tensor | None = None) -> Terms:
        """Return the terms of the bound, estimated with given noise.

        Args:
            x0: ``(B, ...)`` data.
            noise: ``(B, latent_dim)`` normal numbers.
            label: ``(B,)`` classes, for a network that knows them.
        """
        mean, log_variance = map(_wide, self.network.encode(x0, label))
        z = mean + torch.exp(0.5 * log_variance) * noise.to(mean)
        log_prob = self.observation.log_prob(x0, _wide(self.network.decode(z, label)), self.network.log_scale)
        rate = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return Terms(-log_prob.flatten(1).sum(1), rate.sum(1))


def _wide(value: Tensor) -> Tensor:
    """Return float32 for what a network computed in 16 bits: the mass of a level is a difference of near equals."""
    return value.float() if value.dtype.itemsize < 4 else value
