"""The probability-flow ODE in flow time, on which adaptive sampling, encoding and likelihood rest.

In flow time ``f = sigma / (alpha + sigma)`` and for the state ``y = x / (alpha + sigma) = (1 - f) x0 + f eps`` it is

    dy / df = (y - x0(y, f)) / f,

the same curve on every schedule: finite at f = 1, where alpha may be 0, and of bounded slope down to the data. At
f = 0 itself nothing is left of eps, and the quotient is undefined: whoever integrates it stops at a small stated f.

Source:
    Song et al. 2021 (arXiv 2011.13456), eq. 13: the probability-flow ODE.
"""

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.schedule import Schedule, Tabulated
from unfog.diffusion.shapes import align
from unfog.sampling.table import Node


class FlowField:
    """The slope of the ODE, as ``ode.trajectory`` wants it.

    Args:
        denoiser: estimates x0.
        cond: the condition of the whole batch.
        batch: the number of examples in it.
    """

    def __init__(self, denoiser: Denoiser, cond: Cond | None, batch: int) -> None:
        self.denoiser, self.cond, self.batch = denoiser, cond, batch

    def __call__(self, y: Tensor, f: Tensor, index: Tensor) -> Tensor:
        """Return dy / df.

        Args:
            y: ``(M, ...)`` states.
            f: ``(M,)`` their flow times.
            index: ``(M,)`` which examples of the batch they are, each at most once.
        """
        schedule = self.denoiser.process.schedule
        t = schedule.time(2.0 * (torch.log1p(-f) - f.log()))
        alpha, sigma = schedule.scales(t)
        denoiser, cond = self.denoiser, self.cond
        if len(index) < self.batch:
            denoiser, cond = denoiser.select(index), selected(cond, index)
        x0: Tensor = denoiser(align((alpha + sigma).to(y), y) * y, t, cond).x0
        return (y - x0) / align(f.to(y), y)


def selected(cond: Cond | None, index: Tensor) -> Cond | None:
    """Return the condition of some examples of the batch."""
    return None if cond is None else {name: value[index] for name, value in cond.items()}


def flow_time(node: Node) -> float:
    """Return ``sigma / (alpha + sigma)``."""
    return node.sigma / (node.alpha + node.sigma)


def last_flow_time(schedule: Schedule, sigma_min: float) -> float:
    """Return the flow time at which ``sigma / alpha`` is down at a value; a table only goes to its first level."""
    if isinstance(schedule, Tabulated):
        # Below its first level a table has not been trained.
        first = schedule.time_of(torch.zeros((), dtype=torch.float64))
        sigma_min = max(sigma_min, torch.exp(-0.5 * schedule.log_snr(first)).item())
    return sigma_min / (1.0 + sigma_min)
