"""Ancestral sampling with the variance that a denoiser has learned.

The reverse step from t to s has the posterior's mean, with x0 in the place of what is not known, and a variance between
two bounds, that of the posterior ``sigma_s^2 (1 - e^(-2h))`` and that of the forward step ``sigma_t^2 (1 - e^(-2h))``
with h the step in log(alpha / sigma). The denoiser answers where between them, element by element and in the logarithm:
as a fraction, so that it serves steps of any length.

Source:
    Nichol, Dhariwal 2021 (arXiv 2102.09672), eq. 15 and section 4: with v the fraction, ``exp(v log beta_t +
    (1 - v) log beta~_t)``, both taken anew for a grid of fewer steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.random import Rng
from unfog.sampling.gaussian import DDPM
from unfog.sampling.noise import noises
from unfog.sampling.sampler import Sampler, Step, instants
from unfog.sampling.table import Grid

_NOT_LEARNED = (
    "a denoiser that answers a variance_fraction: this model has not learned its variance; sample it with ddpm or "
    "ddpm_beta, or train one that learns it"
)


@dataclass(frozen=True)
class LearnedDDPM(Sampler):
    """DDPM with the learned variance; the step to clean data adds no noise.

    The noise of a step is that of ``DDPM`` with the posterior's variance, scaled element by element.
    """

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        """Run from noise to data.

        Raises:
            ValueError: if the denoiser answers no variance.
        """
        require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
        grid = Grid.of(denoiser.process.schedule, times)
        rows = list(DDPM().rows(grid))
        noise = noises(rows, x, rng)
        ask = instants([node.t for node in grid], x.device).unbind()
        denoiser = denoiser.begin().prepared(ask)
        for k, (row, (t, s)) in enumerate(zip(rows, pairwise(grid), strict=True)):
            prediction: Prediction = denoiser(x, ask[k], cond)
            x0, fraction = prediction
            if fraction is None:
                raise ValueError(f"expected {_NOT_LEARNED}")
            (move,) = row.moves
            x = move.x * x + move.x0[0] * x0
            if move.noise > 0:
                # A weighted geometric mean of sigma_s and sigma_t in the place of sigma_s.
                x = x + move.noise * (fraction.to(x) * math.log(t.sigma / s.sigma)).exp() * next(noise)
            yield Step(k, ask[k + 1], x, x0, (k + 1) / grid.steps)

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        super().check(denoiser, times)
        require(not isinstance(denoiser, NetworkDenoiser) or denoiser.learned_variance, _NOT_LEARNED)

    def evaluations(self, steps: int) -> int:
        return steps
