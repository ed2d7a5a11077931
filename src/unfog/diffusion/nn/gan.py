"""An adversarial pair: a generator that draws pictures, and a critic that tells them from data.

Source:
    Goodfellow et al. 2014 (arXiv 1406.2661): the game. Miyato, Koyama 2018 (1802.05637), section 3: the projection
    critic, whose answer is ``psi(h) + <embedding of the class, h>``. Miyato et al. 2018 (1802.05957): spectral
    normalisation.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from unfog.diffusion.nn.init import xavier
from unfog.diffusion.nn.stages import Analysis, StageConfig, Synthesis, embed_label

__all__ = ["Critic", "Generator"]


class Generator(nn.Module):
    """Map a normal vector and a class to a picture in (-1, 1).

    Args:
        config: shape.
    """

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.synthesis = Synthesis(config)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map vectors ``(B, latent_dim)`` and classes ``(B,)`` to pictures ``(B, C, H, W)``."""
        return torch.tanh(self.synthesis(z, label))


class Critic(nn.Module):
    """Answer with a number for each picture: larger, the more it looks like data of its class.

    Args:
        config: shape; ``latent_dim`` has no meaning here.
        spectral: divide each weight by its largest singular value, estimated by one step of power iteration a call in
            training mode.
    """

    def __init__(self, config: StageConfig, *, spectral: bool = False) -> None:
        super().__init__()
        self.analysis = Analysis(config, normalised=False)
        features = config.widths[0]
        self.score = xavier(nn.Linear(features, 1))
        self.label = None if config.num_classes is None else nn.Embedding(config.num_classes, features)
        if self.label is not None:
            # As long as a row of a Xavier layer is, so that no class is far from the others at the start.
            nn.init.normal_(self.label.weight, std=features**-0.5)
        if spectral:
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map pictures ``(B, C, H, W)`` and classes ``(B,)`` to scores ``(B,)``."""
        h = self.analysis(x).mean((-2, -1))  # (B, features)
        score: Tensor = self.score(h).squeeze(1)
        embedded = embed_label(self.label, label, len(x))
        return score if isinstance(embedded, float) else score + (embedded * h).sum(1)
