"""Figures of docs/mathematics/forward.md: a photograph that becomes noise, schedules, the posterior."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.figures.detail import Detail, Lines, scalar, span
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    Cosine,
    RectifiedFlow,
    Schedule,
    SubVariancePreserving,
    VarianceExploding,
    cosine,
    linear,
    scaled_linear,
)
from unfog.evaluation.pictures import COLOURS, INK, MUTED, dress, legend_above, panels, save

SHOWN: dict[str, Schedule] = {
    "rectified flow": RectifiedFlow(),
    "cosine": Cosine(),
    "linear betas": linear(),
    "EDM (σ = 80 t)": VarianceExploding(),
}
TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_LEFT, _TOP, _SIDE, _POOL = 190, 100, 225, 3
"""The part of the photograph that is shown, in pixels, and how many of its pixels make one: noise fills files."""


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figures of the page."""
    draw_photograph(folder / "forward-process.png")
    draw_schedules(folder / "schedules.png", detail)
    draw_posterior(folder / "posterior.png", detail)
    return schedule_table()


def photograph() -> Tensor:
    """Return the photograph of a flower that comes with scikit-learn, as data: ``(3, 75, 75)`` in [-1, 1]."""
    pixels = np.asarray(load_sample_image("flower.jpg"))[_TOP : _TOP + _SIDE, _LEFT : _LEFT + _SIDE]
    return avg_pool2d(torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 127.5 - 1.0, _POOL)


def draw_photograph(path: Path) -> None:
    """Draw one photograph at the same times of several schedules, with one noise; states are scaled to unit size."""
    x0 = photograph()[None]
    noise = Gaussian(Cosine()).noise_like(x0, rng=Rng.of(0, 1))
    figure, axes = panels(len(SHOWN), len(TIMES), panel=(1.5, 1.62))
    for row, (name, schedule) in zip(axes, SHOWN.items(), strict=True):
        for one, t in zip(row, TIMES, strict=True):
            time = scalar(t)
            alpha, sigma = schedule.scales(time)
            x = Gaussian(schedule).add_noise(x0, noise, time) / torch.hypot(alpha, sigma)
            one.imshow(((x[0].permute(1, 2, 0) + 1.0) / 2.0).clamp(0, 1).numpy(), interpolation="nearest")
            one.set_axis_off()
            log_snr = float(schedule.log_snr(time))
            one.set_title(_told(log_snr), color=MUTED, fontsize=8, pad=3)
            if one is row[0]:
                one.text(-0.09, 0.5, name, transform=one.transAxes, rotation=90, ha="center", va="center", color=INK)
            if row is axes[-1]:
                one.text(0.5, -0.1, f"t = {t:g}", transform=one.transAxes, ha="center", va="top", color=INK)
    save(figure, path)


def _told(log_snr: float) -> str:
    if log_snr in (float("inf"), float("-inf")):
        return "λ = ∞" if log_snr > 0 else "λ = −∞"
    return f"λ = {log_snr:.1f}".replace("-", "−")


def draw_schedules(path: Path, detail: Detail) -> None:
    """Draw the log-SNR of schedules over time, and their paths in the plane of alpha and sigma."""
    schedules: dict[str, Schedule] = {
        "linear betas": linear(),
        "scaled linear betas": scaled_linear(),
        "cosine betas": cosine(),
        "cosine": Cosine(),
        "sub-VP": SubVariancePreserving(),
        "rectified flow": RectifiedFlow(),
        "rectified flow, shift 3": RectifiedFlow(3.0),
        "EDM": VarianceExploding(),
    }
    figure, ((left, right),) = panels(1, 2, panel=(4.6, 3.7))
    dress(left, "time t", "log-SNR λ")
    dress(right, "signal α", "noise σ")
    t = span(0.0, 1.0, detail.points)
    for (name, schedule), colour in zip(schedules.items(), COLOURS, strict=True):
        left.plot(t[1:-1].numpy(), schedule.log_snr(t[1:-1]).numpy(), color=colour, linewidth=1.5, label=name)
        alpha, sigma = schedule.scales(t)
        right.plot(alpha.numpy(), sigma.numpy(), color=colour, linewidth=1.5)
    left.set_ylim(-16, 16)
    left.set_xlim(0, 1)
    right.set_xlim(0, 1.06)
    right.set_ylim(0, 1.06)
    right.set_aspect("equal")
    # Times of equal log-SNR lie on one ray from the corner.
    for log_snr in (-4.0, -2.0, 0.0, 2.0, 4.0):
        slope = np.exp(-0.5 * log_snr)
        end = 1.06 / max(1.0, slope)
        right.plot([0, end], [0, slope * end], color=MUTED, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
        across, along = ("left", "center") if slope < 1 else ("center", "bottom")
        told = f"λ = {log_snr:g}".replace("-", "−")
        right.text(1.01 * end, 1.01 * slope * end, told, color=MUTED, fontsize=7.5, ha=across, va=along)
    legend_above(figure, [left, right])
    save(figure, path)


def draw_posterior(path: Path, detail: Detail) -> None:
    """Draw where the process was on its way to x_t, if it began at x0: coefficients, and a fan."""
    process, t = Gaussian(Cosine()), scalar(0.8)
    s = span(0.001, 0.799, detail.points)
    posterior = process.posterior(s, t)
    figure, ((left, right),) = panels(1, 2)
    dress(left, "time s", "coefficient", title="x_s = a x_t + b x0 + c ε")
    for values, colour, name in (
        (posterior.x_t_scale, COLOURS[0], "a, of the noisy state"),
        (posterior.x0_scale, COLOURS[1], "b, of the data"),
        (posterior.std, COLOURS[2], "c, fresh noise"),
    ):
        left.plot(s.numpy(), values.numpy(), color=colour, linewidth=1.6, label=name)
    dress(right, "time s", "x_s", title="mean, one and two deviations, x0 = 1, x_t = −0.8")
    mean = posterior.x_t_scale * -0.8 + posterior.x0_scale * 1.0
    for width, alpha in ((2.0, 0.14), (1.0, 0.2)):
        low, high = mean - width * posterior.std, mean + width * posterior.std
        right.fill_between(s.numpy(), low.numpy(), high.numpy(), color=COLOURS[0], alpha=alpha, linewidth=0)
    right.plot(s.numpy(), mean.numpy(), color=COLOURS[0], linewidth=1.6)
    right.plot([0.0, 0.8], [1.0, -0.8], "o", color=COLOURS[1], markersize=5)
    legend_above(figure, [left])
    save(figure, path)


def schedule_table() -> Lines:
    """Return what is left of the signal at the end of each schedule."""
    lines = ["| schedule | α at t = 1 | σ at t = 1 | log-SNR at t = 0.5 |", "|---|---|---|---|"]
    for name, schedule in {**SHOWN, "scaled linear betas": scaled_linear(), "cosine betas": cosine()}.items():
        alpha, sigma = (float(value) for value in schedule.scales(scalar(1.0)))
        middle = float(schedule.log_snr(scalar(0.5))) + 0.0
        lines.append(f"| {name} | {alpha:.3g} | {sigma:.6g} | {middle:.3g} |")
    return lines
