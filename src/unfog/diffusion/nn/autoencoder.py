"""The two halves of a variational autoencoder.

Source:
    Kingma, Welling 2014 (arXiv 1312.6114): encoder and decoder, section 2.3 and appendix C. Rybkin, Daniilidis, Levine
    2021 (2006.13202): a scale that all elements share is learned beside the decoder, which balances both terms of the
    bound without a weight.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier
from unfog.diffusion.nn.stages import Analysis, StageConfig, Synthesis, embed_label

__all__ = ["Autoencoder", "LatentModel"]


class LatentModel(nn.Module, ABC):
    """A model of data by a latent vector whose prior is standard normal.

    Attributes:
        latent_dim: length of the vector.
        num_classes: number of classes, or None for a model that knows none.
        log_scale: logarithm of the scale of the data about the decoder's answer; broadcasts against an example.
    """

    latent_dim: int
    num_classes: int | None
    log_scale: nn.Parameter

    @abstractmethod
    def encode(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data ``(B, ...)`` to mean and log-variance of the posterior, ``(B, latent_dim)`` each."""

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map vectors ``(B, latent_dim)`` to the location of the data, ``(B, ...)``, which is not bounded."""


class Autoencoder(LatentModel):
    """Residual convolutional encoder and decoder of pictures, each told the class.

    The location may lie beyond -1 and 1: that is how the decoder says that a pixel is black or white for certain.

    Args:
        config: shape.
    """

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.num_classes = config.latent_dim, config.num_classes
        height, width = config.coarsest
        self.analysis = Analysis(config, normalised=True)
        self.label = None if config.num_classes is None else nn.Embedding(config.num_classes, config.widths[0])
        self.posterior = xavier(nn.Linear(config.widths[0] * height * width, 2 * config.latent_dim))
        self.synthesis = Synthesis(config)
        # A twentieth of the range of the data: a guess that the first steps correct.
        self.log_scale = nn.Parameter(torch.full((config.channels, 1, 1), math.log(0.1)))

    def encode(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.analysis(x)
        embedded = embed_label(self.label, label, len(x))
        if not isinstance(embedded, float):
            h = h + embedded[:, :, None, None]
        mean, log_variance = self.posterior(h.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        location: Tensor = self.synthesis(z, label)
        return location
