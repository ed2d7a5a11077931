"""Figures of docs/mathematics/solvers.md: errors against evaluations, and what the last jump costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.figures.detail import Detail, Lines, plane_mixture, scalar, span
from unfog.diffusion.analytic import Analytic
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Schedule, VariancePreserving
from unfog.evaluation.pictures import COLOURS, MARKS, MUTED, dress, legend_above, panels, plain_ticks, save
from unfog.sampling.gaussian import DDIM, Heun
from unfog.sampling.grid import Karras, LogSNRUniform, Trailing
from unfog.sampling.multistep import DPMSolverPP2M, DPMSolverPP3M, UniPC
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.singlestep import RK4

SAMPLERS: Mapping[str, TableSampler] = {
    "DDIM": DDIM(),
    "Heun": Heun(),
    "DPM-Solver++(2M)": DPMSolverPP2M(),
    "DPM-Solver++(3M)": DPMSolverPP3M(),
    "UniPC-2": UniPC(2),
    "RK4": RK4(),
}
LOW, HIGH = -5.0, 4.0
"""Log-SNRs between which orders are seen: the last jump, to sigma = 0, hides them."""
Times = Callable[[Schedule, int], Tensor]


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figure of the page, and tell errors and slopes."""
    denoiser = plane_mixture(VariancePreserving())
    figure, ((left, right),) = panels(1, 2, panel=(4.6, 3.6))
    dress(left, "evaluations", "root mean square error", title="on a fixed interval of log-SNR", log_x=True, log_y=True)
    exact = Problem.of(denoiser, fixed(VariancePreserving(), detail.steps), detail)
    curves = {name: exact.curve(sampler, fixed, detail.counts) for name, sampler in SAMPLERS.items()}
    for (name, found), colour, mark in zip(curves.items(), COLOURS, MARKS, strict=False):
        left.plot(*zip(*found, strict=True), color=colour, marker=mark, markersize=4, linewidth=1.5, label=name)
    dress(right, "evaluations", title="to t = 0, three of them on three grids", log_x=True, log_y=True)
    exact = Problem.of(denoiser, fine(VariancePreserving(), detail.steps), detail)
    grids: Mapping[str, Times] = {
        "trailing": Trailing().times,
        "uniform log-SNR": LogSNRUniform().times,
        "Karras": Karras().times,
    }
    for (grid, times), line in zip(grids.items(), ("-", ":", "--"), strict=True):
        for sampler, colour in list(zip(SAMPLERS.values(), COLOURS, strict=False))[:3]:
            found = exact.curve(sampler, times, detail.counts)
            right.plot(*zip(*found, strict=True), color=colour, linestyle=line, linewidth=1.4)
        right.plot([], [], color=MUTED, linestyle=line, label=grid)
    right.set_ylim(5e-4, 3.0)
    for one in (left, right):
        plain_ticks(one, [n for n in (4, 8, 16, 32, 64, 128) if n <= max(detail.counts)])
    legend_above(figure, [left, right])
    save(figure, folder / "solver-errors.png")
    return table(curves)


def fixed(schedule: Schedule, steps: int) -> Tensor:
    """Return times uniform in log-SNR on an interval that does not change with their number."""
    return schedule.time(span(LOW, HIGH, steps + 1))


def fine(schedule: Schedule, steps: int) -> Tensor:
    """Return times from 1 so near to 0 that the last jump, to 0, changes nothing that can be drawn."""
    first = float(schedule.log_snr(scalar(1.0)))
    return torch.cat([schedule.time(span(first, 24.0, steps)), torch.zeros(1, dtype=torch.float64)])


class Problem:
    """Starts of trajectories and their exact ends.

    Args:
        denoiser: exact.
        x: ``(N, ...)`` starts.
        ends: ``(N, ...)`` where the probability flow takes them.
    """

    def __init__(self, denoiser: Analytic, x: Tensor, ends: Tensor) -> None:
        self.denoiser = denoiser
        self.x = x
        self.ends = ends

    @staticmethod
    def of(denoiser: Analytic, times: Tensor, detail: Detail) -> "Problem":
        """Return the problem between the first and the last of many times, solved by Heun's method."""
        rng = Rng.of(0, detail.paths)
        scale = denoiser.process.schedule.sigma(times[0]) / denoiser.process.schedule.sigma(scalar(1.0))
        x = denoiser.process.prior(denoiser.means.shape[1:], rng=rng, dtype=torch.float64) * scale
        return Problem(denoiser, x, sample(denoiser, Heun(), times, x, rng=rng))

    def curve(self, sampler: TableSampler, times: Times, counts: Sequence[int]) -> list[tuple[int, float]]:
        """Return evaluations and root mean square errors, for the largest grids that the counts allow."""
        found: dict[int, float] = {}
        for count in counts:
            steps = next(n for n in range(count, 0, -1) if sampler.evaluations(n) <= count)
            if 2 * sampler.evaluations(steps) < count:
                continue  # a method of many stages, for which so few evaluations are a single step
            grid = times(self.denoiser.process.schedule, steps)
            end = sample(self.denoiser, sampler, grid, self.x, rng=Rng.of(0, len(self.x)))
            found[sampler.evaluations(steps)] = float((end - self.ends).square().sum(1).mean().sqrt())
        return list(found.items())


def table(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Lines:
    """Return errors at both ends of the curves, and the slope between the last two points."""
    lines = ["| method | evaluations: error | evaluations: error | slope at the end |", "|---|---|---|---|"]
    for name, found in curves.items():
        (before, larger), (after, smaller) = found[-2:]
        slope = math.log(larger / smaller) / math.log(after / before)
        lines.append(f"| {name} | {found[0][0]}: {found[0][1]:.2g} | {after}: {smaller:.2g} | {slope:.2f} |")
    return lines
