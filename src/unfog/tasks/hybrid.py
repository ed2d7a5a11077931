"""Learning the variance of the reverse step beside its mean.

The network says at which fraction between its bounds the logarithm of the variance lies, and the bound on the
likelihood teaches it. Of that bound each example gives one term, that of the step from its time t to the one before on
a grid of evenly spaced times; the step that ends in clean data has the likelihood of the data instead. The estimate of
x0 is held fixed there: the squared error alone teaches the mean, which the bound would do with far more noise.

Source:
    Nichol, Dhariwal 2021 (arXiv 2102.09672), section 3.1, eqs. 15 and 16: ``L_simple + 0.001 L_vlb``, L_vlb here in
    bits per dimension; the lower bound of the last step's variance is that of the step before it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.bound import decoder_term, step_log_variance, step_term
from unfog.diffusion.checks import require
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import CleanEnd, Schedule, Tabulated
from unfog.diffusion.shapes import align


class ReverseVariance(ABC):
    """How the variance of the reverse step is come by."""

    @property
    @abstractmethod
    def learned(self) -> bool:
        """Whether the network says it, with twice as many channels."""


@dataclass(frozen=True)
class FixedVariance(ReverseVariance):
    """The sampler chooses it."""

    @property
    def learned(self) -> bool:
        return False


@dataclass(frozen=True)
class LearnedVariance(ReverseVariance):
    """The network says it.

    Attributes:
        weight: of the bound beside the squared error, above 0. The bound is in bits per dimension over all steps, where
            times are drawn uniformly; another density weighs its terms like itself.
        steps: of the grid of times whose neighbours make a step, at least 2. On a ``Tabulated`` schedule its levels are
            the grid, and this is None; None on other schedules is 1000.
        eight_bit: whether the data are the 256 values of 8 bits in [-1, 1], whose likelihood ends the bound; otherwise
            it ends in a density.
    """

    weight: float = 0.001
    steps: int | None = None
    eight_bit: bool = True

    def __post_init__(self) -> None:
        require(self.weight > 0, f"weight above 0, not {self.weight}")
        require(self.steps is None or self.steps >= 2, f"steps of at least 2, or None, not {self.steps}")

    @property
    def learned(self) -> bool:
        return True

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` if the grid is not that of the schedule's table."""
        require(
            self.steps is None or not isinstance(schedule, Tabulated),
            f"variance.steps=None on a table of levels, which are its grid, not {self.steps}",
        )

    def bound(self, schedule: Schedule, x0: Tensor, x0_hat: Tensor, fraction: Tensor, t: Tensor) -> Tensor:
        """Return an estimate of the bound from each example, ``(B,)`` in bits per dimension over all steps.

        Args:
            schedule: the noise schedule.
            x0: ``(B, ...)`` clean data.
            x0_hat: ``(B, ...)`` estimates of them, which no gradient reaches.
            fraction: ``(B, ...)`` of the variance, as in ``Prediction``.
            t: ``(B,)`` float64 times.
        """
        steps, first, ends = _grid(schedule, self.steps or 1000)
        s = t - first
        # Times of levels are rounded; a table that ends in its first level has no step from there.
        clean = s < (-0.5 if ends else 1e-6) * first
        s = torch.where(clean, 0.5 * t, s.clamp_min(0.0))  # any time below t where the term is not used
        divergence = step_term(Gaussian(schedule), s, t, x0 - x0_hat.detach(), fraction)
        likelihood = self._likelihood(schedule, x0, x0_hat.detach(), fraction, t)
        terms = torch.where(align(clean, x0), likelihood, divergence)
        return terms.flatten(1).mean(1) * (steps / math.log(2.0))

    def _likelihood(self, schedule: Schedule, x0: Tensor, x0_hat: Tensor, fraction: Tensor, t: Tensor) -> Tensor:
        """Return minus the log-likelihood of each element of the data in the last step, in nats."""
        _, first, _ = _grid(schedule, self.steps or 1000)
        spacing = torch.full((), first, dtype=t.dtype, device=t.device)
        low = step_log_variance(Gaussian(schedule), spacing, 2.0 * spacing, 0.0)
        high = align(2.0 * schedule.sigma(t).log(), x0)
        log_variance = low + fraction * (high - low)
        if self.eight_bit:
            return decoder_term(x0, x0_hat, log_variance)
        return 0.5 * ((x0 - x0_hat).square() * torch.exp(-log_variance) + log_variance + math.log(2.0 * math.pi))


def _grid(schedule: Schedule, steps: int) -> tuple[int, float, bool]:
    """Return the number of steps, the distance of two times, and whether the grid ends in a level that has noise."""
    if not isinstance(schedule, Tabulated):
        return steps, 1.0 / steps, False
    ends = schedule.clean is CleanEnd.FIRST_LEVEL
    return schedule.levels, 1.0 / (schedule.levels - ends), ends
