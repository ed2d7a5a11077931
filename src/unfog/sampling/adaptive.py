"""Sampling by an adaptive integrator: as accurate as is asked for, at the cost that each sample needs.

Source:
    Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D: black-box solvers on the probability-flow ODE (they
    integrate in t).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Rng
from unfog.sampling.flow import FlowField, flow_time, last_flow_time
from unfog.sampling.ode import Solution, trajectory
from unfog.sampling.sampler import Sampler, Step, instants
from unfog.sampling.table import Grid


@dataclass(frozen=True)
class RK45(Sampler):
    """The pair of Dormand and Prince on the probability-flow ODE in flow time, each sample with steps of its own.

    Of the grid only the two ends bear on the result; the times between are those of the previews, read off the
    continuous solution. The integration goes down to ``sigma_min`` (on a table not below its first level); from there
    one step of first order, whose error is of its square, leads to less noise: at t = 0 to the estimate of x0 itself.
    No gradients flow through it.

    Attributes:
        rtol: the error allowed a step, relative to the state.
        atol: the same in absolute terms, for data of scale 1.
        sigma_min: the ``sigma / alpha`` at which the integration ends.
        max_evaluations: of one sample; one that needs more is refused.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    sigma_min: float = 1e-3
    max_evaluations: int = 1000
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.rtol < 1 and 0 <= self.atol < 1, f"rtol and atol in [0, 1), not {self.rtol}, {self.atol}")
        require(self.rtol + self.atol > 0, "rtol or atol above 0")
        require(0 < self.sigma_min < 1, f"sigma_min in (0, 1), not {self.sigma_min}")
        require(self.max_evaluations >= 8, f"max_evaluations of at least 8, not {self.max_evaluations}")

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
        schedule = denoiser.process.schedule
        grid = Grid.of(schedule, times)
        flow = [flow_time(node) for node in grid]
        low = max(last_flow_time(schedule, self.sigma_min), flow[-1])
        field = FlowField(denoiser.begin(), cond, len(x))
        y = x / (grid[0].alpha + grid[0].sigma)
        # Times that are nearly the last would ask for steps too small to take: they are read off the last step.
        inner = sum(f > low * (1.0 + 1e-9) for f in flow[1:])
        if flow[0] > low * (1.0 + 1e-9):
            goals = (*flow[: inner + 1], low)
            states = trajectory(field, y, goals, rtol=self.rtol, atol=self.atol, max_evaluations=self.max_evaluations)
        else:
            low = flow[0]
            states = iter([_standing(field, y, low)])
        reached = instants([node.t for node in grid], x.device).unbind()
        state = next(states)
        for k, node in enumerate(grid[1:]):
            x0 = state.y - state.t * state.slope
            # Below the end of the integration x0 is held: at t = 0 it is the result.
            y = state.y if k < inner else torch.lerp(x0, state.y, flow[k + 1] / low)
            yield Step(k, reached[k + 1], (node.alpha + node.sigma) * y, x0, (k + 1) / grid.steps)
            if k < inner:
                state = next(states)

    def evaluations(self, steps: int) -> int:
        return self.max_evaluations


def _standing(field: FlowField, y: Tensor, f: float) -> Solution:
    """Return a state from which there is nothing to integrate."""
    index = torch.arange(len(y), device=y.device)
    slope = field(y, instants([f] * len(y), y.device), index)
    return Solution(f, y, slope, torch.ones(len(y), dtype=torch.int64))
