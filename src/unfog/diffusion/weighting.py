"""Loss weights as functions of the log-SNR.

A weight is printed for one quantity (eps, x0, v, ...) and converted to what the network predicts: an error of the
prediction F is ``D_F / D_Q`` times that of a quantity Q (``parameterization``), so ``w_F = w_Q (D_Q / D_F)^2``,
formed from logarithms. The density from which times are drawn is kept apart (``times``).

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 14: L_simple is constant on eps. Hang et al. 2023 (2303.09556),
    section 3.4: min-SNR-gamma, ``min(SNR, gamma)`` on x0. Karras et al. 2022 (2206.00364), table 1:
    ``(sigma^2 + d^2) / (sigma d)^2`` on x0. Hoogeboom et al. 2024 (2410.19324), section 3.1, and Kingma, Gao 2023
    (2303.00848): sigmoid weighting, ``sigmoid(bias - log_snr)`` on eps.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unfog.diffusion.checks import require
from unfog.diffusion.parameterization import X0, Eps, Parameterization
from unfog.diffusion.schedule import log_snr


class Weight(ABC):
    """The interface: a quantity and the logarithm of its weight."""

    @property
    @abstractmethod
    def quantity(self) -> Parameterization | None:
        """The quantity whose squared error is weighted; None for whatever the network predicts."""

    @abstractmethod
    def log_weight(self, log_snr: Tensor) -> Tensor:
        """Return the logarithm of the weight at log-SNRs of any shape."""

    @final
    def on(self, parameterization: Parameterization, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """Return the weight on the squared error of the network's own prediction.

        Args:
            parameterization: what the network predicts.
            alpha_t: scale of the signal, positive.
            sigma_t: standard deviation of the noise, positive.
        """
        log_weight = self.log_weight(log_snr(alpha_t, sigma_t))
        if self.quantity is None or self.quantity == parameterization:
            return log_weight.exp()
        own, other = (p.determinant(alpha_t, sigma_t).abs().log() for p in (parameterization, self.quantity))
        return (log_weight + 2.0 * (other - own)).exp()


@dataclass(frozen=True)
class Constant(Weight):
    """1 on a quantity; on what the network predicts unless one is given. With ``Eps()`` it is L_simple."""

    of: Parameterization | None = None

    @property
    def quantity(self) -> Parameterization | None:
        return self.of

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


@dataclass(frozen=True)
class MinSNR(Weight):
    """``min(SNR, gamma)`` on x0."""

    gamma: float = 5.0
    quantity: Parameterization = field(default=X0(), init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.gamma > 0, f"gamma above 0, not {self.gamma}")

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return log_snr.clamp_max(math.log(self.gamma))


@dataclass(frozen=True)
class EDMWeight(Weight):
    """``(sigma^2 + d^2) / (sigma d)^2`` on x0, with ``sigma = sigma_t / alpha_t`` and d the data's deviation.

    For ``EDM(d)`` it makes the weight of the network's own error 1 at every noise level, whatever alpha.
    """

    sigma_data: float = 0.5
    quantity: Parameterization = field(default=X0(), init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, f"sigma_data above 0, not {self.sigma_data}")

    def log_weight(self, log_snr: Tensor) -> Tensor:
        # log(1 / d^2 + 1 / sigma^2)
        return torch.logaddexp(log_snr, torch.full_like(log_snr, -2.0 * math.log(self.sigma_data)))


@dataclass(frozen=True)
class Sigmoid(Weight):
    """``sigmoid(bias - log_snr)`` on eps.

    Kingma and Gao print it for an integral over log-SNR: for the published objective draw times whose log-SNR is
    uniform (``times.LogUniform``).
    """

    bias: float = 0.0
    quantity: Parameterization = field(default=Eps(), init=False, repr=False)

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return logsigmoid(self.bias - log_snr)
