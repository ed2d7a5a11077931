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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, overload

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

    @property
    def is_noise(self) -> bool:
        """Whether next to nothing of the data is left, ``sigma > 1000 alpha``: steps in log-SNR lose their meaning."""
        return self.sigma > 1000.0 * self.alpha


class Move(NamedTuple):
    """One update: ``x x + sum_j x0[j] (j-th newest estimate) + noise eps``.

    Attributes:
        x: weight of the committed state.
        x0: weights of the estimates, the newest first.
        noise: standard deviation of the fresh noise.
        commits: whether the result becomes the state, or only the point of the next evaluation.
        span: the half log-SNRs between which the noise acts, the lower one first: it is then the increment of one path
            (``noise``), which other step counts share. None is noise that nothing else shares.
    """

    x: float
    x0: tuple[float, ...]
    noise: float = 0.0
    commits: bool = True
    span: tuple[float, float] | None = None


class Row(NamedTuple):
    """One evaluation: at which time, the moves that follow, and the time of the point they lead to.

    Attributes:
        t: time of the evaluation.
        moves: what is done with its answer: the last leads to ``s``, those before it correct the state at ``t``.
        s: time of the point that the last move leads to.
        before: a move of the state, made before the evaluation, to time ``t``: it is for methods that raise the noise.
    """

    t: float
    moves: tuple[Move, ...]
    s: float
    before: Move | None = None

    @property
    def all_moves(self) -> tuple[Move, ...]:
        """The moves in the order in which they are made."""
        return self.moves if self.before is None else (self.before, *self.moves)


@dataclass(frozen=True)
class Grid(Sequence[Node]):
    """The nodes of a grid of times, and the schedule they lie on.

    Attributes:
        schedule: the noise schedule.
        nodes: at least two, their times falling strictly within [0, 1].
    """

    schedule: Schedule
    nodes: tuple[Node, ...]

    @staticmethod
    def of(schedule: Schedule, times: Tensor) -> "Grid":
        """Return the grid of some times.

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
        return Grid(schedule, tuple(_nodes(schedule, times)))

    @property
    def steps(self) -> int:
        """The number of steps, one less than there are nodes."""
        return len(self.nodes) - 1

    def at(self, t: float) -> Node:
        """Return the node of a time, which need not be one of the grid's."""
        return _nodes(self.schedule, torch.tensor([t], dtype=torch.float64))[0]

    def level(self, half_log_snr: float) -> Node:
        """Return the node of a half log-SNR; values out of the schedule's range give its nearer end."""
        return self.levels([half_log_snr])[0]

    def levels(self, half_log_snrs: Sequence[float]) -> list[Node]:
        """Return the nodes of half log-SNRs, all at once, for one by one takes long."""
        return _nodes(self.schedule, self.schedule.time(2.0 * torch.tensor(half_log_snrs, dtype=torch.float64)))

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        return self.nodes[index]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def _nodes(schedule: Schedule, times: Tensor) -> list[Node]:
    alpha, sigma = schedule.scales(times)
    return [Node(*node) for node in zip(times.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]


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
    span = (t.half_log_snr, s.half_log_snr) if noise > 0 else None
    return Move(a, tuple(b * weight for weight in weights), noise, commits, span)


def forward(s: Node, t: Node) -> Move:
    """Return the move of the process from s, ``alpha_s > 0``, to the noisier t, with noise that nothing else shares."""
    added = -math.expm1(2.0 * (t.half_log_snr - s.half_log_snr))
    return Move(t.alpha / s.alpha, (), t.sigma * math.sqrt(added))


def share(a: float, m: float, b: float) -> float:
    """Return the part in [0, 1] that the noise from a to m has in the variance of that from a to b.

    Noise fades as the signal grows: ``e^(2 (m - b)) (1 - e^(2 (a - m))) / (1 - e^(2 (a - b)))`` for half log-SNRs
    ``a < m < b``, either end of which may be infinite.
    """
    return math.exp(2.0 * (m - b)) * math.expm1(2.0 * (a - m)) / math.expm1(2.0 * (a - b))


def span_ends(rows: Sequence[Row]) -> list[float]:
    """Return the half log-SNRs at which the spans of a table's noise begin and end, rising."""
    return sorted({end for row in rows for move in row.all_moves if move.noise > 0 for end in move.span or ()})


def noise_weights(rows: Sequence[Row]) -> list[dict[int, float]]:
    """Return the noise of each move that wants some as a combination of independent unit normal numbers.

    Number k below ``len(span_ends(rows)) - 1`` belongs to the noise between that end and the next; those from there on
    to moves without a span, in their order. Spans that overlap share what lies in both.
    """
    ends, weights = span_ends(rows), list[dict[int, float]]()
    place = {end: k for k, end in enumerate(ends)}
    apart = max(0, len(ends) - 1)
    for move in (move for row in rows for move in row.all_moves if move.noise > 0):
        if move.span is None:
            weights.append({apart: 1.0})
            apart += 1
            continue
        a, b = move.span
        cells = range(place[a], place[b])
        added = [math.exp(2.0 * (ends[k + 1] - b)) * math.expm1(2.0 * (ends[k] - ends[k + 1])) for k in cells]
        whole = math.expm1(2.0 * (a - b))
        weights.append({k: math.sqrt(part / whole) for k, part in zip(cells, added, strict=True)})
    return weights


def gaussian_moments(
    rows: Sequence[Row],
    schedule: Schedule,
    mean: float,
    variance: float,
    start: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Propagate mean and variance through a table, in closed form, for data ``N(mean, variance)``.

    Every quantity of the loop is affine in the start's and the steps' normal numbers, so each is kept as its mean and
    its coefficients on them.

    Args:
        rows: the table.
        schedule: it lies on.
        mean: of the data.
        variance: of the data.
        start: mean and variance of the state at the first row's time; those of the prior, ``(0, sigma_1^2)``, unless
            given.

    Returns:
        Mean and variance of what the sampler returns with the exact denoiser.
    """
    weights = noise_weights(rows)
    draws = 1 + max((max(combination) for combination in weights), default=-1)
    # Element 0 is the mean, the others the coefficients: of the start, then of each normal number.
    x = torch.zeros(2 + draws, dtype=torch.float64)
    first = (0.0, schedule.sigma(torch.ones((), dtype=torch.float64)).item() ** 2) if start is None else start
    x[0], x[1] = first[0], math.sqrt(first[1])
    y, estimates, noises = x, list[Tensor](), iter(weights)
    times = torch.tensor([row.t for row in rows], dtype=torch.float64)

    def moved(move: Move) -> Tensor:
        result = move.x * x + sum((w * e for w, e in zip(move.x0, estimates, strict=False)), torch.zeros_like(x))
        if move.noise > 0:
            for k, weight in next(noises).items():
                result[2 + k] += move.noise * weight
        return result

    for row, alpha, sigma in zip(rows, schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True):
        if row.before is not None:
            x = y = moved(row.before)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x0 = gain * y
        x0[0] += (1.0 - gain * alpha) * mean
        estimates.insert(0, x0)
        for move in row.moves:
            y = moved(move)
            if move.commits:
                x = y
    return x[0].item(), x[1:].square().sum().item()
