"""More noise schedules: curves of signal or log-SNR, all with ``alpha^2 + sigma^2 = 1``.

``Sigmoid`` is given by its alpha_bar, ``LogLinear`` and ``Spline`` by their log-SNR ``l``, from which
``alpha^2 = sigmoid(l)`` and ``sigma^2 = sigmoid(-l)``. ``Shifted`` moves the log-SNR of any other schedule.

Sources:
    Jabri, Fleet, Chen 2022 (arXiv 2212.11972): the sigmoid schedule; its start, end and tau as in the published code.
    Kingma, Salimans, Poole, Ho 2021 (2107.00630): schedules as log-SNR (there gamma, its negative). Hoogeboom, Heek,
    Salimans 2023 (2301.11093): the shift by ``2 log(64 / d)``, section on adjusting the schedule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """``alpha_t^2`` falls from 1 to 0 along a piece of the logistic function, from ``start / tau`` to ``end / tau``.

    ``alpha^2 = (s(end / tau) - s(z)) / (s(end / tau) - s(start / tau))`` with ``z = (start + t (end - start)) / tau``:
    pure noise at t = 1. Formed as hyperbolic sines, in which nothing cancels at either end.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        require(self.start < self.end, f"start < end, not {self.start}, {self.end}")
        require(0 < self.tau < math.inf, f"a positive tau, not {self.tau}")
        steepest = max(abs(self.start), abs(self.end)) / self.tau
        require(steepest <= 40, f"start / tau and end / tau within [-40, 40], not up to {steepest:g}; raise tau")

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _roots(*self._parts(t))

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = self._parts(t)
        return signal / (signal + noise), noise / (signal + noise)

    def time(self, log_snr: Tensor) -> Tensor:
        # With k = sinh(h t) / sinh(h (1 - t)): t = log((1 + k e^h) / (1 + k e^-h)) / 2h, and 1 - t likewise in 1 / k.
        log_k = -log_snr - math.log(self._tilt)
        small = self._part(log_k.clamp_max(0.0).exp())
        large = 1.0 - self._part((-log_k).clamp_max(0.0).exp())
        return torch.where(log_k > 0, large, small)

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return two numbers in the ratio of alpha^2 to sigma^2."""
        # s(a) - s(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)), and cosh(z / 2) drops out.
        half = self._half
        return torch.sinh(half * (1.0 - t)), self._tilt * torch.sinh(half * t)

    @property
    def _half(self) -> float:
        return 0.5 * (self.end - self.start) / self.tau

    @property
    def _tilt(self) -> float:
        return math.cosh(0.5 * self.end / self.tau) / math.cosh(0.5 * self.start / self.tau)

    def _part(self, k: Tensor) -> Tensor:
        half = self._half
        return torch.log1p(2.0 * math.sinh(half) * k / (1.0 + k * math.exp(-half))) / (2.0 * half)


@dataclass(frozen=True)
class LogLinear(Schedule):
    """The logarithmic schedule: log-SNR falls in a straight line between two values.

    The defaults are those from which Kingma et al. 2021 learn. Some noise, ``e^(-log_snr_max / 2)`` of the signal, is
    left at t = 0: sampling ends with it.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self) -> None:
        _require_ends(self.log_snr_max, self.log_snr_min)

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return scales_of(self.log_snr_max + t * (self.log_snr_min - self.log_snr_max))

    def time(self, log_snr: Tensor) -> Tensor:
        return ((self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Spline(Schedule):
    """A monotone spline of first degree, such as a learned schedule is frozen to.

    The log-SNR falls in equal parts between the knots, at whose times it has these values. A network is told the
    log-SNR itself, on a scale that does not move with the ends: 0 at ``told[0]`` and 1000 at ``told[1]``, so one that
    learned together with its schedule knows every level by the same number throughout.

    Attributes:
        log_snr_max: at t = 0.
        log_snr_min: at t = 1.
        times: of the knots, rising strictly from 0 to 1.
        told: the log-SNRs that networks know as 0 and 1000.
    """

    log_snr_max: float
    log_snr_min: float
    times: tuple[float, ...] = field(repr=False)
    told: tuple[float, float] = (13.3, -5.0)

    def __post_init__(self) -> None:
        _require_ends(self.log_snr_max, self.log_snr_min)
        _require_ends(*self.told)
        times = self.times
        require(
            len(times) >= 2 and times[0] == 0 and times[-1] == 1 and all(a < b for a, b in pairwise(times)),
            f"times of at least two knots that rise strictly from 0 to 1, not {_shown(times)}",
        )

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return scales_of(self._line(t))

    def time(self, log_snr: Tensor) -> Tensor:
        part = ((self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)).clamp(0.0, 1.0)
        knots = self._knots(log_snr)
        place = part * (len(knots) - 1)
        j = place.nan_to_num().floor().clamp_max(len(knots) - 2)
        low, high = knots[j.long()], knots[j.long() + 1]
        return low + (place - j) * (high - low)

    def network_time(self, t: Tensor) -> Tensor:
        return told_level(self._line(t), self.told)

    def _line(self, t: Tensor) -> Tensor:
        """Return the log-SNR, of which alpha and sigma are formed."""
        return self.log_snr_max + spline_part(self._knots(t), t) * (self.log_snr_min - self.log_snr_max)

    def _knots(self, like: Tensor) -> Tensor:
        return self._tensor.to(like.device, like.dtype)

    @cached_property
    def _tensor(self) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float64)


@dataclass(frozen=True)
class Shifted(Schedule):
    """Another schedule with ``alpha / sigma`` multiplied by a number: its log-SNR moves by ``2 log(scale)``.

    Pictures of more pixels need more noise to be destroyed alike: ``Shifted.for_size`` gives the published scale. The
    variance is preserved whatever the schedule within (``RectifiedFlow.shift`` moves that one along its own path). A
    shift moves the times, not what a network is told of a noise level: that is what it would be told of it without the
    shift, and of levels beyond its ends what it would be told at the nearer end.

    Attributes:
        schedule: any other.
        scale: below 1 adds noise.
    """

    schedule: Schedule
    scale: float

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"a positive scale, not {self.scale}")

    @staticmethod
    def for_size(schedule: Schedule, size: int, base: int = 64) -> "Shifted":
        """Return a schedule that was made for pictures of one side, shifted for those of another.

        Args:
            schedule: suits pictures of side ``base``.
            size: side of the pictures that are to be noised, in pixels.
            base: in pixels.
        """
        require(size >= 1 and base >= 1, f"a size and a base of at least 1 pixel, not {size} and {base}")
        return Shifted(schedule, base / size)

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.schedule.scales(t)
        signal, noise = self.schedule.powers(t)
        alpha_t, signal = self.scale * alpha_t, self.scale**2 * signal
        noisy = noise > signal
        larger = torch.rsqrt(1.0 + torch.where(noisy, signal, noise) / torch.where(noisy, noise, signal))
        smaller = larger * torch.where(noisy, alpha_t, sigma_t) / torch.where(noisy, sigma_t, alpha_t)
        return torch.where(noisy, smaller, larger), torch.where(noisy, larger, smaller)

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = self.schedule.powers(t)
        total = self.scale**2 * signal + noise
        return self.scale**2 * signal / total, noise / total

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr - 2.0 * math.log(self.scale))

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(self.schedule.time(self.log_snr(t)))


