"""Classifier-free guidance: a denoiser made of a conditional and an unconditional answer.

Large scales make estimates of more contrast than data have. A rescale shrinks the guided estimate to the standard
deviation of the conditional one, over all elements of an example, or part of the way. Published for whatever a network
predicts, it is applied to the estimate of x0 here, so that it does not depend on the parameterization.

Sources:
    Ho, Salimans 2022 (arXiv 2207.12598), eq. 6, whose w is ``scale - 1`` here; Saharia et al. 2022 (2205.11487) and
    Stable Diffusion use ``scale`` as it stands. Lin et al. 2024 (2305.08891), section 3.4: the rescale.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.shapes import align
from unfog.sampling.guidance.gradient import kept


class ClassifierFree(Denoiser):
    """``x0_negative + scale (x0_cond - x0_negative)``, both halves in one batch.

    A scale of 1 is no guidance: one evaluation, and bit for bit the inner denoiser. A scale of 0 is unconditional, also
    one evaluation unless it is rescaled.

    Args:
        denoiser: the conditional denoiser, trained with condition dropout.
        scale: guidance scale w, finite.
        negative: what to be guided away from, by name, each ``(B, ...)``: usually the null condition.
        rescale: share of the way to the standard deviation of the conditional estimate, in [0, 1]; 0 is none. The
            paper has 0.7.
    """

    def __init__(self, denoiser: Denoiser, scale: float, negative: Cond, *, rescale: float = 0.0) -> None:
        super().__init__()
        require(math.isfinite(scale), f"a finite guidance scale, not {scale}")
        require(0 <= rescale <= 1, f"rescale in [0, 1], not {rescale}")
        self.process = denoiser.process
        self.denoiser = denoiser
        self.scale = scale
        self.negative = kept(negative)
        self.rescale = rescale

    def begin(self) -> Denoiser:
        return self._around(self.denoiser.begin(), self.negative)

    def select(self, index: Tensor) -> Denoiser:
        negative = {name: value[index] for name, value in self.negative.items()}
        return self._around(self.denoiser.select(index), negative)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return self._around(self.denoiser.prepared(times), self.negative)

    def _around(self, denoiser: Denoiser, negative: Cond) -> Denoiser:
        return ClassifierFree(denoiser, self.scale, negative, rescale=self.rescale)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if self.scale == 1:
            inner: Prediction = self.denoiser(x_t, t, cond)
            return inner
        if self.scale == 0 and self.rescale == 0:
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
        guided = torch.lerp(negative, positive, self.scale)
        return Prediction(guided if self.rescale == 0 else _rescaled(guided, positive, self.rescale), conditional)


def _rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """Shrink guided estimates to the deviation of the conditional ones, a share of the way."""
    now, wanted = (x0.flatten(1).std(1, correction=0) for x0 in (guided, positive))
    # An estimate without any contrast has none to be scaled.
    factor = torch.where(now > 0, wanted / now, torch.ones_like(now))
    return guided * align(1.0 + share * (factor - 1.0), guided)


def scale_from_w(w: float) -> float:
    """Convert the scale of ``(1 + w) eps_cond - w eps_null`` (Ho, Salimans 2022, eq. 6) to this module's."""
    return 1.0 + w
