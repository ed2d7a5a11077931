"""What is sampled in the laboratory: an exact field, whole or guided, and its exact solution.

The probability-flow ODE is the same curve on every schedule: in flow time ``f = sigma / (alpha + sigma)`` and for the
state ``w = x / (alpha + sigma)`` it is ``dw / df = (w - x0) / f``, finite from pure noise at f = 1 to the data. So one
integration serves all schedules, and a grid or a parameterization has no part in it.

Source:
    Song et al. 2021 (arXiv 2011.13456): the probability-flow ODE. Ho, Salimans 2022 (2207.12598): guidance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.schedule import RectifiedFlow, Schedule
from unfog.diffusion.shapes import align
from unfog.evaluation.lab.mixture import Mixture
from unfog.sampling.flow import FlowField
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.ode import dormand_prince, trajectory

RTOL = 1e-11
"""The error of a step of the exact solution, unless another is asked for."""
_LAST = 1e-7
"""The flow time from which the exact solution goes to clean data in one step of first order: its square is lost."""


class Predicting(Denoiser):
    """An exact denoiser whose answer passes through the output of a network: as a prediction F, in a network's digits.

    With all digits every parameterization gives the same x0. With fewer, their errors reach x0 amplified as
    the parameterization has it at each noise level.

    Args:
        denoiser: the exact one.
        parameterization: what the network would predict.
        dtype: what its output is rounded to.

    Raises:
        ValueError: if the parameterization carries no information somewhere on the schedule.
    """

    def __init__(self, denoiser: Denoiser, parameterization: Parameterization, dtype: torch.dtype) -> None:
        super().__init__()
        parameterization.check(denoiser.process.schedule)
        self.process = denoiser.process
        self.denoiser = denoiser
        self.parameterization = parameterization
        self.dtype = dtype

    def select(self, index: Tensor) -> Denoiser:
        return Predicting(self.denoiser.select(index), self.parameterization, self.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha_t, sigma_t = self.process.schedule.scales(t)
        alpha, sigma = align(alpha_t, x_t), align(sigma_t, x_t)
        x0, fraction = self.denoiser(x_t, t, cond)
        target = self.parameterization.target(x0, (x_t - alpha * x0) / sigma, alpha_t, sigma_t)
        solution = self.parameterization.solve(alpha_t, sigma_t)
        skip, out = align(solution.x0_skip, x_t), align(solution.x0_out, x_t)
        return Prediction(skip * x_t + out * target.to(self.dtype).to(x_t), fraction)


@dataclass(frozen=True)
class Field:
    """A mixture, sampled as a whole or guided towards its components.

    Attributes:
        mixture: the data.
        guidance: the scale with which sample k is guided towards component k (in turn) and away from the whole
            mixture; None samples the mixture as a whole, without labels.
    """

    mixture: Mixture
    guidance: float | None = None

    def __post_init__(self) -> None:
        require(self.guidance is None or math.isfinite(self.guidance), f"a finite guidance scale, not {self.guidance}")

    def cond(self, count: int) -> Cond | None:
        """Return the labels of the first samples."""
        return None if self.guidance is None else {"label": torch.arange(count) % len(self.mixture.components)}

    def guide(self, denoiser: Denoiser, count: int) -> Denoiser:
        """Return a denoiser of the mixture as it is guided, for a batch of the first samples."""
        if self.guidance is None:
            return denoiser
        whole = torch.full((count,), len(self.mixture.components))
        return ClassifierFree(denoiser, self.guidance, {"label": whole})

    def solve(self, schedule: Schedule, x: Tensor, times: Sequence[float], *, rtol: float = RTOL) -> list[Tensor]:
        """Return the exact solution of the probability-flow ODE through given states, integrated from time to time.

        Args:
            schedule: of the times.
            x: ``(B, 2)`` the states of the first samples at the first time.
            times: not rising; each above 0, but for the last.
            rtol: the relative error of a step; the absolute one is a tenth of it.

        Returns:
            The states at each of the times, the first included, ``(B, 2)`` float64.
        """
        scale, flow = _flow_times(schedule, times)
        states = [x.double() / scale[0]]
        for here, there in pairwise(flow):
            w = states[-1]
            if here > max(there, _LAST):
                w = dormand_prince(self._slope(len(x)), w, here, max(there, _LAST), rtol=rtol, atol=0.1 * rtol).y
            states.append(self._to_the_end(w, there) if there < _LAST else w)
        return [w * s for w, s in zip(states, scale, strict=True)]

    def curve(self, schedule: Schedule, x: Tensor, times: Sequence[float]) -> Tensor:
        """Return the same at many times at once, read off the continuous solution: to be looked at.

        Returns:
            ``(times, B, 2)`` float64.
        """
        scale, flow = _flow_times(schedule, times)
        solved = trajectory(
            self._slope(len(x)), x.double() / scale[0], [*flow[:-1], max(flow[-1], _LAST)], rtol=1e-7, atol=1e-8
        )
        return torch.stack([x.double() / scale[0], *(solution.y for solution in solved)]) * scale[:, None, None]

    def _slope(self, count: int) -> FlowField:
        return FlowField(self.guide(self.mixture.denoiser(RectifiedFlow()), count), self.cond(count), count)

    def _to_the_end(self, w: Tensor, there: float) -> Tensor:
        """Go from the last flow time of the integration to one below it."""
        last = torch.tensor(_LAST, dtype=torch.float64)
        x0 = self.guide(self.mixture.denoiser(RectifiedFlow()), len(w))(w, last, self.cond(len(w))).x0
        return torch.lerp(x0, w, there / _LAST)


def _flow_times(schedule: Schedule, times: Sequence[float]) -> tuple[Tensor, list[float]]:
    """Return ``alpha + sigma`` at some times, and the times of the flow there."""
    alpha, sigma = schedule.scales(torch.tensor(list(times), dtype=torch.float64))
    flow: list[float] = (sigma / (alpha + sigma)).tolist()
    require(all(f >= g for f, g in pairwise(flow)), "times that do not rise")
    return alpha + sigma, flow


def times_between(schedule: Schedule, low: float, high: float, steps: int) -> Tensor:
    """Return times uniform in log-SNR from ``low`` to ``high``, ``(steps + 1,)`` float64.

    Raises:
        ValueError: if the schedule does not reach over the interval.
    """
    times = schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    reached = schedule.log_snr(times[[0, -1]]).tolist()
    if not (math.isclose(reached[0], low, abs_tol=1e-6) and math.isclose(reached[1], high, abs_tol=1e-6)):
        require(False, f"a schedule that reaches from log-SNR {low:g} to {high:g}, the interval of the orders")
    return times
