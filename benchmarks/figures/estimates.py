"""Figures of docs/mathematics/score.md: noisy densities, the best denoiser, and the score in the plane."""

from pathlib import Path

import torch

from benchmarks.figures.detail import Detail, Lines, line_mixture, plane_mixture, span
from unfog.diffusion.schedule import Cosine
from unfog.evaluation.pictures import COLOURS, MUTED, blank, dress, legend_above, panels, save

LEVELS = (6.0, 3.0, 1.0, -1.0, -4.0)
"""Log-SNRs at which curves are drawn."""
FIELDS = (4.0, 1.0, -2.0)
"""Log-SNRs at which the plane is drawn."""


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figures of the page."""
    draw_line(folder / "denoiser.png", detail)
    draw_plane(folder / "score-field.png", detail)
    return []


def draw_line(path: Path, detail: Detail) -> None:
    """Draw the density of x_t and the best estimate of x0, over x_t / alpha_t, for a mixture on a line."""
    schedule = Cosine()
    denoiser = line_mixture(schedule)
    figure, ((left, right),) = panels(1, 2)
    dress(left, "x_t / α_t", "density, its peak at 1")
    dress(right, "x_t / α_t", "E[x0 | x_t]")
    y = span(-3.0, 3.0, detail.points)
    right.plot([-3, 3], [-3, 3], color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    for log_snr, colour in zip(LEVELS, COLOURS, strict=False):
        t = schedule.time(torch.tensor(log_snr, dtype=torch.float64))
        x = schedule.alpha(t) * y[:, None]
        density = denoiser.log_density(x, t).exp()
        name = f"λ = {log_snr:g}".replace("-", "−")
        left.plot(y.numpy(), (density / density.max()).numpy(), color=colour, linewidth=1.5, label=name)
        right.plot(y.numpy(), denoiser(x, t).x0[:, 0].numpy(), color=colour, linewidth=1.5)
    right.set_ylim(-1.9, 2.1)
    legend_above(figure, [left])
    save(figure, path)


def draw_plane(path: Path, detail: Detail) -> None:
    """Draw the density of x_t and the score, as the pull towards the estimate of x0, for a mixture in the plane."""
    schedule = Cosine()
    denoiser = plane_mixture(schedule)
    figure, (row,) = panels(1, len(FIELDS), panel=(3.1, 3.3))
    fine, coarse = max(20, detail.points // 4), 17
    for one, log_snr in zip(row, FIELDS, strict=True):
        t = schedule.time(torch.tensor(log_snr, dtype=torch.float64))
        alpha = schedule.alpha(t)
        blank(one, -2.4, 2.4, title=f"λ = {log_snr:g}".replace("-", "−"))
        across = span(-2.4, 2.4, fine)
        x = torch.cartesian_prod(across, across)
        density = denoiser.log_density(alpha * x, t).exp().reshape(fine, fine).T
        one.contourf(across.numpy(), across.numpy(), density.numpy(), levels=12, cmap="Blues", alpha=0.75)
        places = torch.cartesian_prod(span(-2.2, 2.2, coarse), span(-2.2, 2.2, coarse))
        pull = denoiser(alpha * places, t).x0 - places
        # The longest arrow of a panel spans one and a half places.
        longest = float(pull.norm(dim=1).max())
        one.quiver(
            *places.T.numpy(),
            *pull.T.numpy(),
            color=COLOURS[1],
            angles="xy",
            scale_units="xy",
            scale=longest / (1.5 * 4.4 / (coarse - 1)),
            width=0.005,
        )
    save(figure, path)
