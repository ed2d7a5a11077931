"""Training a denoiser on the variational bound, together with its noise schedule.

    L = E_t[ -dl/dt |eps - eps_hat|^2 / 2 ] + SNR_1 |x0|^2 / 2 - log p(x0 | x_0),     l the log-SNR, t uniform,

in bits per dimension of 8-bit data. The last term is the decoder at t = 0, where a little noise is left: a Gaussian
about ``x_0 / alpha_0`` with the noise's own deviation, integrated over the bins of the 256 levels.

The network and the two ends of the schedule follow the gradient of L, and the schedule's masses that of the second
moment of its estimate (``diffusion.learned``): all in one backward pass.

Source:
    Kingma, Salimans, Poole, Ho 2021 (arXiv 2107.00630): the bound in continuous time and the learned schedule. Ho,
    Jain, Abbeel 2020 (2006.11239), eq. 13: the discretised Gaussian.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.bound import decoder_term, prior_term, rate_term
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.learned import ScheduledNetwork
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Times
from unfog.sampling.conditioning.conditioner import Conditioner
from unfog.tasks.task import Loss, Task

_QUIET = 1e-3
"""Factor on the gradient of the masses. The optimiser divides by its size, so that it changes nothing there; but it
keeps squares of losses out of the norm by which all gradients are clipped."""


class Terms(NamedTuple):
    """The parts of the bound in bits per dimension, ``(B,)`` float64 each; their sum is its estimate."""

    diffusion: Tensor
    prior: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """The estimate of the bound."""
        return self.diffusion + self.prior + self.reconstruction


class Bound(Task):
    """Fit a network and its schedule to the bound on the likelihood of 8-bit data.

    Args:
        network: with the schedule that it learns.
        parameterization: what the network predicts.
        conditioner: what it is conditioned on, and how often that is dropped.
        times: a uniform density, by independent or low-discrepancy numbers.
    """

    def __init__(
        self, network: ScheduledNetwork, parameterization: Parameterization, conditioner: Conditioner, times: Times
    ) -> None:
        super().__init__()
        self.schedule = network.learner.live()
        self.denoiser = NetworkDenoiser(network, Gaussian(self.schedule), parameterization)
        self.conditioner = conditioner
        self.times = times

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.denoiser.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        t, terms = self._drawn(batch, rng)
        # Only its gradient is wanted: the loss that is told is the bound.
        spread = self.schedule.learner.surrogate(t, terms.diffusion)
        total = terms.total.mean() + _QUIET * (spread - spread.detach())
        clean, noisy = self.schedule.learner.ends.detach().unbind()
        parts = {name: term.detach().mean() for name, term in terms._asdict().items()}
        return Loss(total, {**parts, "log_snr_max": clean, "log_snr_min": noisy})

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        t, terms = self._drawn(batch, rng)
        return {"t": t, "log_snr": self.schedule.log_snr(t), "loss": terms.total}

    def _drawn(self, batch: Batch, rng: Rng) -> tuple[Tensor, Terms]:
        """Return the times of the examples and the terms at them."""
        t = self.times.draw(rng, self.schedule)
        cond = self.conditioner.drop(self.conditioner(batch.values), rng)
        return t, self.terms(batch.values["x0"], t, cond, rng=rng)

    def terms(self, x0: Tensor, t: Tensor, cond: Mapping[str, Tensor], *, rng: Rng) -> Terms:
        """Return the terms of the bound, that of diffusion by one time for each example.

        Args:
            x0: ``(B, ...)`` clean data of 256 levels in [-1, 1].
            t: ``(B,)`` float64 uniform times in (0, 1).
            cond: the network's condition.
            rng: one key per example, for the noise.
        """
        process, schedule = self.denoiser.process, self.schedule
        noise = process.noise_like(x0, rng=rng)
        estimate = self.denoiser(process.add_noise(x0, noise, t), t, cond).x0
        rate = rate_term(x0 - estimate, schedule.line(t)).flatten(1).mean(1)
        clean, noisy = schedule.learner.ends.double().unbind()
        # The same noise serves both ends: each term needs it alone.
        mean = x0.double() + (-0.5 * clean).exp() * noise
        reconstruction = decoder_term(x0, mean, -clean).flatten(1).mean(1)
        prior = prior_term(x0, noisy).flatten(1).mean(1)
        bits = 1.0 / math.log(2.0)
        return Terms(bits * schedule.fall(t) * rate, bits * prior, bits * reconstruction)
