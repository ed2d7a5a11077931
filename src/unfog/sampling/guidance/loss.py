"""Loss guidance: towards estimates of which a differentiable function is small.

The loss of the estimate is differentiated through the denoiser with respect to the noisy data, and the score moves
against it: ``score - s grad_x L(x0_hat(x_t))``, in terms of x0 by

    -s sigma_t^2 / alpha_t grad_x L(x0_hat(x_t)) = -s Cov[x0 | x_t] L'(x0_hat),

where the second form holds for an exact denoiser, whose Jacobian is ``alpha_t / sigma_t^2 Cov[x0 | x_t]``: the estimate
moves in directions that noise has left open, and the less of them are left the less it moves.

If L is minus the logarithm of a likelihood ``p(y | x0)``, samples come near to the posterior; the average of the
likelihood over ``p(x0 | x_t)`` is replaced by its value at the mean. A loss that is given the time can do better: for
Gaussian data and measurements of variance r^2, ``|y - A x0_hat|^2 / (2 (r^2 + A Cov A^T))`` makes the estimate exact.

A loss by CLIP is one case: ``1 - cosine(image embedding of x0_hat, text embedding)``, with the image resized and
normalised by differentiable operations.

Sources:
    Chung et al. 2023 (arXiv 2209.14687): diffusion posterior sampling, the loss a squared residual. Bansal et al. 2023
    (2302.07121): universal guidance, ``eps + s(t) grad L(x0_hat)``, here with ``s(t) = s sigma_t``. Yu et al. 2023
    (2303.09833): FreeDoM, energies of the estimate.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.energy import recordable
from unfog.sampling.guidance.gradient import kept, reach, recording, slope

LossFunction = Callable[..., Tensor]
"""Called as ``loss(x0_hat, t, **given)`` with estimates ``(B, ...)``, the time as the denoiser was asked at it, ``()``
or ``(B,)``, and what was given for each example; answers one number an example, ``(B,)``, each of its own example
alone."""


class LossGuided(Denoiser):
    """``x0_hat - scale sigma_t^2 / alpha_t grad L(x0_hat(x_t))``, the gradient taken through the denoiser.

    One evaluation and its backward pass, about three times the cost and the memory of training at this batch size. A
    scale of 0 is no guidance. Beyond ``gradient.NOISIEST`` the estimate stays as it is.

    Args:
        denoiser: estimates x0; guided already, if the loss is to see that.
        loss: differentiable; a mean over pixels makes useful scales large, a sum makes them small.
        scale: s, finite; negative raises the loss.
        given: what the loss needs of each example, by name, each ``(B, ...)``: it goes to the loss under these names,
            for the examples that are asked for.
    """

    def __init__(self, denoiser: Denoiser, loss: LossFunction, scale: float, given: Cond | None = None) -> None:
        super().__init__()
        require(math.isfinite(scale), f"a finite guidance scale, not {scale}")
        self.process = denoiser.process
        self.denoiser = denoiser
        self.loss = loss
        self.scale = scale
        self.given = kept(given or {})
        # Times made in inference mode, and the copies that the denoiser inside knows instead.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self) -> Denoiser:
        return self._around(self.denoiser.begin())

    def select(self, index: Tensor) -> Denoiser:
        given = {name: value[index] for name, value in self.given.items()}
        return self._around(self.denoiser.select(index), given)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
            copies = [recordable(time) for time in times]
            found = self._around(self.denoiser.prepared(copies))
        found._copies = {id(time): (time, copy) for time, copy in zip(times, copies, strict=True)}
        return found

    def _around(self, denoiser: Denoiser, given: Cond | None = None) -> "LossGuided":
        found = LossGuided(denoiser, self.loss, self.scale, self.given if given is None else given)
        found._copies = self._copies
        return found

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if self.scale == 0:
            plain: Prediction = self.denoiser(x_t, t, cond)
            return plain
        again = torch.is_grad_enabled()
        with recording(x_t) as point:
            time = self._copies[id(t)][1] if id(t) in self._copies else recordable(t)
            prediction: Prediction = self.denoiser(point, time, None if cond is None else kept(cond))
            direction = slope(self.loss(prediction.x0, time, **self.given), point, again=again)
        if not again:
            fraction = prediction.variance_fraction
            prediction = Prediction(prediction.x0.detach(), None if fraction is None else fraction.detach())
        return prediction._replace(x0=prediction.x0 - self.scale * reach(self.process, t, x_t) * direction)
