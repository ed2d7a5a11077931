"""A noise schedule that is learned together with the network.

The log-SNR falls from ``log_snr_max`` to ``log_snr_min`` in equal parts, and what is learned is how much time each part
gets, its mass, besides the two ends: a monotone spline of first degree for the inverse of the schedule. In continuous
time the variational bound depends on the ends alone, so the masses are free to lower the variance of its estimate.

With t uniform, a level of part k is drawn with a density proportional to its mass ``m_k``, and its share of the bound
is divided by it. For a share ``e(l)`` the second moment of the estimate is ``sum_k integral_k e^2 / m_k``, its gradient
``-E[estimate^2; part k] / m_k``: it needs the estimates alone, no derivative of the network, and is that of all other
parts where the mass of each is proportional to the root mean square of e there (``surrogate``). The ends follow the
gradient of the bound through ``Live``.

For sampling the schedule is frozen to a ``curves.Spline``, whose numbers are the same to the bit.

Source:
    Kingma, Salimans, Poole, Ho 2021 (arXiv 2107.00630): the bound in continuous time, its invariance, learned ends, and
    the interior by minimising the variance; there with a monotone network and its derivative, here with a spline, whose
    inverse and variance gradient are closed forms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require
from unfog.diffusion.curves import LogLinear, Spline, scales_of, spline_part, told_level
from unfog.diffusion.schedule import Schedule

FLOOR = 0.05
"""Share of the time that is spread evenly over the parts, so that none is ever left out."""


@dataclass(frozen=True)
class Learned(Schedule):
    """A schedule to be learned; as a value, the straight line of log-SNR that learning begins with.

    Attributes:
        log_snr_max: at t = 0, to begin with.
        log_snr_min: at t = 1, to begin with.
        parts: of the spline.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    parts: int = 64

    def __post_init__(self) -> None:
        require(self.parts >= 1, f"at least 1 of parts, not {self.parts}")
        LogLinear(self.log_snr_max, self.log_snr_min)

    @property
    def start(self) -> LogLinear:
        """The line."""
        return LogLinear(self.log_snr_max, self.log_snr_min)

    def alpha(self, t: Tensor) -> Tensor:
        return self.start.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.start.sigma(t)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.start.scales(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.start.time(log_snr)


class Learner(nn.Module):
    """What is learned of a schedule.

    Args:
        begin: the schedule that it begins with, and the scale on which networks are told its log-SNR.
    """

    def __init__(self, begin: Learned) -> None:
        super().__init__()
        self.told = (begin.log_snr_max, begin.log_snr_min)
        self.ends = nn.Parameter(torch.tensor(self.told))
        self.logits = nn.Parameter(torch.zeros(begin.parts))

    @property
    def masses(self) -> Tensor:
        """The time that each part of the log-SNR takes, ``(K,)`` float64, positive and of sum 1."""
        return FLOOR / len(self.logits) + (1.0 - FLOOR) * self.logits.double().softmax(0)

    def knots(self) -> Tensor:
        """Return the times between the parts, ``(K + 1,)`` float64 from 0 to 1, without their graph."""
        inner = self.masses.detach().cumsum(0)[:-1]
        return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

    def surrogate(self, t: Tensor, estimates: Tensor) -> Tensor:
        """Return a scalar whose gradient is that of half the second moment of an estimate.

        Args:
            t: ``(B,)`` uniform times.
            estimates: ``(B,)`` of the bound, made at these times with this schedule; they are taken as numbers.
        """
        part = torch.searchsorted(self.knots()[1:-1].contiguous(), t.double(), right=True)
        return -0.5 * (estimates.detach().double().square() * self.masses[part].log()).mean()

    def live(self) -> "Live":
        """Return the schedule as it is at each moment, with the gradient of its ends."""
        return Live(self)

    def frozen(self) -> Spline:
        """Return the schedule as it is now, as numbers."""
        log_snr_max, log_snr_min = self.ends.detach().double().tolist()
        return Spline(log_snr_max, log_snr_min, tuple(self.knots().tolist()), self.told)


@dataclass(frozen=True, eq=False)
class Live(Schedule):
    """The schedule of a learner while it learns: no value, but a view that follows it.

    It is differentiable in the ends; the masses, which the bound does not depend on, are taken as numbers.
    """

    learner: Learner

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return scales_of(self.line(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return self.learner.frozen().time(log_snr)

    def network_time(self, t: Tensor) -> Tensor:
        return told_level(self.line(t), self.learner.told)

    def line(self, t: Tensor) -> Tensor:
        """Return the log-SNR, of which alpha and sigma are formed."""
        clean, noisy = self.learner.ends.to(t.dtype).unbind()
        return clean + spline_part(self.learner.knots().to(t.dtype), t) * (noisy - clean)

    def fall(self, t: Tensor) -> Tensor:
        """Return how fast the log-SNR falls, ``-d log_snr / dt``, a positive number."""
        clean, noisy = self.learner.ends.to(t.dtype).unbind()
        knots = self.learner.knots().to(t.dtype)
        part = torch.searchsorted(knots[1:-1].contiguous(), t.detach().contiguous(), right=True)
        return (clean - noisy) / (len(knots) - 1) / (knots[part + 1] - knots[part])


class ScheduledNetwork(nn.Module):
    """A network with the schedule that it learns, so that the two are trained, averaged and saved as one.

    Args:
        network: of a denoiser.
        begin: the schedule that learning begins with.
    """

    def __init__(self, network: nn.Module, begin: Learned) -> None:
        super().__init__()
        self.network = network
        self.learner = Learner(begin)

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """Return what the network answers."""
        answer: Tensor = self.network(x, c_noise, **cond)
        return answer
