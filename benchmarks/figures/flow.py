"""Figures of docs/mathematics/ode.md: the probability flow beside the reverse process, on a line and in the plane."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.figures.detail import Detail, Lines, line_mixture, plane_mixture, span
from unfog.diffusion.analytic import Analytic
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine
from unfog.evaluation.pictures import COLOURS, MUTED, blank, dress, panels, save
from unfog.sampling.gaussian import DDIM, DDPM
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.sampler import Sampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figures of the page."""
    draw_line(folder / "flow-line.png", detail)
    draw_plane(folder / "flow-plane.png", detail)
    return []


def trajectories(denoiser: Analytic, sampler: Sampler, steps: int, paths: int) -> tuple[Tensor, Tensor]:
    """Return the times ``(steps + 1,)`` and the states ``(steps + 1, paths, ...)`` of some trajectories."""
    schedule = denoiser.process.schedule
    times = Trailing().times(schedule, steps)
    rng = Rng.of(0, paths)
    x = denoiser.process.prior(denoiser.means.shape[1:], rng=rng, dtype=torch.float64)
    states = [x, *(step.x for step in sampler.steps(denoiser, x, times, rng=rng))]
    return times, torch.stack(states)


def draw_line(path: Path, detail: Detail) -> None:
    """Draw the density of x_t over time, and trajectories of the flow and of the reverse process over it."""
    schedule = Cosine()
    denoiser = line_mixture(schedule)
    figure, (row,) = panels(1, 2, panel=(4.6, 3.5))
    t, x = span(0.0, 1.0, max(20, detail.points // 3)), span(-3.0, 3.0, max(20, detail.points // 2))
    # Data of no noise have narrow peaks: the root of the density, a column its own scale, keeps the rest visible.
    density = torch.stack([denoiser.log_density(x[:, None], time).exp() for time in t], dim=1)
    shade = (density / density.max(0).values).sqrt()
    shown: list[tuple[str, Sampler, int]] = [
        ("probability flow", DPMSolverPP2M(), 24),
        ("reverse process (DDPM)", DDPM(), 6),
    ]
    for one, (name, sampler, paths) in zip(row, shown, strict=True):
        dress(one, "time t", "x_t" if one is row[0] else "", title=name)
        one.pcolormesh(t.numpy(), x.numpy(), shade.numpy(), cmap="Blues", vmax=1.5, shading="gouraud", rasterized=True)
        times, states = trajectories(denoiser, sampler, min(detail.steps, 250), min(detail.paths, paths))
        one.plot(times.numpy(), states[:, :, 0].numpy(), color=COLOURS[1], linewidth=0.8, alpha=0.85)
        one.set_xlim(1.0, 0.0)
        one.set_ylim(-3.0, 3.0)
        one.grid(visible=False)
    save(figure, path)


def draw_plane(path: Path, detail: Detail) -> None:
    """Draw trajectories in the plane: exact, with few steps of a solver, and of the reverse process."""
    from matplotlib.patches import Circle

    denoiser = plane_mixture(Cosine())
    figure, (row,) = panels(1, 3, panel=(3.1, 3.3))
    shown: list[tuple[str, Sampler, int, int]] = [
        ("probability flow, exact", DPMSolverPP2M(), min(detail.steps, 300), detail.paths),
        ("DDIM, 6 steps", DDIM(), 6, detail.paths),
        ("DDPM, 300 steps, 4 of the paths", DDPM(), min(detail.steps, 300), 4),
    ]
    for one, (name, sampler, steps, drawn) in zip(row, shown, strict=True):
        blank(one, -2.7, 2.7, title=name)
        _, states = trajectories(denoiser, sampler, steps, detail.paths)
        _draw_paths(one, states, drawn)
        for mean, variance in zip(denoiser.means.tolist(), denoiser.variances[:, 0].tolist(), strict=True):
            one.add_patch(Circle(mean, 2.0 * variance**0.5, fill=False, edgecolor=MUTED, linewidth=0.8))
    save(figure, path)


def _draw_paths(axes: "Axes", states: Tensor, drawn: int) -> None:
    """Draw the first trajectories of ``(N, paths, 2)``, and the starts and ends of all."""
    for k in range(min(drawn, states.shape[1])):
        axes.plot(*states[:, k].T.numpy(), color=COLOURS[0], linewidth=0.6, alpha=0.7)
    axes.plot(*states[0].T.numpy(), "o", color=MUTED, markersize=2.2, alpha=0.7)
    axes.plot(*states[-1].T.numpy(), "o", color=COLOURS[1], markersize=3.2)
