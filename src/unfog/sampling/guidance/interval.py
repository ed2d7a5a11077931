"""Guidance at some noise levels only.

At high noise guidance drives all samples to the same few outcomes, at low noise it changes little: what it is good for
it does in between. Left out elsewhere, it costs nothing there.

Source:
    Kynkäänniemi et al. 2024 (arXiv 2404.07724): guidance in a limited interval of noise levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.shapes import align


class Interval(Denoiser):
    """One denoiser where ``low <= sigma_t / alpha_t <= high``, and another elsewhere; only one of them is asked.

    Times that were prepared are told apart beforehand. Of others the outcome is read from the device; where several
    times are asked at once and lie on both sides, both denoisers are asked and each element takes its own.

    Args:
        guided: asked within the interval.
        plain: asked outside of it, of the same process.
        low: lower end, at least 0.
        high: upper end, above ``low``; may be infinite.

    Raises:
        ValueError: if the processes differ, or the ends are out of order.
    """

    def __init__(self, guided: Denoiser, plain: Denoiser, low: float, high: float) -> None:
        super().__init__()
        require(0 <= low < high, f"0 <= low < high, the ends in sigma / alpha, not {low} and {high}")
        require(guided.process == plain.process, f"denoisers of one process, got {guided.process}, {plain.process}")
        self.process = guided.process
        self.guided = guided
        self.plain = plain
        self.low = low
        self.high = high
        # By identity of the time, which is kept alive so that no other can take it.
        self._known: dict[int, tuple[Tensor, bool]] = {}

    def begin(self) -> Denoiser:
        return self._around(self.guided.begin(), self.plain.begin())

    def select(self, index: Tensor) -> Denoiser:
        return self._around(self.guided.select(index), self.plain.select(index))

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        found = self._around(self.guided.prepared(times), self.plain.prepared(times))
        if times:
            inside = self.inside(torch.stack(list(times))).tolist()
            found._known = {id(t): (t, within) for t, within in zip(times, inside, strict=True)}
        return found

    def inside(self, t: Tensor) -> Tensor:
        """Return which times lie within the interval, bool in the shape of ``t``."""
        alpha, sigma = self.process.schedule.scales(t)
        level = sigma / alpha
        return (level >= self.low) & (level <= self.high)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if id(t) in self._known:
            within = self._known[id(t)][1]
            known: Prediction = (self.guided if within else self.plain)(x_t, t, cond)
            return known
        inside = self.inside(t)
        if bool(inside.all()):
            guided: Prediction = self.guided(x_t, t, cond)
            return guided
        if not bool(inside.any()):
            plain: Prediction = self.plain(x_t, t, cond)
            return plain
        return _chosen(align(inside, x_t), self.guided(x_t, t, cond), self.plain(x_t, t, cond))

    def _around(self, guided: Denoiser, plain: Denoiser) -> "Interval":
        found = Interval(guided, plain, self.low, self.high)
        found._known = self._known
        return found


def _chosen(inside: Tensor, guided: Prediction, plain: Prediction) -> Prediction:
    x0 = torch.where(inside, guided.x0, plain.x0)
    if guided.variance_fraction is None or plain.variance_fraction is None:
        return Prediction(x0)
    return Prediction(x0, torch.where(inside, guided.variance_fraction, plain.variance_fraction))
