"""Noise schedules: how much signal and how much noise is left at time t.

A schedule maps time t in [0, 1] (0 data, 1 noise) to ``alpha_t`` and ``sigma_t`` with
``x_t = alpha_t x0 + sigma_t eps``. The log-SNR ``2 log(alpha_t / sigma_t)`` falls strictly.
Schedules compute in the dtype of the times they are given, float32 or float64, never less: 1000 levels collapse to
about 500 in bfloat16.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), section 4: linear betas. Nichol, Dhariwal 2021 (2102.09672), eq. 17:
    cosine. Rombach et al. 2022 (2112.10752): scaled linear. Song et al. 2021 (2011.13456), eq. 29 and appendix C: VE,
    VP and sub-VP. Karras et al. 2022 (2206.00364): sigma(t) = t. Liu et al. 2023 (2209.03003): rectified flow;
    Esser et al. 2024 (2403.03206), eq. 23: its shift.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unfog.diffusion.checks import require


class Rates(NamedTuple):
    """Derivatives with respect to time."""

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor


def log_snr(alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """Return ``2 log(alpha_t / sigma_t)``; infinite where either vanishes."""
    return 2.0 * (alpha_t.log() - sigma_t.log())


class Schedule(ABC):
    """The interface: three functions of time; log-SNR and rates follow."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the signal at times in [0, 1], any shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise at times in [0, 1], accurate in relative terms near 0."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR has the given value; values out of range give the nearer end."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma together (hook for schedules that form both from the same numbers)."""
        return self.alpha(t), self.sigma(t)

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``alpha^2`` and ``sigma^2`` (hook for schedules of which these have a slope where roots have none).

        Where sigma grows as the square root of t, its own slope at 0 is infinite and that of its square is not.
        """
        alpha_t, sigma_t = self.scales(t)
        return alpha_t.square(), sigma_t.square()

    def network_time(self, t: Tensor) -> Tensor:
        """Return the number that stands for t in networks conditioned on time: 1000 t (hook).

        Published networks see the index of a table or 1000 times a continuous time; one scale serves both.
        """
        return 1000.0 * t

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """Return ``2 log(alpha_t / sigma_t)``; infinite where either vanishes."""
        return log_snr(*self.scales(t))

    @final
    def rates(self, t: Tensor) -> Rates:
        """Return the time derivatives of alpha, sigma and log-SNR, exact by forward differentiation."""
        ones = torch.ones_like(t)
        return Rates(*(torch.func.jvp(f, (t,), (ones,))[1] for f in (self.alpha, self.sigma, self.log_snr)))


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The continuous form of the linear betas: beta(t) grows linearly from ``beta_min`` to ``beta_max``.

    ``alpha_t = exp(-B(t) / 2)`` with ``B(t) = beta_min t + (beta_max - beta_min) t^2 / 2``, ``alpha^2 + sigma^2 = 1``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(
            0 < self.beta_min < self.beta_max,
            f"0 < beta_min < beta_max, not {self.beta_min}, {self.beta_max}",
        )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(t)
        return torch.exp(-integral), -torch.expm1(-integral)

    def time(self, log_snr: Tensor) -> Tensor:
        # B = -log alpha^2; softplus is linear above its threshold, which by default costs digits in float64.
        return self._time(softplus(-log_snr, threshold=40.0))

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time(self, integral: Tensor) -> Tensor:
        # From B(1) = (beta_min + beta_max) / 2 on the time is 1; the bound keeps infinity out of the quotient.
        integral = integral.clamp_max(self.beta_min + self.beta_max)
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2.0 * slope * integral)
        return (2.0 * integral / (self.beta_min + root)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class SubVariancePreserving(Schedule):
    """Sub-VP: the same signal as ``VariancePreserving`` with ``sigma_t = 1 - exp(-B(t))``, always smaller."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        VariancePreserving(self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        return self._vp.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._vp._integral(t))

    def time(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = exp(B/2) - exp(-B/2) = 2 sinh(B / 2).
        ratio = torch.exp(-0.5 * log_snr)
        return self._vp._time(2.0 * torch.asinh(0.5 * ratio))

    @property
    def _vp(self) -> VariancePreserving:
        return VariancePreserving(self.beta_min, self.beta_max)


@dataclass(frozen=True)
class Cosine(Schedule):
    """``alpha_t = cos(pi t / 2)``, ``sigma_t = sin(pi t / 2)``: pure noise at t = 1.

    The published table with clipped betas is the function ``cosine`` of this module.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1.0 - t))  # zero exactly at t = 1

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (2.0 / math.pi) * torch.atan(torch.exp(-0.5 * log_snr))


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """``alpha = 1 - t'``, ``sigma = t'`` with ``t' = shift t / (1 + (shift - 1) t)``; a shift above 1 adds noise."""

    shift: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.shift < math.inf, f"a positive shift, not {self.shift}")

    def alpha(self, t: Tensor) -> Tensor:
        return (1.0 - t) / (1.0 + (self.shift - 1.0) * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr - math.log(self.shift))

    def network_time(self, t: Tensor) -> Tensor:
        return 1000.0 * self.sigma(t)  # a shift moves the times, not what the network is told of a noise level


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """``alpha = 1``, ``sigma_t = sigma_max t``: the schedule of EDM, whose own time is sigma.

    The VE SDE, with sigma growing geometrically from ``sigma_min``, is the same path at other times: train it with
    ``times.LogUniform`` and sample it on ``grid.LogSNRUniform``.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(0 < self.sigma_max < math.inf, f"a positive sigma_max, not {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-0.5 * log_snr) / self.sigma_max).clamp(0.0, 1.0)


class CleanEnd(Enum):
    """What t = 0 of a table means."""

    EXACT = "exact"
    FIRST_LEVEL = "first level"


@dataclass(frozen=True)
class Tabulated(Schedule):
    """A discrete-time DDPM as a continuous schedule: log-SNR interpolated between the trained levels.

    Level ``i`` of ``T`` (counted from 0) has ``alpha^2 = alphas_cumprod[i]`` and lies at ``t = (i + 1) / T``; the
    network is told the index ``T t - 1``, fractional between levels and 0 below the first. Between t = 0 and the
    first level ``sigma / alpha`` grows linearly from 0, so t = 0 is clean data (``CleanEnd.EXACT``).
    With ``CleanEnd.FIRST_LEVEL`` level ``i`` lies at ``t = i / (T - 1)``: sampling ends at the first level, as
    published Stable Diffusion samplers do, and leaves its noise in.
    A last level of 0 (zero terminal SNR) is allowed: between the last two levels ``alpha / sigma`` falls linearly to 0.
    Training on whole levels only is a matter of the times drawn: ``times.Levels``.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    clean: CleanEnd = CleanEnd.EXACT

    def __post_init__(self) -> None:
        levels = self.alphas_cumprod
        require(len(levels) >= 2, f"at least two levels, not {len(levels)}")
        falling = all(a > b for a, b in pairwise(levels))
        require(
            falling and levels[0] < 1 and levels[-1] >= 0,
            "alphas_cumprod that fall strictly within [0, 1), the first level being the least noisy",
        )

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor, clean: CleanEnd = CleanEnd.EXACT) -> "Tabulated":
        """Wrap a table of betas, the variances of q(x_t | x_{t-1})."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        return Tabulated(tuple(torch.cumprod(1.0 - betas, 0).tolist()), clean)

    @property
    def levels(self) -> int:
        """The number of trained levels."""
        return len(self.alphas_cumprod)

    def betas(self) -> Tensor:
        """Return the variances of q(x_t | x_{t-1}) between the levels, ``(levels,)`` float64."""
        alphas_cumprod = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64)
        return 1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]

    def time_of(self, index: Tensor) -> Tensor:
        """Return the time of a level, or between two levels for a fractional index."""
        return (index + 1) / self.levels if self.clean is CleanEnd.EXACT else index / (self.levels - 1)

    def index(self, t: Tensor) -> Tensor:
        """Return the fractional index of a time; between -1 and 0 below the first level."""
        return t * self.levels - 1 if self.clean is CleanEnd.EXACT else t * (self.levels - 1)

    def network_time(self, t: Tensor) -> Tensor:
        return self.index(t).clamp_min(0.0)

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = self._direction(t)
        norm = torch.hypot(signal, noise)
        return signal / norm, noise / norm

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr)
        query = -0.5 * log_snr
        # Segment j lies between levels j and j + 1; values beyond the last level end there.
        j = (torch.searchsorted(table, query.contiguous(), right=True) - 1).clamp(0, self.levels - 2)
        low, high = table[j], table[j + 1]
        inner = ((query - low) / (high - low)).clamp(0.0, 1.0)
        terminal = -torch.expm1(low - query)
        time = self.time_of(j + torch.where(torch.isinf(high), terminal, inner))
        if self.clean is CleanEnd.EXACT:
            time = torch.where(query < table[0], torch.exp(query - table[0]) / self.levels, time)
        return time.clamp(0.0, 1.0)

    @cached_property
    def _log_ratios(self) -> Tensor:
        alphas_cumprod = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return 0.5 * (torch.log1p(-alphas_cumprod) - alphas_cumprod.log())

    def _table(self, like: Tensor) -> Tensor:
        return self._log_ratios.to(like.device, like.dtype)

    def _direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return two numbers in the ratio of alpha to sigma, with finite derivatives up to both ends."""
        table, index = self._table(t), self.index(t)
        j = index.floor().clamp(0, self.levels - 2)
        part, low, high = index - j, table[j.long()], table[j.long() + 1]
        terminal = torch.isinf(high)
        log_ratio = low + torch.where(terminal, 0.0, part * (torch.where(terminal, low, high) - low))
        # The larger of the two is constant: its derivative would cancel against that of the norm.
        noisy, small = log_ratio > 0, torch.exp(-log_ratio.abs())
        signal = torch.where(noisy, small, 1.0) * torch.where(terminal, 1.0 - part, 1.0)
        noise = torch.where(noisy, 1.0, small)
        if self.clean is CleanEnd.EXACT:
            below = index < 0
            signal = torch.where(below, 1.0, signal)
            # T t itself: index + 1 would have lost its digits near t = 0.
            noise = torch.where(below, self.levels * t * torch.exp(table[0]), noise)
        return signal, noise


