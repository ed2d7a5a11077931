"""Several conditions at once, each with a scale and, if wanted, a place of its own.

    x0 = x0_negative + sum_i m_i w_i (x0_i - x0_negative)

In terms of densities, which is where it comes from: ``p(x) prod_i (p(x | c_i) / p(x))^w_i``, the conjunction of
conditions that are independent given x, a negative scale being a condition to stay away from. A mask m_i in [0, 1]
holds a condition to a region; where masks of scale 1 divide the picture between them, each region is denoised under its
own condition, and the network's sight of the whole joins them.

Sources:
    Liu et al. 2022 (arXiv 2206.01714): conjunction and negation of concepts. Bar-Tal et al. 2023 (2302.08113):
    MultiDiffusion, regions by masks on the estimates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.sampling.guidance.gradient import kept


@dataclass(frozen=True, eq=False)
class Weighted:
    """A condition with its weight.

    Attributes:
        cond: the condition, by name, each ``(B, ...)``.
        scale: w, finite; negative leads away from the condition, 0 leaves it out.
        mask: where it holds, in [0, 1] (or bool): as many axes as the data, each of their size or 1, such as
            ``(1, 1, H, W)`` for a region of all pictures. Everywhere unless given.
    """

    cond: Cond
    scale: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), f"a finite guidance scale, not {self.scale}")
        if self.mask is not None:
            inside = bool(((self.mask >= 0) & (self.mask <= 1)).all())
            require(inside, "a mask in [0, 1]: divide by 255 what comes as 8-bit grey values")

    def select(self, index: Tensor) -> "Weighted":
        """Return the condition of some examples of the batch."""
        own = self.mask is not None and len(self.mask) > 1
        mask = self.mask[index] if own and self.mask is not None else self.mask
        return Weighted({name: value[index] for name, value in self.cond.items()}, self.scale, mask)


def asks_negative(scales: Sequence[float], *, masked: bool) -> bool:
    """Say whether ``Several`` asks for the negative too: it is left out where scales add up to 1 everywhere.

    Args:
        scales: of the conditions.
        masked: whether one of them holds for a part of the picture only.
    """
    return masked or math.fsum(scales) != 1


class Several(Denoiser):
    """``x0_negative + sum_i m_i w_i (x0_i - x0_negative)``, all in one batch.

    Conditions of scale 0 are not evaluated, nor is the negative where the scales add up to 1 without masks: one
    condition of scale 1 is, bit for bit, the denoiser under it, at one evaluation.

    The conditions are those given here, and what a sampler gives under their names is not used (a denoiser around this
    one may use it, such as the plain one of an ``Interval``). What it gives under other names, such as a picture to be
    completed, is common to all conditions and the negative.

    A learned variance is the conditions', averaged by the sizes of ``m_i w_i``, and the negative's where all are 0.

    Args:
        denoiser: the conditional denoiser, trained with condition dropout.
        conditions: at least one.
        negative: what to be guided away from, by name, each ``(B, ...)``: usually the null condition.

    Raises:
        ValueError: if there is no condition, or one has not the names of the negative.
    """

    def __init__(self, denoiser: Denoiser, conditions: Sequence[Weighted], negative: Cond) -> None:
        super().__init__()
        require(len(conditions) > 0, "at least one condition, got none")
        for part in conditions:
            require(
                part.cond.keys() == negative.keys(),
                f"conditions with the names of the negative, {sorted(negative)}, got {sorted(part.cond)}",
            )
        self.process = denoiser.process
        self.denoiser = denoiser
        self.conditions = tuple(conditions)
        self.negative = kept(negative)
        self._asked = tuple(
            Weighted(kept(part.cond), part.scale, None if part.mask is None else kept({"mask": part.mask})["mask"])
            for part in conditions
            if part.scale != 0
        )
        masked = any(part.mask is not None for part in self._asked)
        self._away = asks_negative([part.scale for part in self._asked], masked=masked)

    @property
    def evaluations(self) -> int:
        """How many evaluations of the denoiser one costs."""
        return len(self._asked) + self._away

    def begin(self) -> Denoiser:
        return Several(self.denoiser.begin(), self.conditions, self.negative)

    def select(self, index: Tensor) -> Denoiser:
        negative = {name: value[index] for name, value in self.negative.items()}
        return Several(self.denoiser.select(index), [part.select(index) for part in self.conditions], negative)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return Several(self.denoiser.prepared(times), self.conditions, self.negative)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        common = {name: value for name, value in (cond or {}).items() if name not in self.negative}
        conds = [part.cond for part in self._asked] + ([self.negative] if self._away else [])
        count = len(conds)
        if count == 1:
            alone: Prediction = self.denoiser(x_t, t, {**common, **conds[0]})
            estimates, fractions = [alone.x0], [alone.variance_fraction]
        else:
            together = {name: torch.cat([value] * count) for name, value in common.items()}
            together |= {name: torch.cat([part[name] for part in conds]) for name in self.negative}
            times = t if t.ndim == 0 else torch.cat([t] * count)
            all_of: Prediction = self.denoiser(torch.cat([x_t] * count), times, together)
            estimates = list(all_of.x0.chunk(count))
            fraction = all_of.variance_fraction
            fractions = [None] * count if fraction is None else list(fraction.chunk(count))
        weights = [self._weight(part, x_t) for part in self._asked]
        x0 = self._combined(estimates, weights)
        if fractions[0] is None:
            return Prediction(x0)
        return Prediction(x0, self._combined([f for f in fractions if f is not None], _shares(weights, x_t)))

    def _weight(self, part: Weighted, x: Tensor) -> Tensor | float:
        if part.mask is None:
            return part.scale
        sizes = zip(part.mask.shape, x.shape, strict=False)
        require(
            part.mask.ndim == x.ndim and all(size in (1, whole) for size, whole in sizes),
            f"a mask with the axes of the data {tuple(x.shape)}, each of their size or 1, got {tuple(part.mask.shape)}",
        )
        return part.scale * part.mask.to(x)

    def _combined(self, values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
        """Return the negative's value and, by their weights, the steps from it to the others'.

        Args:
            values: of the conditions, and last the negative's where it is asked.
            weights: of the conditions.
        """
        if not self._away:
            if len(values) == 1:
                return values[0]
            return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)
        *given, negative = values
        total = negative
        for weight, value in zip(weights, given, strict=True):
            total = total + weight * (value - negative)
        return total


def _shares(weights: Sequence[Tensor | float], x: Tensor) -> list[Tensor | float]:
    """Return the sizes of the weights over their sum, 0 where all are 0."""
    sizes = [torch.as_tensor(weight).to(x).abs() for weight in weights]
    total = torch.zeros_like(x[:1, :1])
    for size in sizes:
        total = total + size
    return [torch.where(total > 0, size / total, torch.zeros_like(total)) for size in sizes]
