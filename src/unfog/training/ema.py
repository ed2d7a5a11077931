"""Averages of the weights whose length is a fraction of the training so far, and their synthesis after the run.

The average after time t weighs the weights at time tau by ``tau**gamma``::

    average(t) = (gamma + 1) / t**(gamma + 1) * integral from 0 to t of tau**gamma weights(tau) dtau

so the random start has weight zero and the average is useful from the first step on, however short the run. Its
length is told by ``sigma_rel``, the standard deviation of the profile relative to t; 0.10 means a tenth of the run.

Time is any count that grows with training. The profile is self-similar, so at a constant batch size counting steps or
examples gives the same average to the last bit. The trainer counts examples; then a change of the batch size, or a
step that was not applied, weighs the weights by the examples for which they stood, as the integral says.

From averages of two lengths, stored now and then, those of any other length can be formed after the run
(``reconstruct``).

Source:
    Karras et al. 2024 (arXiv 2312.02696): eq. 1 and 121 (profile), eq. 2 and 127 (update), eq. 123 to 126 (sigma_rel
    and gamma), eq. 129, 141 to 143 (least squares), eq. 151 (inner product of two profiles).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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


class PowerEMA:
    """Averages of one module's weights, one of each length.

    Parameters are averaged in float32 (float64 if they are float64), whatever the network computes in; buffers are
    copied. An update costs one fused call per length.

    Args:
        module: the module; its parameters are followed, never changed.
        lengths: relative lengths sigma_rel, each in (0, 0.2887), all different.
    """

    def __init__(self, module: nn.Module, lengths: Sequence[float]) -> None:
        require(len(set(lengths)) == len(lengths), f"EMA lengths that differ, got {tuple(lengths)}")
        self.lengths = tuple(lengths)
        self.time = 0
        self._module = module
        self._gammas = {length: gamma_of(length) for length in self.lengths}
        entries = module.state_dict(keep_vars=True)
        self._sources = {name: v for name, v in entries.items() if isinstance(v, nn.Parameter)}
        self._buffers = {name: value.detach().clone() for name, value in entries.items() if name not in self._sources}
        self._averages = {
            length: {name: _wide(p.detach()).clone() for name, p in self._sources.items()} for length in self.lengths
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
        sources = [_wide(p.detach()) for p in self._sources.values()]
        for length, average in self._averages.items():
            torch._foreach_lerp_(list(average.values()), sources, self._weight(length, time))
        for name, buffer in self._buffers.items():
            buffer.copy_(self._module.get_buffer(name))
        self.time = time

    def _weight(self, length: float, time: int) -> float:
        """Return ``1 - beta(t)``, formed without cancellation (eq. 127)."""
        if self.time == 0:
            return 1.0
        return -math.expm1((self._gammas[length] + 1.0) * math.log1p((self.time - time) / time))

    def weights(self, sigma_rel: float) -> dict[str, Tensor]:
        """Return the average of a length with the keys of ``module.state_dict()``, not copied.

        Raises:
            ValueError: if the length is not tracked.
        """
        require(sigma_rel in self._averages, f"one of the EMA lengths {self.lengths}, got {sigma_rel}")
        return {**self._averages[sigma_rel], **self._buffers}

    @torch.no_grad()
    def load(self, averages: Mapping[float, Mapping[str, Tensor]], time: int) -> None:
        """Take over saved averages, in place.

        Args:
            averages: by length, with the keys of ``weights``.
            time: that of their last update.

        Raises:
            ValueError: if a length is missing or a key is missing, unexpected or of another shape or dtype.
        """
        missing = sorted(set(self.lengths) - set(averages))
        require(not missing, f"saved averages of all EMA lengths {self.lengths}; missing {missing}")
        for length in self.lengths:
            require_same_tensors(self.weights(length), averages[length], f"EMA {format_length(length)}")
        for length in self.lengths:
            for name, tensor in self.weights(length).items():
                tensor.copy_(averages[length][name])
        self.time = time


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


@dataclass(frozen=True)
class Snapshot:
    """An average that was stored during a run.

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


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, *, time: int | None = None) -> dict[str, Tensor]:
    """Form the average of any length from stored ones.

    Two lengths and two dozen snapshots make it all but exact; ``reconstruction_weights`` tells how near it comes.
    Tensors are read one at a time, so the memory needed is that of one network.

    Args:
        snapshots: stored averages, in one unit of time, with the same keys.
        sigma_rel: the wanted length.
        time: the wanted time; the last stored one unless given.

    Returns:
        The entries by name, in the dtype they were stored in; those that are not averages come from the last snapshot
        up to ``time``.

    Raises:
        ValueError: if there are no snapshots, keys differ, or time or length are out of range.
    """
    require(len(snapshots) > 0, "at least one snapshot, got none")
    when = max(s.time for s in snapshots) if time is None else time
    weights, _ = reconstruction_weights([(s.time, s.sigma_rel) for s in snapshots], when, sigma_rel)
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
