"""A sampler as a table of numbers.

Each one-step Gaussian kernel that keeps the marginals ``q(x_t | x0) = N(alpha_t x0, sigma_t^2)`` is fixed by the
fresh noise c that it injects:

    x_s = a x_t + b x0 + c eps,     a = sqrt(sigma_s^2 - c^2) / sigma_t,     b = alpha_s - a alpha_t.

Methods of higher order replace x0 by a combination of recent estimates whose weights sum to one. A row of a table
says at which time to evaluate the denoiser and what to do with its answer; the loop in ``sampler`` runs every table.
All numbers are float64 on the CPU; close times and the ends of time are formed from log-SNR differences with expm1.

Sources:
    Song, Meng, Ermon 2021 (arXiv 2010.02502), eq. 7: the family of kernels, c being their sigma_t. Lu et al. 2022
    (2211.01095): the same in terms of x0 and half log-SNR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Node:
    """A time of a grid with what the schedule says there."""

    t: float
    alpha: float
    sigma: float

    @cached_property
    def half_log_snr(self) -> float:
        """``log(alpha / sigma)``, infinite at exact ends."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha) - math.log(self.sigma)


class Move(NamedTuple):
    """One update: ``x x + sum_j x0[j] (j-th newest estimate) + noise eps``.

    Attributes:
        x: weight of the committed state.
        x0: weights of the estimates, the newest first.
        noise: standard deviation of the fresh noise.
        commits: whether the result becomes the state, or only the point of the next evaluation.
    """

    x: float
    x0: tuple[float, ...]
    noise: float = 0.0
    commits: bool = True


class Row(NamedTuple):
    """One evaluation: at which time, the moves that follow, and the time of the point they lead to."""

    t: float
    moves: tuple[Move, ...]
    s: float


def grid_nodes(schedule: Schedule, times: Tensor) -> list[Node]:
    """Return the nodes of a grid of times.

    Args:
        schedule: the noise schedule.
        times: ``(N + 1,)`` falling strictly within [0, 1].

    Raises:
        ValueError: if the times do not fall, leave [0, 1], or are fewer than two.
    """
    times = times.detach().to("cpu", torch.float64)
    require(times.ndim == 1 and len(times) >= 2, f"a grid of at least 2 times, not of shape {tuple(times.shape)}")
    values = times.tolist()
    if not (values[0] <= 1 and values[-1] >= 0 and all(t > s for t, s in pairwise(values))):
        raise ValueError(f"expected times that fall strictly within [0, 1], not {[round(v, 6) for v in values]}")
    alpha, sigma = schedule.scales(times)
    return [Node(*node) for node in zip(values, alpha.tolist(), sigma.tolist(), strict=True)]


def log_kept(t: Node, s: Node, eta: float) -> float:
    """Return the logarithm of ``sqrt(1 - (c / sigma_s)^2)`` for ``c^2 = eta^2 sigma_s^2 (1 - e^(-2h))``.

    Here h is the step in half log-SNR. ``eta = 0`` is deterministic, ``eta = 1`` the posterior of the process.
    """
    if eta == 0 or s.sigma == 0:
        return 0.0
    h = s.half_log_snr - t.half_log_snr
    if eta == 1:
        return -h
    return 0.5 * math.log1p(eta**2 * math.expm1(-2.0 * h))


def transition(t: Node, s: Node, *, eta: float = 0.0, weights: Sequence[float] = (1.0,), commits: bool = True) -> Move:
    """Return the move from time t to time s that keeps the marginals.

    Args:
        t: where the state is, ``sigma_t > 0``.
        s: where it goes, less noisy.
        eta: how much of the posterior's noise is injected, in [0, 1].
        weights: the combination of recent estimates that stands for x0, the newest first; their sum is one.
        commits: whether the result becomes the state.
    """
    kept = log_kept(t, s, eta)
    a = s.sigma / t.sigma * math.exp(kept)
    h = s.half_log_snr - t.half_log_snr
    b = -s.alpha * math.expm1(kept - h)
    noise = s.sigma * math.sqrt(-math.expm1(2.0 * kept)) if kept < 0 else 0.0
    return Move(a, tuple(b * weight for weight in weights), noise, commits)


def gaussian_moments(rows: Sequence[Row], schedule: Schedule, mean: float, variance: float) -> tuple[float, float]:
    """Propagate mean and variance through a table, in closed form, for data ``N(mean, variance)``.

    Every quantity of the loop is affine in the prior's and the steps' normal numbers, so each is kept as its mean and
    its coefficients on them. The prior is ``N(0, sigma_1^2)`` at the first row's time.

    Returns:
        Mean and variance of what the sampler returns with the exact denoiser.
    """
    columns = 1 + sum(move.noise > 0 for row in rows for move in row.moves)
    # Element 0 is the mean, the others the coefficients.
    x = torch.zeros(1 + columns, dtype=torch.float64)
    x[1] = schedule.sigma(torch.ones((), dtype=torch.float64)).item()
    y, estimates, used = x, list[Tensor](), 1
    times = torch.tensor([row.t for row in rows], dtype=torch.float64)
    for row, alpha, sigma in zip(rows, schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True):
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x0 = gain * y
        x0[0] += (1.0 - gain * alpha) * mean
        estimates.insert(0, x0)
        for move in row.moves:
            y = move.x * x + sum((w * e for w, e in zip(move.x0, estimates, strict=False)), torch.zeros_like(x))
            if move.noise > 0:
                used += 1
                y[used] += move.noise
            if move.commits:
                x = y
    return x[0].item(), x[1:].square().sum().item()
