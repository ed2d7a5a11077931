"""An adaptive integrator of ordinary differential equations in which each example has a step size of its own.

The examples of a batch are independent problems: each keeps its time, its step and its error, all are evaluated in one
batch, and those that have arrived leave it. So the answer for an example does not depend on its neighbours, and an easy
one costs no more for a hard one beside it.

Sources:
    Dormand, Prince 1980, "A family of embedded Runge-Kutta formulae": the pair of orders 5 and 4 (RK45, dopri5).
    Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.4: the first step and the control
    of the step (not verified by page). Shampine 1986: the continuous solution of order 4.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.shapes import align

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``f(y, t, index)``: dy/dt ``(M, ...)`` of M examples ``y`` ``(M, ...)`` at their times ``t`` ``(M,)``; ``index``
``(M,)`` says which examples of the whole batch they are."""

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last stage is the result itself: its slope is the first of the next step."""
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_CONTINUOUS = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)

_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0
_BETA = 0.04  # how much the error before the last counts (PI control)


class Solution(NamedTuple):
    """The solution at one time.

    Attributes:
        t: the time.
        y: ``(B, ...)`` the states there.
        slope: ``(B, ...)`` their derivatives; between two steps, those of the continuous solution.
        evaluations: ``(B,)`` int64 on the CPU: how often each example has been evaluated, up to the end of the step
            that passed the time, rejected steps included.
    """

    t: float
    y: Tensor
    slope: Tensor
    evaluations: Tensor


def dormand_prince(
    f: Slope,
    y0: Tensor,
    start: float,
    end: float,
    *,
    rtol: float | Tensor = 1e-6,
    atol: float | Tensor = 1e-6,
    max_evaluations: int = 100_000,
) -> Solution:
    """Return the solution at the end; the arguments are those of ``trajectory``."""
    *_, last = trajectory(f, y0, (start, end), rtol=rtol, atol=atol, max_evaluations=max_evaluations)
    return last


@torch.no_grad()
def trajectory(
    f: Slope,
    y0: Tensor,
    times: Sequence[float],
    *,
    rtol: float | Tensor = 1e-6,
    atol: float | Tensor = 1e-6,
    max_evaluations: int = 100_000,
) -> Iterator[Solution]:
    """Yield the solution at given times, each as soon as every example has passed it.

    Only the first and the last time bear on the steps; those between are read off the continuous solution, of order 4.
    No gradients flow through it.

    Args:
        f: the slope.
        y0: ``(B, ...)`` the states at the first time, float32 or float64.
        times: at least two, which rise or fall strictly.
        rtol: the error allowed a step, relative to the state; a number, or one an element, shaped ``y0.shape[1:]``.
        atol: the same in absolute terms. A step is accepted where the root mean square of the errors, each over its
            ``atol + rtol |y|``, is at most 1.
        max_evaluations: of one example.

    Yields:
        A ``Solution`` for each time after the first.

    Raises:
        FloatingPointError: if a slope is not finite, if a step becomes too small to move the time, or if an example
            needs more evaluations than allowed.
    """
    if y0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected states of float32 or float64, not {y0.dtype}: give y0.float()")
    signs = {t < s for t, s in pairwise(times)}
    require(len(y0) >= 1, f"at least one example, not y0 of shape {tuple(y0.shape)}")
    require(
        len(times) >= 2 and len(signs) == 1 and all(t != s for t, s in pairwise(times)),
        f"at least two times that rise or fall strictly, not {list(times)}",
    )
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        value = torch.as_tensor(tolerance)
        require(bool((value >= 0).all() and value.isfinite().all()), f"{name} of at least 0, not {tolerance}")
    require(bool((torch.as_tensor(rtol).cpu() + torch.as_tensor(atol).cpu() > 0).all()), "rtol or atol above 0")
    run = _Run(f, y0, times, rtol, atol, max_evaluations)
    while run.left():
        run.step()
        yield from run.passed()


class _Run:
    """The examples under way. What controls their steps is on the CPU, their states on their device."""

    def __init__(
        self,
        f: Slope,
        y0: Tensor,
        times: Sequence[float],
        rtol: float | Tensor,
        atol: float | Tensor,
        max_evaluations: int,
    ) -> None:
        self.f, self.rtol, self.atol, self.max_evaluations = f, rtol, atol, max_evaluations
        self.sign = 1.0 if times[1] > times[0] else -1.0
        self.times, self.end = list(times), times[-1]
        # How far each output lies from the start, in the direction of time.
        self.goals = torch.tensor([self.sign * t for t in times[1:]], dtype=torch.float64)
        batch = len(y0)
        self.batch, self.index = batch, torch.arange(batch)
        self.t = torch.full((batch,), times[0], dtype=torch.float64)
        self.evaluations = torch.zeros(batch, dtype=torch.int64)
        self.reached = torch.zeros(batch, dtype=torch.int64)
        self.waiting = dict[int, tuple[Tensor, Tensor, Tensor]]()
        self.told = 0
        self.y, self.like = y0, y0
        self.slope = self._slope(y0, self.t)
        self.h = self._first_step()
        self.error = torch.full((batch,), 1e-4, dtype=torch.float64)
        self.most = torch.full((batch,), _MOST, dtype=torch.float64)

    def left(self) -> bool:
        """Tell whether there are outputs to come."""
        return self.told < len(self.goals)

    def passed(self) -> Iterator[Solution]:
        """Yield the outputs that every example has passed since."""
        passed = int(self.reached.min())
        for k in range(self.told, passed):
            yield Solution(self.times[k + 1], *self.waiting.pop(k))
        self.told = passed

    def step(self) -> None:
        """Try one step of every example that is under way, each of its own size."""
        left = (self.end - self.t).abs()
        # A step that would leave less than a hundredth of itself goes to the end.
        last = 1.01 * self.h >= left
        h = torch.where(last, left, self.h)
        self._check(h)
        t = torch.where(last, self.end, self.t + self.sign * h)
        signed = self._like(self.sign * h)
        slopes, y = [self.slope], self.y
        for node, weights in zip(_NODES, _STAGES, strict=True):
            y = torch.addcmul(self.y, signed, _combined(weights, slopes))
            # Counted from where the step ends, so that the last one ends where it should, to the bit.
            slopes.append(self._slope(y, t - self.sign * (1.0 - node) * h))
        errors = signed * _combined(_ERROR, slopes)
        error = self._norm(errors, torch.maximum(self.y.abs(), y.abs()))
        self._refuse(error)
        accepted = error <= 1.0
        self._output(accepted, t, _Continuous.of(self.y, y, signed, slopes))
        self._control(h, error, accepted)
        kept = accepted.to(y.device)
        self.t = torch.where(accepted, t, self.t)
        self.y = torch.where(align(kept, y), y, self.y)
        self.slope = torch.where(align(kept, y), slopes[-1], self.slope)
        arrived = accepted & last
        if bool(arrived.any()):
            self._keep(~arrived)

    def _slope(self, y: Tensor, t: Tensor) -> Tensor:
        device = y.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        slope = self.f(y, t.to(device, dtype), self.index.to(device))
        self.evaluations[self.index] += 1
        return slope

    def _first_step(self) -> Tensor:
        """Return the step at which an Euler step and the change of its slope promise an error of a hundredth."""
        size = self._norm(self.y, self.y.abs())
        slope = self._norm(self.slope, self.y.abs())
        self._refuse(slope)
        length = abs(self.end - self.times[0])
        h = torch.where((size > 1e-5) & (slope > 1e-5), 0.01 * size / slope, 1e-6).clamp_max(length)
        y = self.y + self._like(self.sign * h) * self.slope
        bend = self._norm(self._slope(y, self.t + self.sign * h) - self.slope, self.y.abs()) / h
        self._refuse(bend)
        most = torch.maximum(slope, bend)
        better = torch.where(most > 1e-15, (0.01 / most) ** 0.2, torch.clamp_min(1e-3 * h, 1e-6))
        return torch.minimum(100.0 * h, better).clamp_max(length)

    def _control(self, h: Tensor, error: Tensor, accepted: Tensor) -> None:
        """Choose the next steps from the errors of this one and the one before."""
        error = error.clamp_min(1e-10)
        grown = _SAFETY * error ** (0.75 * _BETA - 0.2) * self.error**_BETA
        shrunk = _SAFETY * error ** (0.75 * _BETA - 0.2)
        self.h = h * torch.minimum(torch.where(accepted, grown, shrunk).clamp_min(_LEAST), self.most)
        # A step that follows a rejected one does not grow.
        self.most = torch.where(accepted, _MOST, 1.0)
        self.error = torch.where(accepted, error.clamp_min(1e-4), self.error)

    def _check(self, h: Tensor) -> None:
        stuck = h <= 16 * torch.finfo(torch.float64).eps * self.t.abs()
        if bool(stuck.any()):
            where = int(stuck.nonzero()[0])
            raise FloatingPointError(
                f"the step of sample {int(self.index[where])} became too small at {self.t[where].item():.6g}: the "
                "slope is not smooth there, or less precise than was asked for; allow a larger rtol and atol, or "
                "compute in float64"
            )
        spent = self.evaluations[self.index]
        if bool((spent + len(_STAGES) > self.max_evaluations).any()):
            where = int(spent.argmax())
            raise FloatingPointError(
                f"sample {int(self.index[where])} is at {self.t[where].item():.6g} on its way from {self.times[0]:.6g} "
                f"to {self.end:.6g} after {int(spent[where])} evaluations, and max_evaluations is "
                f"{self.max_evaluations}: allow more, or a larger rtol and atol"
            )

    def _output(self, accepted: Tensor, t: Tensor, continuous: "_Continuous") -> None:
        """Keep the outputs that lie in the steps just accepted."""
        before = self.reached[self.index]
        after = torch.where(accepted, torch.searchsorted(self.goals, self.sign * t, right=True), before)
        for k in range(int(before.min()), int(after.max())):
            inside = ((before <= k) & (k < after)).nonzero()[:, 0]
            if not len(inside):
                continue
            if k not in self.waiting:
                fresh = torch.zeros(self.batch, dtype=torch.int64)
                self.waiting[k] = (torch.empty_like(self.like), torch.empty_like(self.like), fresh)
            y, slope, evaluations = self.waiting[k]
            whose = self.index[inside]
            part = (self.times[k + 1] - self.t[inside]) / (t - self.t)[inside]
            found = continuous.at(inside.to(y.device), self._like(part))
            y[whose.to(y.device)], slope[whose.to(y.device)] = found
            evaluations[whose] = self.evaluations[whose]
        self.reached[self.index] = after

    def _keep(self, kept: Tensor) -> None:
        """Go on with some of the examples that are under way."""
        self.index, self.t, self.h = self.index[kept], self.t[kept], self.h[kept]
        self.error, self.most = self.error[kept], self.most[kept]
        device = kept.to(self.y.device)
        self.y, self.slope = self.y[device], self.slope[device]

    def _like(self, value: Tensor) -> Tensor:
        """Return a number an example on the device and in the dtype of the states, ready to be multiplied with them."""
        return value.to(self.like.device, self.like.dtype).reshape(-1, *(1,) * (self.like.ndim - 1))

    def _norm(self, value: Tensor, size: Tensor) -> Tensor:
        """Return the root mean square of each example over its tolerance, float64 on the CPU."""
        scale = self._tolerance(self.atol) + self._tolerance(self.rtol) * size
        norm = (value / scale).flatten(1).square().mean(1).sqrt()
        return norm.cpu().double()

    def _tolerance(self, value: float | Tensor) -> float | Tensor:
        return value.to(self.like) if isinstance(value, Tensor) else value

    def _refuse(self, norm: Tensor) -> None:
        """Raise an error that names the examples whose norm is not finite."""
        bad = self.index[~norm.isfinite()].tolist()
        if bad:
            raise FloatingPointError(
                f"samples {bad[:10]} of {self.batch} are not finite: the slope is NaN or infinite, as where a denoiser "
                "answers so; check the checkpoint, and lower the guidance scale if it is large"
            )


class _Continuous(NamedTuple):
    """The solution within a step, by Horner's rule from the parts of the step done and to do."""

    before: Tensor
    after: Tensor
    bend: Tensor
    twist: Tensor
    last: Tensor
    h: Tensor

    @staticmethod
    def of(before: Tensor, after: Tensor, h: Tensor, slopes: Sequence[Tensor]) -> "_Continuous":
        change = after - before
        bend = h * slopes[0] - change
        twist = change - h * slopes[-1] - bend
        return _Continuous(before, after, bend, twist, h * _combined(_CONTINUOUS, slopes), h)

    def at(self, which: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return states and slopes of some of the examples at a part of their steps."""
        before, after, bend, twist, last, h = (value[which] for value in self)
        change = after - before
        rest = 1.0 - part
        inner = twist + rest * last
        middle = bend + part * inner
        outer = change + rest * middle
        d_middle = inner - part * last
        # The end of a step is what it is, without the roundings of an interpolation.
        y = torch.where(part == 1.0, after, before + part * outer)
        return y, (outer + part * (rest * d_middle - middle)) / h


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = slopes[0] * weights[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total
