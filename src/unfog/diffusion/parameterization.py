"""What a network predicts, and how it becomes x0 and eps.

A prediction is ``F = k_x x0 + k_e eps``. Together with ``x_t = alpha_t x0 + sigma_t eps`` it is a 2x2 system of
determinant ``D = alpha_t k_e - sigma_t k_x``, solved by

    x0  = (k_e x_t - sigma_t F) / D,        eps = (alpha_t F - k_x x_t) / D.

An error of F is proportional to one of any other quantity Q, with the ratio ``D_F / D_Q``: loss weights are converted
by it. Where D vanishes (x0 at sigma = 0, eps at alpha = 0) the solution that keeps its sense is given in closed form.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239): eps. Song et al. 2021 (2011.13456): score. Salimans, Ho 2022
    (2202.00512), appendix D: v and x0. Lipman et al. 2023 (2210.02747), Liu et al. 2023 (2209.03003): flow velocity.
    Karras et al. 2022 (2206.00364), table 1 and eq. 7: preconditioning, here for any alpha.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.shapes import align


class Solution(NamedTuple):
    """``x0 = x0_skip x_t + x0_out F`` and ``eps = eps_skip x_t + eps_out F``."""

    x0_skip: Tensor
    x0_out: Tensor
    eps_skip: Tensor
    eps_out: Tensor


class Parameterization(ABC):
    """The interface: the coefficients of the target; everything else follows."""

    @abstractmethod
    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(k_x, k_e)`` of the target ``k_x x0 + k_e eps``."""

    def c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Return the scale of the network's input (hook)."""
        return torch.ones_like(sigma_t)

    def c_noise(self, t: Tensor, log_snr: Tensor) -> Tensor:
        """Return what the network is told of the noise level, finite on [0, 1] (hook).

        Args:
            t: ``schedule.network_time`` of the time.
            log_snr: the log-SNR at the time, infinite at exact ends.
        """
        return t

    def solve(self, alpha_t: Tensor, sigma_t: Tensor) -> Solution:
        """Return x0 and eps as combinations of ``x_t`` and the prediction (hook for closed-form limits)."""
        k_x, k_e = self.target_coefficients(alpha_t, sigma_t)
        determinant = alpha_t * k_e - sigma_t * k_x
        return Solution(k_e / determinant, -sigma_t / determinant, -k_x / determinant, alpha_t / determinant)

    @final
    def determinant(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Return D: an error of the prediction per error ``(-sigma_t, alpha_t)`` of ``(x0, eps)``."""
        k_x, k_e = self.target_coefficients(alpha_t, sigma_t)
        return alpha_t * k_e - sigma_t * k_x

    @final
    def target(self, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Return what the network should predict, shaped like ``x0``."""
        k_x, k_e = (align(k.to(x0), x0) for k in self.target_coefficients(alpha_t, sigma_t))
        return k_x * x0 + k_e * eps

    def check(self, schedule: Schedule) -> None:  # noqa: B027
        """Raise ``ValueError`` if the prediction carries no information somewhere on the schedule (hook)."""


@dataclass(frozen=True)
class Eps(Parameterization):
    """The noise."""

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha_t), torch.ones_like(alpha_t)

    def check(self, schedule: Schedule) -> None:
        _require_signal(schedule, "the noise (eps)")


@dataclass(frozen=True)
class Score(Parameterization):
    """The score ``-eps / sigma_t``, the gradient of the log-density of x_t."""

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha_t), -1.0 / sigma_t

    def solve(self, alpha_t: Tensor, sigma_t: Tensor) -> Solution:
        return Solution(1.0 / alpha_t, sigma_t**2 / alpha_t, torch.zeros_like(alpha_t), -sigma_t)

    def check(self, schedule: Schedule) -> None:
        _require_signal(schedule, "the score")


@dataclass(frozen=True)
class X0(Parameterization):
    """The clean data."""

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha_t), torch.zeros_like(alpha_t)

    def solve(self, alpha_t: Tensor, sigma_t: Tensor) -> Solution:
        zeros, ones = torch.zeros_like(alpha_t), torch.ones_like(alpha_t)
        return Solution(zeros, ones, 1.0 / sigma_t, -alpha_t / sigma_t)


@dataclass(frozen=True)
class V(Parameterization):
    """``v = alpha_t eps - sigma_t x0``."""

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma_t, alpha_t


@dataclass(frozen=True)
class Flow(Parameterization):
    """The velocity ``eps - x0`` of the straight path from data to noise."""

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha_t), torch.ones_like(alpha_t)


@dataclass(frozen=True)
class EDM(Parameterization):
    """EDM's preconditioning: input and target of unit variance for data of standard deviation ``sigma_data``.

    ``c_noise = log(sigma_t / alpha_t) / 4``, clamped to ``sigma_t / alpha_t`` within ``[1e-4, 1e4]``.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, f"sigma_data above 0, not {self.sigma_data}")

    def target_coefficients(self, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        norm = 1.0 / self.c_in(alpha_t, sigma_t)
        return sigma_t / (self.sigma_data * norm), -alpha_t * self.sigma_data / norm

    def c_in(self, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return torch.rsqrt(sigma_t**2 + (alpha_t * self.sigma_data) ** 2)

    def c_noise(self, t: Tensor, log_snr: Tensor) -> Tensor:
        limit = 2.0 * 9.210340371976182  # 2 ln(1e4)
        return (-0.125 * log_snr.clamp(-limit, limit)).expand_as(t)


def _require_signal(schedule: Schedule, what: str) -> None:
    alpha = schedule.alpha(torch.ones((), dtype=torch.float64)).item()
    require(
        alpha > 0,
        f"a prediction that says something at t = 1: {type(schedule).__name__} has alpha_1 = 0, where {what} is known "
        "and x0 is not; predict V, X0, Flow or EDM, or use a schedule that keeps some signal",
    )
