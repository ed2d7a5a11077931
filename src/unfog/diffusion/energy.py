"""Energies: networks that say a number for each example, whose gradient is the prediction.

A density known up to its integral is ``p_t(x) = exp(-E(x, t)) / Z_t``, its score ``-grad E``. Learned like that, the
score is a gradient for certain, and the energy can be asked for: mixtures of models need it, as do acceptance steps of
Markov chains.

``Gradient`` makes a network of a scalar one, e: its answer is ``F = -grad e``, with the gradient with respect to what
the network is given, ``c_in x_t``. Any parameterization can be learned so, for each is x_t and the score in some
proportion:

    E(x_t, t) = (k |x_t|^2 / 2 - g e(c_in x_t) / c_in) / sigma_t,       eps = k x_t + g F.

With ``Score`` it is e itself; with ``EDM`` e is well scaled at all noise levels.

Source:
    Du et al. 2023 (arXiv 2302.11552): energies in place of scores, and what is composed of them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.shapes import align


@runtime_checkable
class Density(Protocol):
    """What can say how likely noisy data are, up to a constant that depends on the time alone."""

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the log-density of ``x_t`` ``(B, ...)`` at time t in nats, ``(B,)``."""


class InnerProduct(nn.Module):
    """A scalar network made of one for data: ``<x, f(x)>``.

    Args:
        network: f, called as ``network(x, c_noise, **cond)``; answers in the shape of x.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """Return a number for each example, ``(B,)``, at least float32."""
        answer: Tensor = self.network(x, c_noise, **cond)
        # Sums of thousands of products lose all in 8 bits.
        wide = torch.promote_types(answer.dtype, torch.float32)
        return (x.to(wide) * answer.to(wide)).flatten(1).sum(1)


class Gradient(nn.Module):
    """The prediction that a scalar network stands for: minus its gradient.

    While gradients are recorded, this one can be differentiated again, which costs about three times as much as the
    network alone; elsewhere, in inference mode too, it records what it needs for itself.

    Args:
        scalar: called as ``scalar(x, c_noise, **cond)``; answers ``(B,)``.
    """

    def __init__(self, scalar: nn.Module) -> None:
        super().__init__()
        self.scalar = scalar

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """Return minus the gradient with respect to ``x``, in its shape and dtype."""
        again = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad(), kernels(again):
            point = x if again and x.requires_grad else recordable(x).detach().requires_grad_()
            given = {name: recordable(value) for name, value in cond.items()}
            energy: Tensor = self.scalar(point, recordable(c_noise), **given)
            (gradient,) = torch.autograd.grad(energy.sum(), point, create_graph=again)
            return -gradient if again else -gradient.detach()


def recordable(tensor: Tensor) -> Tensor:
    """Return a tensor that may be kept for a backward pass; to be called outside of inference mode.

    What was made in inference mode cannot be kept; a copy made outside of it can.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def kernels(again: bool) -> AbstractContextManager[None]:
    """Return the context in which attention can be differentiated twice: fused kernels cannot (torch 2.13)."""
    return cast(AbstractContextManager[None], sdpa_kernel(SDPBackend.MATH)) if again else nullcontext()


class EnergyDenoiser(Denoiser):
    """A denoiser whose network is the gradient of an energy, which can be asked for.

    Args:
        denoiser: with a ``Gradient`` as its network, of a variance that is not learned.

    Raises:
        ValueError: if its network is no ``Gradient``.
    """

    def __init__(self, denoiser: NetworkDenoiser) -> None:
        super().__init__()
        require(
            isinstance(denoiser.network, Gradient),
            f"a network that is the Gradient of an energy, got {type(denoiser.network).__name__}",
        )
        self.process = denoiser.process
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        prediction: Prediction = self.denoiser(x_t, t, cond)
        return prediction

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return self

    def energy(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return E, ``(B,)`` in nats, up to a constant of the time; t above 0."""
        network = self.denoiser.network
        assert isinstance(network, Gradient)
        parameterization, scales = self.denoiser.parameterization, self.process.schedule.scales(t)
        solution = parameterization.solve(*scales)
        x, level = self.denoiser.inputs(x_t, t)
        e: Tensor = network.scalar(x, level, **(cond or {}))
        square = 0.5 * x_t.square().flatten(1).sum(1)
        skip, out, c_in, sigma = (
            align(c.to(x_t), square)
            for c in (solution.eps_skip, solution.eps_out, parameterization.c_in(*scales), scales[1])
        )
        return (skip * square - out * e.to(square) / c_in) / sigma

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return minus the energy."""
        return -self.energy(x_t, t, cond)
