"""Training a denoiser: L_simple and its relatives.

    L = E_{x0, eps, t} [ w_F(t) |F(x_t, t) - (k_x x0 + k_e eps)|^2 ]

With ``Eps``, ``Levels`` and ``Constant(Eps())`` it is DDPM's L_simple; with ``Flow`` on ``RectifiedFlow`` it is flow
matching, and with ``MinibatchOT`` its pairs are coupled; with ``EDM`` it is Karras et al.'s loss; with ``Score`` it is
denoising score matching, weighted by sigma^2 with ``Constant(Eps())``. The squared error is averaged over the elements
of an example.

``Uncertainty`` makes each example's loss ``e^-u L + u`` with a learned u of the noise level; ``LearnedVariance`` adds
the bound that teaches the variance of the reverse step; ``Importance`` draws more times where losses were large.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 14. Lipman et al. 2023 (2210.02747), eq. 23. Karras et al. 2022
    (2206.00364), eq. 8. Vincent 2011, "A connection between score matching and denoising autoencoders".
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.checks import require
from unfog.diffusion.coupling import Coupling, Independent
from unfog.diffusion.denoiser import Cond, NetworkDenoiser, Output
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Importance, Times
from unfog.diffusion.weighting import Uncertainty, Weight
from unfog.sampling.conditioning.conditioner import Conditioner
from unfog.tasks.augmentation import Augmentation
from unfog.tasks.history import LossHistory
from unfog.tasks.hybrid import FixedVariance, LearnedVariance, ReverseVariance
from unfog.tasks.task import Gather, Loss, Task


class Errors(NamedTuple):
    """Mean squared errors of a prediction, ``(B,)`` each.

    Attributes:
        prediction: of the network.
        zero: of a network that always answers 0, the baseline.
        weight: what the loss multiplies them by, as far as it is not learned.
    """

    prediction: Tensor
    zero: Tensor
    weight: Tensor


class _Compared(NamedTuple):
    """Errors, noisy data ``(B, ...)``, and what the network said of them."""

    errors: Errors
    x_t: Tensor
    output: Output


class _Drawn(NamedTuple):
    """What a batch showed, ``(B,)`` each.

    Attributes:
        t: times of the examples.
        u: uniform numbers that they were formed from.
        terms: what the loss of an example is made of, to be logged.
        size: of the loss of an example, by which its level is drawn again.
        loss: of an example, in the expectation over the density of the times.
    """

    t: Tensor
    u: Tensor
    terms: Mapping[str, Tensor]
    size: Tensor
    loss: Tensor


class Denoising(Task):
    """Fit a denoiser's network to data corrupted at random times.

    Args:
        denoiser: what is trained.
        conditioner: what it is conditioned on, and how often that is dropped.
        times: density of the training times.
        weight: of the squared error, as a function of the log-SNR.
        coupling: which noise goes with which example of a micro-batch.
        variance: of the reverse step.
        augmentation: what is done to pictures, of which the network is told; nothing unless given.

    Raises:
        ValueError: if the denoiser learns a variance and ``variance`` does not, or the other way round; if a variance
            is to be learned of coupled pairs; or if an uncertainty is to be learned without a network for it.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        conditioner: Conditioner,
        times: Times,
        weight: Weight,
        *,
        coupling: Coupling | None = None,
        variance: ReverseVariance | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.times = times
        self.weight = weight
        self.coupling = coupling or Independent()
        self.variance = variance or FixedVariance()
        self.augmentation = augmentation
        self.history = LossHistory(times) if isinstance(times, Importance) else None
        self._check()

    def _check(self) -> None:
        require(
            self.variance.learned == self.denoiser.learned_variance,
            f"learned_variance={self.variance.learned} of the denoiser with {type(self.variance).__name__}",
        )
        require(
            self.coupling.independent or not self.variance.learned,
            "independent pairs of data and noise to learn a variance from: that of coupled ones is another process's",
        )
        require(
            not isinstance(self.weight, Uncertainty) or isinstance(self.denoiser.network, WithUncertainty),
            f"a network in nn.uncertainty.WithUncertainty for the weight Uncertainty, got "
            f"{type(self.denoiser.network).__name__}: wrap it before it is given to the denoiser",
        )
        if isinstance(self.variance, LearnedVariance):
            self.variance.check(self.denoiser.process.schedule)

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.denoiser.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        drawn = self._drawn(batch, rng)
        if self.history is not None:
            self.history.note(drawn.u, drawn.size)
        return Loss(drawn.loss.mean(), {name: term.detach().mean() for name, term in drawn.terms.items()})

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        drawn = self._drawn(batch, rng)
        log_snr = self.denoiser.process.schedule.log_snr(drawn.t)
        return {"t": drawn.t, "log_snr": log_snr, "loss": drawn.loss}

    def settle(self, gather: Gather, *, applied: bool) -> None:
        if self.history is not None:
            self.history.settle(gather, applied=applied)

    def errors(self, x0: Tensor, t: Tensor, cond: Cond, *, rng: Rng) -> Errors:
        """Return the errors at given times, with noise that is independent of the data.

        Args:
            x0: ``(B, ...)`` clean data.
            t: ``(B,)`` times in (0, 1].
            cond: the network's condition.
            rng: one key per example, for the noise.
        """
        return self._compared(x0, self.denoiser.process.noise_like(x0, rng=rng), t, cond).errors

    def _drawn(self, batch: Batch, rng: Rng) -> _Drawn:
        process, x0 = self.denoiser.process, batch.values["x0"]
        u = self.times.uniforms(rng)
        u, rarity = (u, torch.ones_like(u)) if self.history is None else self.history.warp(u)
        t = self.times.at(u, rng, process.schedule)
        cond = self.conditioner.drop(self.conditioner(batch.values), rng)
        groups = cond
        if self.augmentation is not None:
            x0, told = self.augmentation(x0, rng)
            cond = {**cond, "augmentation": told}
        noise = process.noise_like(x0, rng=rng)
        if not self.coupling.independent:
            noise = noise[self.coupling.pair(x0, noise, _groups(groups, x0))]
        compared = self._compared(x0, noise, t, cond)
        size, loss, terms = self._judged(x0, t, compared)
        rarity = rarity.to(loss)
        return _Drawn(t, u, {name: rarity * term for name, term in terms.items()}, size, rarity * loss)

    def _judged(self, x0: Tensor, t: Tensor, compared: _Compared) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return size and loss of each example, ``(B,)``, and what they are made of."""
        errors, x_t, output = compared
        network = self.denoiser.network
        terms = {"error": errors.prediction}
        size = loss = errors.weight * errors.prediction
        if isinstance(self.weight, Uncertainty) or self.variance.learned:
            terms["weighted_error"] = loss
        if isinstance(self.weight, Uncertainty) and isinstance(network, WithUncertainty):
            uncertainty = network.uncertainty(self.denoiser.process.schedule.log_snr(t))
            size = (-uncertainty).exp() * loss
            loss = size + uncertainty
        if isinstance(self.variance, LearnedVariance) and output.variance_fraction is not None:
            x0_hat = self.denoiser.estimate(x_t, output.prediction, t)
            schedule = self.denoiser.process.schedule
            terms["bound"] = self.variance.bound(schedule, x0, x0_hat, output.variance_fraction, t).to(loss)
            size, loss = (value + self.variance.weight * terms["bound"] for value in (size, loss))
        return size, loss, terms

    def _compared(self, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond) -> _Compared:
        process, parameterization = self.denoiser.process, self.denoiser.parameterization
        alpha_t, sigma_t = process.schedule.scales(t)
        target = parameterization.target(x0, noise, alpha_t, sigma_t)
        x_t = process.add_noise(x0, noise, t)
        output = self.denoiser.output(x_t, t, cond)
        weight = self.weight.on(parameterization, alpha_t, sigma_t).to(x0.dtype)
        error, zero = ((answer - target).square().flatten(1).mean(1) for answer in (output.prediction, 0.0))
        return _Compared(Errors(error, zero, weight), x_t, output)


def _groups(cond: Cond, x0: Tensor) -> Tensor:
    """Return a number for each example, ``(B,)`` int64, the same for those with the same condition."""
    if not cond:
        return torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    rows = torch.cat([value.double().reshape(len(x0), -1) for value in cond.values()], dim=1).tolist()
    numbers: dict[tuple[float, ...], int] = {}
    return torch.tensor([numbers.setdefault(tuple(row), len(numbers)) for row in rows], device=x0.device)
