"""Exact likelihood through the probability-flow ODE, and data as noise and back.

In flow time (``flow``) the ODE moves states ``y`` of density p with ``d log p / df = -div(dy / df)``, so

    log p(y at the data) = log p(y at the noise) + integral of the divergence over f,

and p at the noise is the prior's, ``x_1 ~ N(0, sigma_1^2)``: this is the density of what the exact solution of the ODE
makes of that prior. The integral stops at a small ``sigma / alpha``; what is found is the density of data with noise of
that standard deviation (``LogDensity.sigma``), which the data are taken to have already.

The divergence ``(D - tr dx0/dy) / f`` is exact by one backward pass an element, or estimated without bias by probes v
of random signs, ``v . (d slope / dy) v``, the same along the whole of a trajectory.

Units: data in [-1, 1] made of 8-bit levels are ``level / 127.5 - 1``, so a density per level is one per unit of data
over 127.5 for each element, and the bits of an element are ``(-nats / D + ln 127.5) / ln 2``. The density of levels is
that of data to which noise uniform over a level has been added (``dequantized``).

Sources:
    Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.2, eqs. 39 and 40. Grathwohl et al. 2019
    (1810.01367), section 3.1: the trace by probes that are kept fixed while integrating. Hutchinson 1990.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Purpose, Rng
from unfog.sampling.adaptive import RK45
from unfog.sampling.flow import FlowField, flow_time, last_flow_time
from unfog.sampling.ode import dormand_prince
from unfog.sampling.table import Grid

LEVELS = 127.5
"""Levels of 8 bits to a unit of data in [-1, 1]."""
SOLVER = RK45()
"""How the ODE is integrated unless said otherwise."""


class LogDensity(NamedTuple):
    """The log-density of each example of a batch.

    Attributes:
        nats: ``(B,)`` float64: log-density per unit of data.
        error: ``(B,)`` its standard error over the probes; None if it is exact, or of one probe, where none is known.
        log_prior: ``(B,)`` the part of the prior: the log-density of ``latent`` in ``N(0, sigma_1^2)``.
        latent: ``(B, ...)`` the noise at t = 1 that the example comes from.
        sigma: standard deviation of the noise that the data are taken to have.
        evaluations: ``(B,)`` of the denoiser.
    """

    nats: Tensor
    error: Tensor | None
    log_prior: Tensor
    latent: Tensor
    sigma: float
    evaluations: Tensor

    def bits(self, levels: float = LEVELS) -> Tensor:
        """Return the bits that each example takes per element, ``(B,)``.

        Args:
            levels: how many levels of the data there are to a unit; 1 gives the bits of the density itself.
        """
        return (math.log(levels) - self.nats / self.latent[0].numel()) / math.log(2.0)

    def mean_bits(self, levels: float = LEVELS) -> tuple[float, float]:
        """Return the mean of ``bits`` over the examples and its standard error, which contains that of the probes."""
        require(len(self.nats) >= 2, "at least two examples for a standard error")
        bits = self.bits(levels)
        return bits.mean().item(), bits.std().item() / math.sqrt(len(bits))


def log_density(
    denoiser: Denoiser,
    x: Tensor,
    cond: Cond | None = None,
    *,
    probes: int | None = None,
    rng: Rng | None = None,
    solver: RK45 = SOLVER,
) -> LogDensity:
    """Return the log-density of data in the model of a denoiser.

    Args:
        denoiser: estimates x0; it must be differentiable in ``x_t``.
        x: ``(B, ...)`` data, float32 or float64.
        cond: the condition, by name, each ``(B, ...)``.
        probes: how many estimate the divergence, a backward pass each; None makes it exact, by as many backward passes
            as an example has elements.
        rng: one key per example, from which the probes are drawn; not needed without.
        solver: how the ODE is integrated. ``rtol + atol`` is also the error in nats per element that a step may add to
            the log-density.

    Raises:
        ValueError: if there are probes and no keys for them.
        FloatingPointError: as ``ode.trajectory``.
    """
    require(probes is None or probes >= 1, f"probes of at least 1, or None for the exact trace, not {probes}")
    require(probes is None or rng is not None, "rng: probes are drawn from the keys of the examples")
    require(rng is None or len(rng) == len(x), f"one key per example: {len(x)}, not {0 if rng is None else len(rng)}")
    size = x[0].numel()
    with torch.inference_mode(False):
        # Tensors made in inference mode cannot be differentiated: copies of them can.
        x, cond = x.clone(), None if cond is None else {name: value.clone() for name, value in cond.items()}
        field = _DivergingField(FlowField(denoiser.begin(), cond, len(x)), x.shape[1:], _probes(x, probes, rng))
        low, high, scale = _ends(denoiser, solver)
        count = probes or 1
        state = torch.cat([(1.0 - low) * x.flatten(1), x.new_zeros(len(x), count)], dim=1)
        # Each integral of the divergence counts as much as all elements of the state together.
        atol, rtol = (torch.full((size + count,), value, dtype=torch.float64) for value in (solver.atol, solver.rtol))
        atol[size:], rtol[size:] = size * (solver.atol + solver.rtol) / math.sqrt(size + count), 0.0
        found = dormand_prince(field, state, low, high, rtol=rtol, atol=atol, max_evaluations=solver.max_evaluations)
    latent = (scale * found.y[:, :size]).reshape(x.shape)
    sigma_1 = high * scale
    squares = (latent.double().flatten(1) / sigma_1).square().sum(1)
    log_prior = -0.5 * squares - size * (0.5 * math.log(2.0 * math.pi) + math.log(sigma_1))
    # The change of scale from x_1 to y, and that from y to the data.
    volume = found.y[:, size:].double() + size * (math.log(scale) + math.log1p(-low))
    error = volume.std(1) / math.sqrt(count) if count > 1 else None
    return LogDensity(log_prior + volume.mean(1), error, log_prior, latent, low / (1.0 - low), found.evaluations)


def encode(denoiser: Denoiser, x: Tensor, cond: Cond | None = None, *, solver: RK45 = SOLVER) -> Tensor:
    """Return the noise at t = 1 that data come from, ``(B, ...)``; ``decode`` brings them back.

    Data are taken to have the noise at which the integration begins (``solver.sigma_min``).
    """
    low, high, scale = _ends(denoiser, solver)
    return scale * _carried(denoiser, (1.0 - low) * x, cond, low, high, solver)


def decode(denoiser: Denoiser, latent: Tensor, cond: Cond | None = None, *, solver: RK45 = SOLVER) -> Tensor:
    """Return the data that noise at t = 1 leads to, ``(B, ...)``, the inverse of ``encode``.

    It stops where ``encode`` begins, without the last step to clean data that sampling takes.
    """
    low, high, scale = _ends(denoiser, solver)
    return _carried(denoiser, latent / scale, cond, high, low, solver) / (1.0 - low)


def dequantized(x: Tensor, *, rng: Rng, levels: float = LEVELS) -> Tensor:
    """Return data made of levels with noise uniform over the width of one, around it.

    Args:
        x: ``(B, ...)``.
        rng: one key per example.
        levels: how many of them there are to a unit of data.
    """
    require(len(rng) == len(x), f"one key per example: {len(x)}, not {len(rng)}")
    return x + (rng.uniform(x.shape[1:], Purpose.DEQUANTIZE).to(x) - 0.5) / levels


class _DivergingField:
    """The slope of the state beside its divergence by each probe.

    Args:
        field: the slope of the state.
        shape: of one example.
        probes: ``(K, B, ...)`` of random signs; None for the exact divergence.
    """

    def __init__(self, field: FlowField, shape: torch.Size, probes: Tensor | None) -> None:
        self.field, self.shape, self.probes = field, shape, probes

    def __call__(self, state: Tensor, f: Tensor, index: Tensor) -> Tensor:
        size = self.shape.numel()
        with torch.enable_grad():
            y = state[:, :size].reshape(-1, *self.shape).requires_grad_()
            slope = self.field(y, f, index)
        if self.probes is None:
            # Examples do not mix: one pass differentiates one element of all of them.
            one = torch.eye(size, dtype=y.dtype, device=y.device).reshape(size, 1, *self.shape)
            parts = [_product(slope, y, one[k].expand_as(y), k < size - 1) for k in range(size)]
            divergence = torch.stack(parts).sum(0)[:, None]
        else:
            count = len(self.probes)
            signs = self.probes[:, index]
            divergence = torch.stack([_product(slope, y, signs[k], k < count - 1) for k in range(count)], dim=1)
        return torch.cat([slope.detach().flatten(1), divergence], dim=1)


def _product(slope: Tensor, y: Tensor, v: Tensor, again: bool) -> Tensor:
    """Return ``v . (d slope / dy) v`` of each example; ``again`` keeps what is needed for another one."""
    (pulled,) = torch.autograd.grad(slope, y, v, retain_graph=again)
    return (pulled * v).flatten(1).sum(1)


def _probes(x: Tensor, count: int | None, rng: Rng | None) -> Tensor | None:
    if count is None or rng is None:
        return None
    uniform = [rng.at(k).uniform(x.shape[1:], Purpose.SCRATCH) for k in range(count)]
    return torch.stack(uniform).to(x).sub_(0.5).sign_()


def _ends(denoiser: Denoiser, solver: RK45) -> tuple[float, float, float]:
    """Return the flow times of data and of pure noise, and alpha + sigma there."""
    schedule = denoiser.process.schedule
    noise, data = Grid.of(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64))
    low = max(last_flow_time(schedule, solver.sigma_min), flow_time(data))
    return low, flow_time(noise), noise.alpha + noise.sigma


def _carried(denoiser: Denoiser, y: Tensor, cond: Cond | None, start: float, end: float, solver: RK45) -> Tensor:
    field = FlowField(denoiser.begin(), cond, len(y))
    budget = solver.max_evaluations
    return dormand_prince(field, y, start, end, rtol=solver.rtol, atol=solver.atol, max_evaluations=budget).y
