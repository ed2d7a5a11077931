"""Averages of the weights of two kinds, and the synthesis of one kind after the run.

``Power`` has a length that is a fraction of the training so far. After time t it weighs the weights at time tau by
``tau**gamma``::

    average(t) = (gamma + 1) / t**(gamma + 1) * integral from 0 to t of tau**gamma weights(tau) dtau

so the random start has weight zero and the average is useful from the first step on, however short the run. Its
length is told by ``sigma_rel``, the standard deviation of the profile relative to t; 0.10 means a tenth of the run.

Time is any count that grows with training. The profile is self-similar, so at a constant batch size counting steps or
examples gives the same average to the last bit. The trainer counts examples; then a change of the batch size, or a
step that was not applied, weighs the weights by the examples for which they stood, as the integral says.

From power averages of two lengths, stored now and then, those of any other length can be formed after the run
(``reconstruct``).

``Exponential`` forgets at a fixed rate: update n, counted from 1, moves it by ``1 - beta_n`` of the way to the weights,
from the initial weights on, with ``beta_n = beta`` or, warming up, ``beta_n = min(beta, (1 + n) / (10 + n))``. Only
updates count, so its length does not grow with the run: it tends to ``1 / (1 - beta)`` updates. As long as it warms
up, for about ``9 / (1 - beta)`` updates, it is a power average in all but name: moving by ``9 / (10 + n)`` is what
gamma = 8 does, sigma_rel = 0.090. ``Average.relative_length`` tells the lengths of both kinds in the same unit.

Source:
    Karras et al. 2024 (arXiv 2312.02696): eq. 1 and 121 (profile), eq. 2 and 127 (update), eq. 123 to 126 (sigma_rel
    and gamma), eq. 129, 141 to 143 (least squares), eq. 151 (inner product of two profiles).
    Ho, Jain, Abbeel 2020 (2006.11239), appendix B: a decay of 0.9999; Dhariwal, Nichol 2021 (2105.05233): the same,
    without warm-up from the initial weights on in their code (``update_ema``). The warm-up is that of TensorFlow's
    ``ExponentialMovingAverage`` (``num_updates``), with n counted as in the code of Rombach et al. 2022 (2112.10752).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from unfog.checkpoint import require_same_tensors
from unfog.diffusion.checks import require

LONGEST = 1.0 / math.sqrt(12.0)
"""The length of a plain mean over the whole run (gamma = 0); lengths lie strictly below."""


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of the profile of a relative length in (0, 0.2887).

    Raises:
        ValueError: if the length is out of range.

    Source:
        Karras et al. 2024, eq. 126: the positive root of
        ``gamma**3 + 7 gamma**2 + (16 - s) gamma + 12 - s`` with ``s = sigma_rel**-2``.
    """
    require(0.0 < sigma_rel < LONGEST, f"an EMA length sigma_rel in (0, {LONGEST:.4f}), got {sigma_rel}")
    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def sigma_rel_of(gamma: float) -> float:
    """Return the relative length of a profile of exponent gamma (eq. 123)."""
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)


def format_length(sigma_rel: float) -> str:
    """Write a length as it stands in file names: at least three decimals, and as many as it has."""
    text = f"{sigma_rel:.3f}"
    return text if float(text) == sigma_rel else repr(sigma_rel)


class Update(NamedTuple):
    """One time that the weights are taken in.

    Attributes:
        number: of updates so far, this one included.
        before: time of the update before; 0 at the first.
        time: of this one.
    """

    number: int
    before: int
    time: int


class Average(ABC):
    """One way of averaging the weights of a run."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What its files are called."""

    @abstractmethod
    def share(self, update: Update) -> float:
        """Return how far an update moves the average towards the weights, in (0, 1]."""

    @abstractmethod
    def profile(self, updates: int) -> Tensor:
        """Return what the initial weights, and those after each update, weigh in the average.

        Args:
            updates: at equal distances of time, at least 1.

        Returns:
            Float64 ``(updates + 1,)`` in the order of time; their sum is 1.
        """

    @final
    def relative_length(self, updates: int) -> float:
        """Return the standard deviation of the profile after so many updates, relative to their number.

        It is ``sigma_rel`` for power averages (but for few updates), and makes others comparable with them.
        """
        require(updates >= 1, f"at least 1 update, got {updates}")
        profile, when = self.profile(updates), torch.linspace(0.0, 1.0, updates + 1, dtype=torch.float64)
        return math.sqrt(float(profile @ (when - profile @ when).square()))