def scales_of(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of log-SNRs, with ``alpha^2 + sigma^2 = 1``."""
    noisy = log_snr < 0
    ratio = torch.where(noisy, log_snr, -log_snr).exp()
    one = torch.ones_like(ratio)
    return _roots(torch.where(noisy, ratio, one), torch.where(noisy, one, ratio))


def spline_part(knots: Tensor, t: Tensor) -> Tensor:
    """Return how far times have come, in [0, 1], each stretch between two knots counting alike.

    Args:
        knots: ``(K + 1,)`` times that rise from 0 to 1.
        t: times of any shape.
    """
    inner = knots[1:-1].contiguous()
    j = torch.searchsorted(inner, t.detach().contiguous(), right=True)
    low, high = knots[j], knots[j + 1]
    return (j + (t - low) / (high - low)) / (len(knots) - 1)


def told_level(log_snr: Tensor, told: tuple[float, float]) -> Tensor:
    """Return what a network is told of a log-SNR: 0 at the first of two and 1000 at the second."""
    clean, noisy = told
    return 1000.0 * (clean - log_snr) / (clean - noisy)


def _roots(signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, whose squares are in a ratio and of sum 1.

    The smaller is formed over the larger, so that no slope is a difference of two that cancel.
    """
    noisy = noise > signal
    ratio = torch.where(noisy, signal, noise) / torch.where(noisy, noise, signal)
    larger = torch.rsqrt(1.0 + ratio)
    smaller = ratio.sqrt() * larger
    return torch.where(noisy, smaller, larger), torch.where(noisy, larger, smaller)


def _require_ends(log_snr_max: float, log_snr_min: float) -> None:
    require(
        -40 <= log_snr_min < log_snr_max <= 40,
        f"-40 <= log_snr_min < log_snr_max <= 40, not {log_snr_min}, {log_snr_max}",
    )


def _shown(times: Sequence[float]) -> str:
    return ", ".join(f"{time:.4g}" for time in times[:4]) + (", ..." if len(times) > 4 else "")
