"""Models composed: products, quotients and mixtures of what they have learned.

With densities p_i of noisy data, a product ``prod p_i^w_i`` has the score ``sum w_i score_i``; a negative exponent is a
model to stay away from. A mixture ``sum w_i p_i`` weighs the estimates by how likely each model finds the data, so its
models must say that (``diffusion.energy.Density``).

The mixture of the noisy densities is that of noisy data of the mixture. A product of noisy densities is not the density
of noisy data of the product, to which it comes back as the noise vanishes: samplers that follow it arrive near the
product, not at it, and the more so the more corrections by Langevin steps they make on the way.

Source:
    Du et al. 2023 (arXiv 2302.11552): products, negation and mixtures of diffusion models, and why samplers of products
    need corrections.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.energy import Density
from unfog.diffusion.shapes import align


class Product(Denoiser):
    """The product of some models' densities, each to a power.

    Args:
        denoisers: at least one, of the same process.
        powers: finite, one for each; negative ones divide. Unless they add up to 1, the schedule must keep some signal
            at t = 1: there the product is narrower or wider than the noise that sampling begins with.

    Raises:
        ValueError: for other numbers of powers, processes that differ, or a schedule without signal.
    """

    def __init__(self, denoisers: Sequence[Denoiser], powers: Sequence[float]) -> None:
        super().__init__()
        _check(denoisers, powers, "powers")
        self.process = denoisers[0].process
        self.denoisers = nn.ModuleList(denoisers)
        self.powers = tuple(powers)
        self.missing = 1.0 - math.fsum(powers)
        if abs(self.missing) < 1e-9:
            self.missing = 0.0
        alpha = self.process.schedule.alpha(torch.ones((), dtype=torch.float64)).item()
        require(
            self.missing == 0 or alpha > 0,
            f"powers that add up to 1 on a schedule with alpha_1 = 0, got {self.powers}: pure noise says nothing of x0 "
            "there; give powers such as (1, 1, -1), or use a schedule that keeps some signal",
        )

    def begin(self) -> Denoiser:
        return Product([denoiser.begin() for denoiser in _all(self.denoisers)], self.powers)

    def select(self, index: Tensor) -> Denoiser:
        return Product([denoiser.select(index) for denoiser in _all(self.denoisers)], self.powers)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return Product([denoiser.prepared(times) for denoiser in _all(self.denoisers)], self.powers)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        # The noises add up, eps = (x_t - alpha x0) / sigma; what the powers lack of 1 is made up by x_t itself.
        total = torch.zeros_like(x_t)
        for power, denoiser in zip(self.powers, self.denoisers, strict=True):
            total = total + power * denoiser(x_t, t, cond).x0
        if self.missing == 0:
            return Prediction(total)
        return Prediction(total + self.missing * x_t / align(self.process.schedule.alpha(t).to(x_t), x_t))

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the log-density up to a constant, ``(B,)``.

        Raises:
            TypeError: if a model does not know its own.
        """
        logs = _log_densities(_all(self.denoisers), x_t, t, cond)
        return sum((power * log for power, log in zip(self.powers, logs, strict=True)), torch.zeros_like(logs[0]))


class Mixture(Denoiser):
    """The mixture of some models' densities.

    Energies of networks are known up to a constant, which learning leaves open: relative weights of such models mean
    what they say only as far as the constants agree.

    Args:
        denoisers: at least one, of the same process, each a ``Density``.
        weights: positive, one for each; they are normalised. Equal unless given.

    Raises:
        ValueError: for other numbers of weights, weights that are not positive, or processes that differ.
        TypeError: if a model does not know its density.
    """

    def __init__(self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        given = tuple(weights) if weights is not None else (1.0,) * len(denoisers)
        _check(denoisers, given, "weights")
        require(all(weight > 0 for weight in given), f"positive weights, got {given}")
        _require_densities(denoisers)
        self.process = denoisers[0].process
        self.denoisers = nn.ModuleList(denoisers)
        self.weights = tuple(weight / math.fsum(given) for weight in given)

    def begin(self) -> Denoiser:
        return Mixture([denoiser.begin() for denoiser in _all(self.denoisers)], self.weights)

    def select(self, index: Tensor) -> Denoiser:
        return Mixture([denoiser.select(index) for denoiser in _all(self.denoisers)], self.weights)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        shares = self._weighted(x_t, t, cond).softmax(0)
        total = torch.zeros_like(x_t)
        for share, denoiser in zip(shares, self.denoisers, strict=True):
            total = total + align(share.to(x_t), x_t) * denoiser(x_t, t, cond).x0
        return Prediction(total)

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the log-density up to a constant, ``(B,)``."""
        return self._weighted(x_t, t, cond).logsumexp(0)

    def _weighted(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        logs = _log_densities(_all(self.denoisers), x_t, t, cond)
        return torch.stack([log + math.log(weight) for log, weight in zip(logs, self.weights, strict=True)])


def _check(denoisers: Sequence[Denoiser], numbers: Sequence[float], what: str) -> None:
    require(len(denoisers) > 0, "at least one denoiser, got none")
    require(
        len(numbers) == len(denoisers) and all(math.isfinite(number) for number in numbers),
        f"{len(denoisers)} finite {what}, one for each denoiser, got {tuple(numbers)}",
    )
    processes = {denoiser.process for denoiser in denoisers}
    require(len(processes) == 1, f"denoisers of one process, got {sorted(map(str, processes))}")


def _all(denoisers: nn.ModuleList) -> list[Denoiser]:
    return [denoiser for denoiser in denoisers if isinstance(denoiser, Denoiser)]


def _require_densities(denoisers: Sequence[Denoiser]) -> None:
    for denoiser in denoisers:
        if not isinstance(denoiser, Density):
            raise TypeError(
                f"expected denoisers that know their density, got {type(denoiser).__name__}: learn an energy "
                "(diffusion.energy), or compose a Product, which needs none"
            )


def _log_densities(denoisers: Sequence[Denoiser], x_t: Tensor, t: Tensor, cond: Cond | None) -> list[Tensor]:
    _require_densities(denoisers)
    return [denoiser.log_density(x_t, t, cond) for denoiser in denoisers if isinstance(denoiser, Density)]
