"""Loss weights as functions of the log-SNR.

A weight is printed for one quantity (eps, x0, v, ...) and converted to what the network predicts: an error of the
prediction F is ``D_F / D_Q`` times that of a quantity Q (``parameterization``), so ``w_F = w_Q (D_Q / D_F)^2``,
formed from logarithms. The density from which times are drawn is kept apart (``times``).

Published weights, and where they are: L_simple, and the SNR on x0, are ``Constant(Eps())``. Denoising score matching
with the weight ``sigma^2`` on the score is the same: with ``Score`` as what the network predicts, ``Constant(Eps())``
is ``sigma_t^2``, and ``Constant(Score())`` the unweighted error of the score.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 14: L_simple is constant on eps. Song, Ermon 2019 (1907.05600),
    section 4.2: denoising score matching weighted by sigma^2. Hang et al. 2023 (2303.09556), section 3.4:
    min-SNR-gamma, ``min(SNR, gamma)`` on x0. Choi et al. 2022 (2204.00227), section 3: P2, L_simple's weight divided by
    ``(k + SNR)^gamma``. Karras et al. 2022 (2206.00364), table 1: ``(sigma^2 + d^2) / (sigma d)^2`` on x0. Hoogeboom et
    al. 2024 (2410.19324), section 3.1, and Kingma, Gao 2023 (2303.00848): sigmoid weighting,
    ``sigmoid(bias - log_snr)`` on eps. Karras et al. 2024 (2312.02696), eqs. 14 and 15: learned uncertainty.
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
    """1 on a quantity; on what the network predicts unless one is given.

    With ``Eps()`` it is L_simple: the SNR on x0, and ``sigma_t^2`` on the score.
    """

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


@dataclass(frozen=True)
class P2(Weight):
    """``1 / (k + SNR)^gamma`` on eps: less weight on the nearly clean levels, whose details are imperceptible.

    Attributes:
        k: what keeps the weight finite at high noise, above 0.
        gamma: how strongly clean levels are played down, at least 0; 0 is L_simple.
    """

    k: float = 1.0
    gamma: float = 1.0
    quantity: Parameterization = field(default=Eps(), init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.k > 0, f"k above 0, not {self.k}")
        require(self.gamma >= 0, f"gamma of at least 0, not {self.gamma}")

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return -self.gamma * torch.logaddexp(log_snr, torch.full_like(log_snr, math.log(self.k)))


@dataclass(frozen=True)
class Uncertainty(Weight):
    """Another weight, balanced over the noise levels by what is learned of the loss at each.

    With the weighted error L of an example and a learned function u of the noise level, the loss is ``e^-u L + u``: its
    minimum is at ``u = log E[L | level]``, where each level contributes gradients of the same size. What is written
    here is the fixed part; ``nn.uncertainty.WithUncertainty`` holds u, and ``tasks.denoising`` joins them.

    Attributes:
        of: the weight that is balanced.
        features: Fourier features of the noise level from which u is formed, at least 1.
    """

    of: Weight = field(default_factory=EDMWeight)
    features: int = 128

    def __post_init__(self) -> None:
        require(not isinstance(self.of, Uncertainty), "a weight without an uncertainty of its own")
        require(self.features >= 1, f"features of at least 1, not {self.features}")

    @property
    def quantity(self) -> Parameterization | None:
        return self.of.quantity

    def log_weight(self, log_snr: Tensor) -> Tensor:
        return self.of.log_weight(log_snr)
