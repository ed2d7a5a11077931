"""How uncertain a network is at each noise level, learned beside it.

One linear layer on random Fourier features of the noise level, as a second, small part of the network: it is trained,
averaged and saved with it, and sampling does not ask it.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696,
equations 14 and 15 and the text that follows them.
"""

from math import pi, sqrt

import torch
from torch import Tensor, nn

from unfog.diffusion.nn.init import zeroed

__all__ = ["WithUncertainty"]

_LIMIT = 2.5
"""Largest noise level that is told apart: log(sigma / alpha) / 4 there is that of sigma / alpha = e^10."""


class WithUncertainty(nn.Module):
    """A network with a learned function of the noise level beside it.

    Args:
        network: answers as it did; called as `network(x, c_noise, **cond)`.
        features: number of Fourier features, >= 1.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, network: nn.Module, features: int):
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}; it must be at least 1.")
        self.network = network
        self.register_buffer("frequencies", 2 * pi * torch.randn(features))
        self.register_buffer("phases", 2 * pi * torch.rand(features))
        self.out = zeroed(nn.Linear(features, 1))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """Answer as the network does."""
        out: Tensor = self.network(x, c_noise, **cond)
        return out

    def uncertainty(self, log_snr: Tensor) -> Tensor:
        """Return the logarithm of the expected loss at log-SNRs (B,), as far as it is learned: (B,), 0 at first."""
        level = (-0.125 * log_snr.to(self.frequencies.dtype)).clamp(-_LIMIT, _LIMIT)
        # Autocast would round the phases and the answer to 8 bits.
        with torch.autocast(level.device.type, enabled=False):
            features = sqrt(2.0) * torch.cos(level[:, None] * self.frequencies + self.phases)
            out: Tensor = self.out(features)[:, 0]
        return out
