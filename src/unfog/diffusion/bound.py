"""The variational bound on the log-likelihood of data, term by term, in nats for each element.

    -log p(x0) <= L_T + sum_t L_{t-1} + L_0

``L_T`` compares ``q(x_1 | x0)`` with the prior, which here is ``N(0, sigma_1^2)``, what sampling begins with; it is
``SNR_1 x0^2 / 2``. ``L_{t-1}`` compares ``q(x_s | x_t, x0)`` with the reverse step ``N(a x_t + b x0_hat, v)``. With the
posterior's variance c^2 in place of v it is ``(SNR_s - SNR_t) (x0 - x0_hat)^2 / 2``; and in continuous time their sum
is ``integral (eps - eps_hat)^2 / 2`` over the log-SNR. ``L_0`` is the likelihood of data of 256 levels under a Gaussian
that is integrated over the bin of each level.

The variance of the reverse step lies between two: with the fraction v of a learned one, ``log variance =
v log sigma_{t|s}^2 + (1 - v) log c^2``; the fixed ones of DDPM are v = 1 (beta) and v = 0 (posterior).

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 5 to 8 and 13. Nichol, Dhariwal 2021 (2102.09672), eq. 15: the
    interpolated variance. Kingma, Salimans, Poole, Ho 2021 (2107.00630): the bound in terms of the SNR, and in
    continuous time.
"""

import torch
from torch import Tensor
from torch.special import log_ndtr

from unfog.diffusion.checks import require
from unfog.diffusion.process import Gaussian
from unfog.diffusion.shapes import align

LEVELS = 256
"""Of 8-bit data; those in [-1, 1] lie ``2 / 255`` apart."""

HALF_BIN = 1.0 / (LEVELS - 1)
"""Half the distance of two levels."""


def prior_term(x0: Tensor, log_snr: Tensor) -> Tensor:
    """Return ``L_T`` of each element.

    Args:
        x0: ``(B, ...)`` clean data.
        log_snr: where the chain ends, ``()`` or ``(B,)``; minus infinity gives 0.
    """
    return 0.5 * align(log_snr.exp(), x0) * x0.double().square()


def step_log_variance(process: Gaussian, s: Tensor, t: Tensor, fraction: Tensor | float) -> Tensor:
    """Return the log variance of the reverse step from t to s.

    Args:
        process: the Gaussian process.
        s: earlier times, ``()`` or ``(B,)``, with ``sigma_s`` above 0.
        t: later times, likewise.
        fraction: 0 for the posterior's variance, 1 for that of the forward step; ``(B, ...)`` for learned ones.
    """
    low, high = 2.0 * process.posterior(s, t).std.log(), 2.0 * process.kernel(s, t).std.log()
    if isinstance(fraction, Tensor):
        low, high = align(low, fraction), align(high, fraction)
    return low + fraction * (high - low)


def step_term(process: Gaussian, s: Tensor, t: Tensor, error: Tensor, fraction: Tensor | float = 0.0) -> Tensor:
    """Return ``L_{t-1}`` of each element, the divergence of the reverse step from t to s.

    Args:
        process: the Gaussian process.
        s: earlier times, ``()`` or ``(B,)`` float64, with ``sigma_s`` above 0.
        t: later times, likewise.
        error: ``(B, ...)``, ``x0 - x0_hat`` at t.
        fraction: of the variance, as for ``step_log_variance``.
    """
    posterior, error = process.posterior(s, t), error.double()
    wider = align(step_log_variance(process, s, t, fraction), error) - align(2.0 * posterior.std.log(), error)
    gain = align((posterior.x0_scale / posterior.std).square(), error)
    return 0.5 * (wider + torch.expm1(-wider) + gain * error.square() * torch.exp(-wider))


def rate_term(error: Tensor, log_snr: Tensor) -> Tensor:
    """Return how much each element adds to the bound in continuous time, for a unit of log-SNR.

    Args:
        error: ``(B, ...)``, ``x0 - x0_hat`` at that log-SNR.
        log_snr: ``()`` or ``(B,)`` float64, finite.
    """
    return 0.5 * align(log_snr.exp(), error) * error.double().square()


def decoder_term(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return ``L_0`` of each element: minus the log of the mass that a Gaussian puts on the bin of a level.

    The outermost bins reach to infinity.

    Args:
        x0: ``(B, ...)`` data of 256 levels in [-1, 1].
        mean: of the Gaussian, ``(B, ...)``.
        log_variance: of the Gaussian, anything that broadcasts against ``x0`` (``shapes.align``).

    Source:
        Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 13.
    """
    x0, mean = x0.double(), mean.double()
    precision = torch.exp(-0.5 * log_variance.double())
    low, high = (x0 - HALF_BIN - mean) * precision, (x0 + HALF_BIN - mean) * precision
    # A Gaussian is symmetric: in the lower tail the logarithm of its integral keeps its digits.
    upper = low + high > 0
    left, right = torch.where(upper, -high, low), torch.where(upper, -low, high)
    inner = log_ndtr(right) + torch.log(-torch.expm1(log_ndtr(left) - log_ndtr(right)))
    below, above = x0 < HALF_BIN - 1.0, x0 > 1.0 - HALF_BIN
    return -torch.where(below, log_ndtr(high), torch.where(above, log_ndtr(-low), inner))


def require_levels(x0: Tensor) -> None:
    """Raise ``ValueError`` unless data have the 256 levels of 8 bits in [-1, 1]: only these have bits to count."""
    place = (x0.double() + 1.0) * (0.5 * (LEVELS - 1))
    # float32 data of up to 255 levels are good to 2e-5 of a level.
    off = (place - place.round()).abs().amax() if x0.numel() else place.new_zeros(())
    inside = bool((place > -0.5).all()) and bool((place < LEVELS - 0.5).all())
    require(
        inside and float(off) < 1e-3,
        "8-bit data, whose 256 levels in [-1, 1] the bound counts the bits of; these data have other values: measure "
        "pictures of 8 bits, not arrays of floats",
    )
