"""Classifier-free guidance: a denoiser made of a conditional and an unconditional answer.

Source:
    Ho, Salimans 2022 (arXiv 2207.12598), eq. 6, whose w is ``scale - 1`` here; Saharia et al. 2022 (2205.11487) and
    Stable Diffusion use ``scale`` as it stands.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction


class ClassifierFree(Denoiser):
    """``x0_negative + scale (x0_cond - x0_negative)``, both halves in one batch.

    A scale of 1 is no guidance: one evaluation, and bit for bit the inner denoiser. A scale of 0 is unconditional, also
    one evaluation.

    Args:
        denoiser: the conditional denoiser, trained with condition dropout.
        scale: guidance scale w, finite.
        negative: what to be guided away from, by name, each ``(B, ...)``: usually the null condition.
    """

    def __init__(self, denoiser: Denoiser, scale: float, negative: Cond) -> None:
        super().__init__()
        require(math.isfinite(scale), f"a finite guidance scale, not {scale}")
        self.process = denoiser.process
        self.denoiser = denoiser
        self.scale = scale
        self.negative = dict(negative)

    def begin(self) -> Denoiser:
        return ClassifierFree(self.denoiser.begin(), self.scale, self.negative)

    def select(self, index: Tensor) -> Denoiser:
        negative = {name: value[index] for name, value in self.negative.items()}
        return ClassifierFree(self.denoiser.select(index), self.scale, negative)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return ClassifierFree(self.denoiser.prepared(times), self.scale, self.negative)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if self.scale == 1:
            inner: Prediction = self.denoiser(x_t, t, cond)
            return inner
        if self.scale == 0:
            outer: Prediction = self.denoiser(x_t, t, self.negative)
            return outer
        given = dict(cond or {})
        require(
            given.keys() == self.negative.keys(),
            f"a negative for each condition: conditions {sorted(given)}, negatives {sorted(self.negative)}",
        )
        both = {name: torch.cat([value, self.negative[name].to(value)]) for name, value in given.items()}
        t_both = t if t.ndim == 0 else torch.cat([t, t])
        prediction: Prediction = self.denoiser(torch.cat([x_t, x_t]), t_both, both)
        positive, negative = prediction.x0.chunk(2)
        # Only x0 is guided: a learned variance is that under the condition.
        fraction = prediction.variance_fraction
        conditional = None if fraction is None else fraction.chunk(2)[0]
        return Prediction(torch.lerp(negative, positive, self.scale), conditional)


def scale_from_w(w: float) -> float:
    """Convert the scale of ``(1 + w) eps_cond - w eps_null`` (Ho, Salimans 2022, eq. 6) to this module's."""
    return 1.0 + w
