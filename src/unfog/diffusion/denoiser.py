"""Denoisers: estimate x0 from x_t. Whatever a network predicts, samplers only ever see x0.

Guidance, caching and editing are denoisers around a denoiser.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require_precise
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.process import Process
from unfog.diffusion.schedule import log_snr
from unfog.diffusion.shapes import align

Cond = Mapping[str, Tensor]


class Prediction(NamedTuple):
    """What a denoiser answers.

    Attributes:
        x0: ``E[x0 | x_t]`` in the shape of ``x_t`` (for discrete data: logits over x0).
        log_variance: log of the variance of the reverse step, where it is learned.
    """

    x0: Tensor
    log_variance: Tensor | None = None


class Denoiser(nn.Module, ABC):
    """The interface."""

    process: Process

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        """Estimate x0.

        Args:
            x_t: ``(B, ...)`` noisy data, float32 or float64.
            t: time in [0, 1], float32 or float64, of any prefix of the shape of ``x_t``.
            cond: what the estimate is conditioned on, by name; each ``(B, ...)``.
        """

    def begin(self) -> "Denoiser":
        """Return the denoiser to be used for one trajectory: a fresh copy if it keeps a state (hook)."""
        return self


class NetworkDenoiser(Denoiser):
    """A network with its process and parameterization.

    Any ``nn.Module`` with ``forward(x, c_noise, **cond)`` will do. Its dtype changes here and nowhere else:
    scales are formed in the dtype of ``t`` (at least float32), the network computes in the dtype of its parameters.

    Args:
        network: predicts F; ``x`` is ``(B, ...)``, ``c_noise`` has the shape of ``t`` broadcast to ``(B,)``.
        process: a Gaussian process.
        parameterization: what F is.

    Raises:
        ValueError: if the parameterization carries no information somewhere on the schedule.
    """

    def __init__(self, network: nn.Module, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        parameterization.check(process.schedule)
        self.network = network
        self.process = process
        self.parameterization = parameterization

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the network's prediction F in the dtype of ``x_t``."""
        return self._predict(x_t, t, *self._scales(t), cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha_t, sigma_t = self._scales(t)
        prediction = self._predict(x_t, t, alpha_t, sigma_t, cond)
        solution = self.parameterization.solve(alpha_t, sigma_t)
        skip, out = (align(c.to(x_t), x_t) for c in (solution.x0_skip, solution.x0_out))
        return Prediction(skip * x_t + out * prediction)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        require_precise(t)
        return self.process.schedule.alpha(t), self.process.schedule.sigma(t)

    def _predict(self, x_t: Tensor, t: Tensor, alpha_t: Tensor, sigma_t: Tensor, cond: Cond | None) -> Tensor:
        c_in = self.parameterization.c_in(alpha_t, sigma_t)
        c_noise = self.parameterization.c_noise(self.process.schedule.network_time(t), log_snr(alpha_t, sigma_t))
        if c_noise.ndim == 0:
            c_noise = c_noise.expand(x_t.shape[0])
        x = align(c_in.to(x_t), x_t) * x_t
        parameter = next(self.network.parameters(), x)
        # Noise levels stay in float32 or better: in bfloat16 1000 of them collapse to about 500.
        level = c_noise.to(torch.float64 if parameter.dtype is torch.float64 else torch.float32)
        out: Tensor = self.network(x.to(parameter.dtype), level, **(cond or {}))
        return out.to(x_t.dtype)
