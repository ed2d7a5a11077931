"""Autoguidance: a denoiser guided away from a weaker version of itself.

The weaker model, smaller or trained for less long, errs in the same way and by more: extrapolating from it to the
better one leads away from the errors of both, and not towards a class. It works without any condition.

Source:
    Karras et al. 2024 (arXiv 2406.02507): guiding a diffusion model with a bad version of itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction


class AutoGuided(Denoiser):
    """``x0_weak + scale (x0 - x0_weak)``.

    A scale of 1 is no guidance: one evaluation, and bit for bit the denoiser. A scale of 0 is the weak one alone. Other
    scales ask both under the same condition. A learned variance is the denoiser's.

    Args:
        denoiser: estimates x0.
        weak: estimates it worse; of the same process.
        scale: guidance scale w, finite.

    Raises:
        ValueError: if the processes differ, or the scale is not finite.
    """

    def __init__(self, denoiser: Denoiser, weak: Denoiser, scale: float) -> None:
        super().__init__()
        require(math.isfinite(scale), f"a finite guidance scale, not {scale}")
        require(
            denoiser.process == weak.process,
            f"a weak denoiser of the same process {denoiser.process}, not of {weak.process}",
        )
        self.process = denoiser.process
        self.denoiser = denoiser
        self.weak = weak
        self.scale = scale

    def begin(self) -> Denoiser:
        return AutoGuided(self.denoiser.begin(), self.weak.begin(), self.scale)

    def select(self, index: Tensor) -> Denoiser:
        return AutoGuided(self.denoiser.select(index), self.weak.select(index), self.scale)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return AutoGuided(self.denoiser.prepared(times), self.weak.prepared(times), self.scale)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if self.scale == 0:
            worse: Prediction = self.weak(x_t, t, cond)
            return worse
        prediction: Prediction = self.denoiser(x_t, t, cond)
        if self.scale == 1:
            return prediction
        return prediction._replace(x0=torch.lerp(self.weak(x_t, t, cond).x0, prediction.x0, self.scale))
