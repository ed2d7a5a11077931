"""Keeping the estimate of x0 within the range of the data.

Guidance pushes estimates beyond it, and each step builds on the one before, so that samples grow ever more contrasty.
The order is fixed: guide, then bound, and the noise that the sampler goes on with is what follows from the bounded
estimate.

Source:
    Saharia et al. 2022 (arXiv 2205.11487), section 2.3: static and dynamic thresholding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.shapes import align


class Bounds(ABC):
    """The interface."""

    @abstractmethod
    def apply(self, x0: Tensor) -> Tensor:
        """Return estimates ``(B, ...)`` of x0 within the bounds."""


@dataclass(frozen=True)
class Clip(Bounds):
    """Each element is cut off at the ends of the data's range.

    Attributes:
        limit: data lie in ``[-limit, limit]``; above 0.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        require(self.limit > 0, f"limit above 0, not {self.limit}")

    def apply(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold(Bounds):
    """Each example is cut off at a percentile of its absolute values and shrunk to the data's range.

    An example of which that share lies within the range is clipped to it.

    Attributes:
        percentile: share of an example's elements that are not cut off, in (0, 1]; the smallest absolute value that so
            many do not exceed is the threshold.
        limit: data lie in ``[-limit, limit]``; above 0.
    """

    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.percentile <= 1, f"percentile in (0, 1], not {self.percentile}")
        require(self.limit > 0, f"limit above 0, not {self.limit}")

    def apply(self, x0: Tensor) -> Tensor:
        size = x0.flatten(1).abs()
        # By rank, for torch.quantile takes 2^24 elements at most. Sums of rounding must not reach the next rank.
        rank = min(max(math.ceil(self.percentile * size.shape[1] - 1e-6), 1), size.shape[1])
        threshold = align(size.kthvalue(rank, dim=1).values.clamp_min(self.limit), x0)
        return x0.clamp(-threshold, threshold) * (self.limit / threshold)


class Bounded(Denoiser):
    """A denoiser whose estimates stay within bounds.

    Args:
        denoiser: estimates x0; guided already, if it is to be.
        bounds: of the estimates.
    """

    def __init__(self, denoiser: Denoiser, bounds: Bounds) -> None:
        super().__init__()
        self.process = denoiser.process
        self.denoiser = denoiser
        self.bounds = bounds

    def begin(self) -> Denoiser:
        return Bounded(self.denoiser.begin(), self.bounds)

    def select(self, index: Tensor) -> Denoiser:
        return Bounded(self.denoiser.select(index), self.bounds)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return Bounded(self.denoiser.prepared(times), self.bounds)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        prediction: Prediction = self.denoiser(x_t, t, cond)
        return prediction._replace(x0=self.bounds.apply(prediction.x0))