@dataclass(frozen=True)
class Power(Average):
    """A power-function average: its length is a fraction of the training so far.

    Attributes:
        sigma_rel: that fraction, in (0, 0.2887).
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        gamma_of(self.sigma_rel)  # refuses lengths out of range

    @property
    def name(self) -> str:
        return f"ema-{format_length(self.sigma_rel)}"

    @cached_property
    def _exponent(self) -> float:
        return gamma_of(self.sigma_rel) + 1.0

    def share(self, update: Update) -> float:
        if update.before == 0:
            return 1.0
        # 1 - beta(t) of eq. 127, formed without cancellation
        return -math.expm1(self._exponent * math.log1p((update.before - update.time) / update.time))

    def profile(self, updates: int) -> Tensor:
        edges = torch.linspace(0.0, 1.0, updates + 1, dtype=torch.float64) ** self._exponent
        return torch.cat([edges[:1], edges.diff()])


@dataclass(frozen=True)
class Exponential(Average):
    """An average of constant decay: its length is a number of updates.

    Without the warm-up the random start weighs ``decay**n`` after n updates, which spoils the average of a run of less
    than some five lengths.

    Attributes:
        decay: what an update leaves of the average, in (0, 1).
        warmup: whether the first updates leave less, ``(1 + n) / (10 + n)``.
    """

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        require(0.0 < self.decay < 1.0, f"an EMA decay in (0, 1), got {self.decay}")

    @property
    def name(self) -> str:
        return f"ema-decay-{self.decay!r}" + ("" if self.warmup else "-no-warmup")

    def share(self, update: Update) -> float:
        fixed = 1.0 - self.decay
        return max(fixed, 9.0 / (10.0 + update.number)) if self.warmup else fixed

    def profile(self, updates: int) -> Tensor:
        moved = torch.full((updates,), 1.0 - self.decay, dtype=torch.float64)
        if self.warmup:
            moved = torch.maximum(moved, 9.0 / torch.arange(11, updates + 11, dtype=torch.float64))
        ones = torch.ones(1, dtype=torch.float64)
        left = torch.cat([ones, (1.0 - moved).flip(0).cumprod(0)]).flip(0)
        return torch.cat([ones, moved]) * left


def average_of(value: float | Average) -> Average:
    """Return an average as it is, and the power average of a length for a number."""
    return value if isinstance(value, Average) else Power(value)


class WeightAverages:
    """Averages of one module's weights.

    Parameters are averaged in float32 (float64 if they are float64), whatever the network computes in; buffers are
    copied. An average is laid out as its parameters are, also where they are sharded (``DTensor``): an update costs one
    fused call per average on what this process holds, and nothing is communicated.

    Args:
        module: the module; its parameters are followed, never changed.
        kinds: the averages to keep, all different; a number is the length of a ``Power``.
    """

    def __init__(self, module: nn.Module, kinds: Sequence[float | Average]) -> None:
        self.kinds = tuple(map(average_of, kinds))
        require(len(set(self.kinds)) == len(self.kinds), f"EMA lengths that differ, got {tuple(kinds)}")
        self.time = 0
        self.updates = 0
        self._module = module
        entries = module.state_dict(keep_vars=True)
        self._sources = {name: v for name, v in entries.items() if isinstance(v, nn.Parameter)}
        self._buffers = {name: value.detach().clone() for name, value in entries.items() if name not in self._sources}
        self._averages = {
            kind: {name: _wide(p.detach()).clone() for name, p in self._sources.items()} for kind in self.kinds
        }

    @property
    def copied(self) -> tuple[str, ...]:
        """Names of the entries that are copied, not averaged."""
        return tuple(self._buffers)

    @torch.no_grad()
    def update(self, time: int) -> None:
        """Take the weights in, as those that held since the last update.

        Args:
            time: steps or examples since the start of the run, more than at the last update.
        """
        require(time > self.time, f"a time after the last update at {self.time}, got {time}")
        update = Update(self.updates + 1, self.time, time)
        sources = [_wide(_held(p.detach())) for p in self._sources.values()]
        for kind, average in self._averages.items():
            torch._foreach_lerp_([_held(tensor) for tensor in average.values()], sources, kind.share(update))
        for name, buffer in self._buffers.items():
            buffer.copy_(self._module.get_buffer(name))
        self.time, self.updates = time, update.number

    def weights(self, kind: float | Average) -> dict[str, Tensor]:
        """Return an average with the keys of ``module.state_dict()``, not copied.

        Raises:
            ValueError: if it is not kept.
        """
        names = [kept.name for kept in self.kinds]
        require(average_of(kind) in self._averages, f"one of the averages {names}, got {kind}")
        return {**self._averages[average_of(kind)], **self._buffers}

    @torch.no_grad()
    def load(self, averages: Mapping[Average, Mapping[str, Tensor]], time: int, updates: int) -> None:
        """Take over saved averages, in place.

        Args:
            averages: by kind, with the keys of ``weights``.
            time: that of their last update.
            updates: how many there were.

        Raises:
            ValueError: if an average is missing or a key is missing, unexpected or of another shape or dtype.
        """
        missing = sorted(kind.name for kind in set(self.kinds) - set(averages))
        require(not missing, f"saved averages {[kind.name for kind in self.kinds]}; missing {missing}")
        for kind in self.kinds:
            require_same_tensors(self.weights(kind), averages[kind], kind.name)
        for kind in self.kinds:
            for name, tensor in self.weights(kind).items():
                tensor.copy_(averages[kind][name])
        self.time, self.updates = time, updates


def _held(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    # A DTensor is told by its method: importing its module takes half as long as importing torch.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


@dataclass(frozen=True)
class Snapshot:
    """A power average that was stored during a run.

    Attributes:
        sigma_rel: its length.
        time: that of its last update, in the unit of the run.
        tensors: its entries by name; may read them from a file when they are asked for.
        copied: the names of the entries that are not averages (buffers).
    """

    sigma_rel: float
    time: int
    tensors: Mapping[str, Tensor]
    copied: tuple[str, ...] = ()


def profile_product(time_a: Tensor, gamma_a: Tensor, time_b: Tensor, gamma_b: Tensor) -> Tensor:
    """Return the inner products of profiles, all arguments float64 and broadcast together.

    Source:
        Karras et al. 2024, eq. 151, for either order of the two times.
    """
    first, last = torch.minimum(time_a, time_b), torch.maximum(time_a, time_b)
    gamma_last = torch.where(time_a <= time_b, gamma_b, gamma_a)
    scale = (gamma_a + 1.0) * (gamma_b + 1.0) / ((gamma_a + gamma_b + 1.0) * last)
    return scale * (first / last) ** gamma_last


def reconstruction_weights(stored: Sequence[tuple[int, float]], time: int, sigma_rel: float) -> tuple[Tensor, float]:
    """Return the least-squares combination of stored profiles that comes nearest to a wanted one.

    Args:
        stored: (time, sigma_rel) of each stored average.
        time: the wanted time, at most the last stored one.
        sigma_rel: the wanted length.

    Returns:
        Float64 weights ``(N,)``, and the relative error: the L2 distance of the combined from the wanted profile over
        the L2 norm of the wanted one.

    Source:
        Karras et al. 2024, eq. 141 to 143.
    """
    require(len(stored) > 0, "at least one stored average, got none")
    last = max(t for t, _ in stored)
    require(0 < time <= last, f"a time in (0, {last}], the last that was stored, got {time}")
    times = torch.tensor([float(t) for t, _ in stored], dtype=torch.float64)
    gammas = torch.tensor([gamma_of(length) for _, length in stored], dtype=torch.float64)
    wanted_time, wanted_gamma = torch.full_like(times, float(time)), torch.full_like(gammas, gamma_of(sigma_rel))
    gram = profile_product(times[:, None], gammas[:, None], times[None], gammas[None])
    right = profile_product(times, gammas, wanted_time, wanted_gamma)
    square = float(profile_product(wanted_time[:1], wanted_gamma[:1], wanted_time[:1], wanted_gamma[:1]))
    # Profiles of unit norm, and small singular values dropped: nearly equal neighbours then do not get huge weights
    # of opposite sign, which would amplify the rounding of the stored float32 numbers.
    norm = gram.diagonal().sqrt()
    scaled, target = gram / (norm[:, None] * norm[None]), right / norm
    solution = torch.linalg.lstsq(scaled, target[:, None], rcond=1e-12, driver="gelsd").solution[:, 0]
    left = square - 2.0 * float(solution @ target) + float(solution @ scaled @ solution)
    return solution / norm, math.sqrt(max(left, 0.0) / square)


def reconstruct(
    snapshots: Sequence[Snapshot], wanted: float | Average, *, time: int | None = None
) -> dict[str, Tensor]:
    """Form the power average of any length from stored ones.

    Two lengths and two dozen snapshots make it all but exact; ``reconstruction_weights`` tells how near it comes.
    Tensors are read one at a time, so the memory needed is that of one network.

    Args:
        snapshots: stored averages, in one unit of time, with the same keys.
        wanted: the length, or the ``Power`` of that length.
        time: the wanted time; the last stored one unless given.

    Returns:
        The entries by name, in the dtype they were stored in; those that are not averages come from the last snapshot
        up to ``time``.

    Raises:
        ValueError: if there are no snapshots, keys differ, time or length are out of range, or an average of another
            kind is wanted.
    """
    average = average_of(wanted)
    if not isinstance(average, Power):
        raise ValueError(
            f"expected the length of a power average, got {wanted}: others cannot be formed after the run; keep them "
            f"during it, in train.ema"
        )
    require(len(snapshots) > 0, "at least one snapshot, got none")
    when = max(s.time for s in snapshots) if time is None else time
    weights, _ = reconstruction_weights([(s.time, s.sigma_rel) for s in snapshots], when, average.sigma_rel)
    names = list(snapshots[0].tensors)
    for other in snapshots[1:]:
        require(
            set(other.tensors) == set(names),
            f"snapshots with the same keys; that of time {other.time} differs in "
            f"{sorted(set(other.tensors) ^ set(names))}",
        )
    # Before the first snapshot there is nothing newer to take the buffers from.
    newest = max((s for s in snapshots if s.time <= when), key=lambda s: s.time, default=snapshots[0])
    return dict(_combined(names, snapshots, weights.tolist(), newest))


def _combined(
    names: Sequence[str], snapshots: Sequence[Snapshot], weights: Sequence[float], newest: Snapshot
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        last = newest.tensors[name]
        if name in newest.copied:
            yield name, last.clone()
            continue
        total = torch.zeros_like(last, dtype=torch.float64)
        for weight, snapshot in zip(weights, snapshots, strict=True):
            total.add_(snapshot.tensors[name].to(torch.float64), alpha=weight)
        yield name, total.to(last.dtype)
