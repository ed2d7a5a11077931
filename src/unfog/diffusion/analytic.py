"""Exact denoisers: data distributions whose ``E[x0 | x_t]`` is known in closed form.

They are what samplers, guidance and losses are proven against. For a Gaussian ``N(m, C)`` the posterior mean is
``m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)``; for a mixture the components' means are averaged by their
responsibilities; an empirical set is a mixture of points.

Source:
    Karras et al. 2022 (arXiv 2206.00364), appendix B.3, eq. 57: the ideal denoiser of a finite set.
"""

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.shapes import align


class Analytic(Denoiser):
    """A mixture of axis-aligned Gaussians over data of any shape, the general case of this module.

    Args:
        process: the Gaussian process.
        means: ``(K, ...)`` means of the components.
        variances: ``(K, ...)`` variances along each axis, at least 0; any shape that broadcasts against ``means``.
        weights: ``(K,)`` weights of the components, positive; equal unless given. They are normalised.

    A condition ``label`` ``(B,)`` restricts example b to component ``label[b]``; the label K means all of them.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(
        self, process: Gaussian, means: Tensor, variances: Tensor | float = 0.0, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        require(means.ndim >= 1, f"means of shape (K, ...), not {tuple(means.shape)}")
        variance = torch.as_tensor(variances, dtype=means.dtype).expand_as(means)
        require(bool((variance >= 0).all()), "variances of at least 0")
        weight = torch.ones(len(means), dtype=means.dtype) if weights is None else weights.to(means.dtype)
        require(weight.shape == means.shape[:1] and bool((weight > 0).all()), f"{len(means)} positive weights")
        self.process: Gaussian = process
        self.register_buffer("means", means)
        self.register_buffer("variances", variance.clone())
        self.register_buffer("log_weights", (weight / weight.sum()).log())

    @property
    def data_mean(self) -> Tensor:
        """The mean of the data, ``(...)``."""
        return torch.einsum("k,k...->...", self.log_weights.exp(), self.means)

    @property
    def data_variance(self) -> Tensor:
        """The variance of the data along each axis, ``(...)``."""
        second = self.variances + (self.means - self.data_mean) ** 2
        return torch.einsum("k,k...->...", self.log_weights.exp(), second)

    def sample(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Turn normal numbers ``(B, ...)`` and uniform ones ``(B,)`` into data."""
        edges = self.log_weights.exp().cumsum(0)
        k = torch.searchsorted(edges, uniform.contiguous()).clamp_max(len(edges) - 1)
        return self.means[k] + self.variances[k].sqrt() * normal

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha, sigma, log_r = self._responsibilities(x_t, t, cond)
        # Each component's posterior mean, (B, K, ...).
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        gain = torch.where(sigma > 0, gain, torch.ones_like(gain))
        posterior = self.means + gain * (x_t[:, None] - alpha * self.means)
        return Prediction(torch.einsum("bk,bk...->b...", log_r.softmax(1), posterior))

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the log-density of ``x_t`` at time t in nats, ``(B,)``."""
        return self._responsibilities(x_t, t, cond)[2].logsumexp(1)

    def log_posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the log-probability of each component given ``x_t``, ``(B, K)``: the exact classifier."""
        return self._responsibilities(x_t, t, None)[2].log_softmax(1)

    def _responsibilities(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor]:
        schedule = self.process.schedule
        scales = (align(f(t).to(x_t), x_t) for f in (schedule.alpha, schedule.sigma))
        # (B, 1, ...) against components (K, ...).
        alpha, sigma = (scale if scale.ndim == 0 else scale[:, None] for scale in scales)
        variance = alpha**2 * self.variances + sigma**2
        tiny = torch.finfo(x_t.dtype).tiny
        distance = (x_t[:, None] - alpha * self.means) ** 2 / variance.clamp_min(tiny)
        log_r = -0.5 * (distance + (2 * torch.pi * variance.clamp_min(tiny)).log()).flatten(2).sum(2) + self.log_weights
        if cond is not None and "label" in cond:
            label = cond["label"][:, None]
            component = torch.arange(len(self.means), device=label.device)
            log_r = log_r.masked_fill((label != component) & (label != len(self.means)), -torch.inf)
        return alpha, sigma, log_r


def point_mass(process: Gaussian, point: Tensor) -> Analytic:
    """Return the denoiser of data that are always ``point`` ``(...)``."""
    return Analytic(process, point[None])


def gaussian(process: Gaussian, mean: Tensor, variance: Tensor | float) -> Analytic:
    """Return the denoiser of ``N(mean, diag(variance))``, both ``(...)``."""
    return Analytic(process, mean[None], torch.as_tensor(variance, dtype=mean.dtype).expand_as(mean)[None])


def mixture(process: Gaussian, means: Tensor, variances: Tensor | float, weights: Tensor | None = None) -> Analytic:
    """Return the denoiser of a mixture of K Gaussians: ``means`` ``(K, ...)``."""
    return Analytic(process, means, variances, weights)


def empirical(process: Gaussian, points: Tensor) -> Analytic:
    """Return the ideal denoiser of a finite set ``(K, ...)``: what a network that memorised it would answer."""
    return Analytic(process, points)
