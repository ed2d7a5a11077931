"""Training a denoiser: L_simple and its relatives.

    L = E_{x0, eps, t} [ w_F(t) |F(x_t, t) - (k_x x0 + k_e eps)|^2 ]

With ``Eps``, ``Levels`` and ``Constant(Eps())`` it is DDPM's L_simple; with ``Flow`` on ``RectifiedFlow`` it is flow
matching; with ``EDM`` it is Karras et al.'s loss. The squared error is averaged over the elements of an example.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 14. Lipman et al. 2023 (2210.02747), eq. 23. Karras et al. 2022
    (2206.00364), eq. 8.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.denoiser import Cond, NetworkDenoiser
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Times
from unfog.diffusion.weighting import Weight
from unfog.sampling.conditioning.conditioner import Conditioner
from unfog.tasks.task import Loss, Task


class Errors(NamedTuple):
    """Mean squared errors of a prediction, ``(B,)`` each.

    Attributes:
        prediction: of the network.
        zero: of a network that always answers 0, the baseline.
        weight: what the loss multiplies them by.
    """

    prediction: Tensor
    zero: Tensor
    weight: Tensor


class Denoising(Task):
    """Fit a denoiser's network to data corrupted at random times.

    Args:
        denoiser: what is trained.
        conditioner: what it is conditioned on, and how often that is dropped.
        times: density of the training times.
        weight: of the squared error, as a function of the log-SNR.
    """

    def __init__(self, denoiser: NetworkDenoiser, conditioner: Conditioner, times: Times, weight: Weight) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.times = times
        self.weight = weight

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.denoiser.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        _, errors = self._drawn(batch, rng)
        total = (errors.weight * errors.prediction).mean()
        return Loss(total, {"error": errors.prediction.detach().mean()})

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        t, errors = self._drawn(batch, rng)
        log_snr = self.denoiser.process.schedule.log_snr(t)
        return {"t": t, "log_snr": log_snr, "loss": errors.weight * errors.prediction}

    def _drawn(self, batch: Batch, rng: Rng) -> tuple[Tensor, Errors]:
        """Return the times of the examples and the errors at them."""
        t = self.times.draw(rng, self.denoiser.process.schedule)
        cond = self.conditioner.drop(self.conditioner(batch.values), rng)
        return t, self.errors(batch.values["x0"], t, cond, rng=rng)

    def errors(self, x0: Tensor, t: Tensor, cond: Cond, *, rng: Rng) -> Errors:
        """Return the errors at given times.

        Args:
            x0: ``(B, ...)`` clean data.
            t: ``(B,)`` times in (0, 1].
            cond: the network's condition.
            rng: one key per example, for the noise.
        """
        process, parameterization = self.denoiser.process, self.denoiser.parameterization
        noise = process.noise_like(x0, rng=rng)
        alpha_t, sigma_t = process.schedule.scales(t)
        target = parameterization.target(x0, noise, alpha_t, sigma_t)
        prediction = self.denoiser.predict(process.add_noise(x0, noise, t), t, cond)
        weight = self.weight.on(parameterization, alpha_t, sigma_t).to(x0.dtype)
        return Errors((prediction - target).square().flatten(1).mean(1), target.square().flatten(1).mean(1), weight)
