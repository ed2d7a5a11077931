"""How data are corrupted, and what pure noise is.

The Gaussian process has ``q(x_t | x0) = N(alpha_t x0, sigma_t^2)``. It is Markov: for ``s < t``

    q(x_t | x_s)     = N(alpha_{t|s} x_s, sigma_{t|s}^2),   alpha_{t|s} = alpha_t / alpha_s,
                                                            sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2
    q(x_s | x_t, x0) = N(a x_t + b x0, c^2),                c = sigma_s sigma_{t|s} / sigma_t,
                                                            a = alpha_{t|s} sigma_s^2 / sigma_t^2,
                                                            b = alpha_s sigma_{t|s}^2 / sigma_t^2

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 2, 4, 6, 7. Kingma, Salimans, Poole, Ho 2021 (2107.00630),
    appendix A: the same kernels in continuous time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.checks import require, require_precise
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.shapes import align


class Kernel(NamedTuple):
    """``N(scale x, std^2)``."""

    scale: Tensor
    std: Tensor


class Posterior(NamedTuple):
    """``N(x_t_scale x_t + x0_scale x0, std^2)``."""

    x_t_scale: Tensor
    x0_scale: Tensor
    std: Tensor


class Process(ABC):
    """The interface: corruption given its noise, and the distribution of pure noise."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """The noise schedule."""

    @abstractmethod
    def noise_like(self, x0: Tensor, *, rng: Rng) -> Tensor:
        """Draw what ``add_noise`` needs for each example: the shape of ``x0``."""

    @abstractmethod
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``x_t``, deterministic given the noise; ``t`` has any prefix of the shape of ``x0``."""

    @abstractmethod
    def prior(
        self,
        shape: Sequence[int],
        *,
        rng: Rng,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw pure noise at t = 1: ``(len(rng), *shape)``."""


@dataclass(frozen=True)
class Gaussian(Process):
    """Gaussian corruption, ``x_t = alpha_t x0 + sigma_t eps``."""

    noise_schedule: Schedule

    @property
    def schedule(self) -> Schedule:
        return self.noise_schedule

    def noise_like(self, x0: Tensor, *, rng: Rng) -> Tensor:
        require(len(rng) == len(x0), f"one key per example: {len(x0)}, not {len(rng)}")
        return rng.normal(x0.shape[1:], Purpose.NOISE).to(x0)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        require_precise(t)
        alpha_t, sigma_t = (align(scale.to(x0), x0) for scale in self.schedule.scales(t))
        return alpha_t * x0 + sigma_t * noise

    def prior(
        self,
        shape: Sequence[int],
        *,
        rng: Rng,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``sigma_1 eps``, the limit of ``x_1`` where ``alpha_1`` vanishes."""
        sigma = self.schedule.sigma(torch.ones((), dtype=torch.float64)).item()
        return rng.normal(shape, Purpose.PRIOR).to(device=device, dtype=dtype).mul_(sigma)

    def kernel(self, s: Tensor, t: Tensor) -> Kernel:
        """Return q(x_t | x_s) for times ``s < t``; with s = 0 and sigma_0 = 0 it is q(x_t | x0)."""
        alpha_s, sigma_s, alpha_t, sigma_t = self._scales(s, t)
        scale = alpha_t / alpha_s
        return Kernel(scale, sigma_t * self._kept(alpha_s, sigma_s, alpha_t, sigma_t).sqrt())

    def posterior(self, s: Tensor, t: Tensor) -> Posterior:
        """Return q(x_s | x_t, x0) for times ``s < t``.

        Its variance for neighbouring levels is DDPM's ``(1 - abar_{t-1}) / (1 - abar_t) beta_t``.
        """
        alpha_s, sigma_s, alpha_t, sigma_t = self._scales(s, t)
        kept = self._kept(alpha_s, sigma_s, alpha_t, sigma_t)
        x_t_scale = (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2
        return Posterior(x_t_scale, alpha_s * kept, sigma_s * kept.sqrt())

    def _scales(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        schedule = self.schedule
        return schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)

    @staticmethod
    def _kept(alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Return ``sigma_{t|s}^2 / sigma_t^2 = 1 - SNR_t / SNR_s`` without cancellation for close times."""
        half_difference = (alpha_t.log() - sigma_t.log()) - (alpha_s.log() - sigma_s.log())
        return -torch.expm1(2.0 * half_difference)