def linear_betas(steps: int = 1000) -> Tensor:
    """Return betas from 1e-4 to 0.02 over 1000 steps; for another count both ends are rescaled by 1000 / steps.

    Returns:
        ``(steps,)`` float64.

    Raises:
        ValueError: if fewer than 21 steps are asked for, where a rescaled beta would reach 1.
    """
    require(steps > 20, f"more than 20 steps, not {steps}: beta would reach 1")
    return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Return betas whose square root is linear: Stable Diffusion's table. ``(steps,)`` float64."""
    require(steps >= 2 and 0 < start < end < 1, f"steps >= 2 and 0 < start < end < 1, not {steps}, {start}, {end}")
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return the betas of ``alpha_bar = cos^2((t + s) / (1 + s) pi / 2)``, clipped at ``max_beta``. ``(steps,)``."""
    require(
        steps >= 2 and s >= 0 and 0 < max_beta < 1,
        f"steps >= 2, s >= 0, max_beta in (0, 1), not {steps}, {s}",
    )
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(max_beta)


def linear(steps: int = 1000) -> Tabulated:
    """Return DDPM's schedule: linear betas as a table."""
    return Tabulated.from_betas(linear_betas(steps))


def scaled_linear(steps: int = 1000, clean: CleanEnd = CleanEnd.EXACT) -> Tabulated:
    """Return Stable Diffusion's schedule as a table."""
    return Tabulated.from_betas(scaled_linear_betas(steps), clean)


def cosine(steps: int = 1000) -> Tabulated:
    """Return the published cosine schedule as a table; its last alpha_bar is about 2.4e-9."""
    return Tabulated.from_betas(cosine_betas(steps))
