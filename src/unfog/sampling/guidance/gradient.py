"""Gradients in the midst of sampling, and how far they move an estimate.

A term g added to the score moves the estimate of x0 by ``sigma_t^2 / alpha_t g``, because
``score = (alpha_t x0 - x_t) / sigma_t^2``. Where hardly any signal is left that factor has no bound, and neither have
the errors of a network that it multiplies: beyond ``NOISIEST`` it is 0, and the estimate stays as it is. An exact
gradient falls like alpha_t there, so that what is left out is no more than the shift of the mean of the data, at the
first evaluation of a schedule that ends in pure noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond
from unfog.diffusion.energy import kernels, recordable
from unfog.diffusion.process import Process
from unfog.diffusion.shapes import align

NOISIEST = 1e3
"""The ``sigma_t / alpha_t`` above which gradients are not followed."""


@contextmanager
def recording(x: Tensor) -> Iterator[Tensor]:
    """Record what is computed from data, in inference mode too.

    Args:
        x: the data.

    Yields:
        The data to compute from: ``x`` itself where a gradient is wanted of it outside, else a copy.
    """
    again = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), kernels(again):
        yield x if again and x.requires_grad else recordable(x).detach().requires_grad_()


def slope(numbers: Tensor, point: Tensor, *, again: bool) -> Tensor:
    """Return the gradient of one number for each example, in the shape of the data.

    Args:
        numbers: ``(B,)``, each of its own example alone.
        point: what ``recording`` yielded.
        again: whether the gradient will be differentiated itself.

    Raises:
        ValueError: if the numbers have another shape, or do not depend on the data.
    """
    require(numbers.shape == point.shape[:1], f"numbers ({len(point)},), one an example, got {tuple(numbers.shape)}")
    require(
        numbers.requires_grad,
        "numbers that can be differentiated: these were computed without a graph (by .detach(), .item(), numpy, "
        "rounding or a comparison), or do not depend on the data",
    )
    (gradient,) = torch.autograd.grad(numbers.sum(), point, create_graph=again)
    return gradient if again else gradient.detach()


def reach(process: Process, t: Tensor, x: Tensor) -> Tensor:
    """Return ``sigma_t^2 / alpha_t``, by which a term of the score moves the estimate; 0 beyond ``NOISIEST``."""
    alpha, sigma = process.schedule.scales(t)
    factor = torch.where(sigma <= NOISIEST * alpha, sigma.square() / alpha, torch.zeros_like(sigma))
    return align(factor.to(x), x)


def kept(cond: Cond) -> dict[str, Tensor]:
    """Return a condition that may be kept for a backward pass, wherever it was made."""
    with torch.inference_mode(False):
        return {name: recordable(value) for name, value in cond.items()}
