"""Charts of a report; how they are drawn and get their colours is in ``svg``."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unfog.diffusion.schedule import Schedule
from unfog.diffusion.times import Times
from unfog.evaluation.loss import REACH, LossCurve, Means
from unfog.evaluation.svg import BASE, FIRST, GRID, SECOND, SHADE, Chart, finish, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
"""A line of the log."""

_MOST_POINTS = 700
_SMOOTHED_POINTS = 240


def loss_chart(records: Sequence[Record]) -> Chart | None:
    """Draw the training loss over the steps, raw and smoothed; None if fewer than two steps were logged."""
    steps, losses = _finite(records, "loss")
    if len(steps) < 2:
        return None
    figure, axes = panel("step", "loss", log=min(losses) > 0)
    _raw_and_smoothed(axes, steps, losses, FIRST, "a batch")
    _bound(axes, losses)
    unapplied = [r["step"] for r in records if r.get("applied") is False]
    if unapplied:
        place = axes.get_xaxis_transform()
        axes.plot(unapplied, [0.02] * len(unapplied), "|", color=SECOND, transform=place, label="not applied")
    return finish(figure, "loss", "Training loss over the steps")


def gradient_chart(records: Sequence[Record]) -> Chart | None:
    """Draw the norm of the gradient over the steps; None if fewer than two were logged."""
    steps, norms = _finite(records, "grad_norm")
    if len(steps) < 2:
        return None
    figure, axes = panel("step", "norm of the gradient", log=min(norms) > 0)
    _raw_and_smoothed(axes, steps, norms, BASE, "a batch")
    _bound(axes, norms)
    return finish(figure, "gradient", "Norm of the gradient over the steps")


def speed_chart(records: Sequence[Record]) -> Chart | None:
    """Draw the examples a second over the steps; None if fewer than two steps were logged."""
    timed = [r for r in records if r.get("seconds") and r.get("examples") and r.get("step")]
    if len(timed) < 2:
        return None
    steps = [float(r["step"]) for r in timed]
    speed = [r["examples"] / r["step"] / r["seconds"] for r in timed]
    figure, axes = panel("step", "examples a second")
    _raw_and_smoothed(axes, steps, speed, FIRST, "a step")
    axes.set_ylim(bottom=0)
    return finish(figure, "speed", "Examples a second over the steps")


def rate_chart(records: Sequence[Record]) -> Chart | None:
    """Draw the learning rate over the steps; None if fewer than two steps were logged."""
    steps, rates = _finite(records, "lr")
    if len(steps) < 2:
        return None
    every = math.ceil(len(steps) / _MOST_POINTS)
    figure, axes = panel("step", "learning rate")
    axes.plot(steps[::every], rates[::every], color=BASE, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
    return finish(figure, "rate", "Learning rate over the steps")


def level_chart(train: LossCurve, test: LossCurve, times: Times, schedule: Schedule) -> Chart:
    """Draw the error of the prediction by noise level, with the baseline and the density of training behind."""
    figure, axes = panel(
        "log-SNR    (data on the left, noise on the right)", "squared error of the prediction", log=True
    )
    _density(axes, times, schedule, (train.log_snr[-1], train.log_snr[0]))
    axes.plot(test.log_snr, test.zero.values, color=BASE, linewidth=1.2, linestyle=(0, (4, 3)), label="predict 0")
    _band(axes, train.log_snr, train.prediction, FIRST, "training")
    _band(axes, test.log_snr, test.prediction, SECOND, "held out")
    axes.set_xlim(max(test.log_snr), min(test.log_snr))
    return finish(figure, "levels", "Error of the prediction by noise level")


def x0_chart(train: LossCurve, test: LossCurve) -> Chart:
    """Draw the error of the estimate of x0 by noise level, in grey levels."""
    figure, axes = panel("log-SNR    (data on the left, noise on the right)", "error of x0, in grey levels of 255")
    for curve, colour, label in ((train, FIRST, "training"), (test, SECOND, "held out")):
        axes.plot(curve.log_snr, grey_levels(curve.x0.values), color=colour, linewidth=1.6, label=label)
    axes.set_xlim(max(test.log_snr), min(test.log_snr))
    axes.set_ylim(bottom=0)
    return finish(figure, "x0", "Error of the estimate of x0 by noise level")


def grey_levels(squared: Sequence[float]) -> list[float]:
    """Return the root of mean squared errors of data in [-1, 1], in grey levels of 0 to 255."""
    return [127.5 * math.sqrt(value) for value in squared]


def scales_chart(schedule: Schedule, evaluated: Sequence[float]) -> Chart:
    """Draw the scales of signal and noise over time, with the sampler's evaluations marked."""
    marks = torch.tensor(evaluated, dtype=torch.float64)
    large = _is_large(schedule)
    figure, axes = panel("time t", "scale", log=large)
    t = _drawn_times(axes, marks, large)
    for function, colour, label in (
        (schedule.alpha, FIRST, "signal, alpha"),
        (schedule.sigma, SECOND, "noise, sigma"),
    ):
        axes.plot(t.numpy(), function(t).numpy(), color=colour, linewidth=1.6, label=label)
        axes.plot(
            marks.numpy(), function(marks).numpy(), "o", color=colour, markersize=3.2, markeredgewidth=0, clip_on=False
        )
    return finish(figure, "scales", "Scales of signal and noise over time")


def log_snr_chart(schedule: Schedule, evaluated: Sequence[float]) -> Chart:
    """Draw the log-SNR over time, with the sampler's evaluations marked."""
    marks = torch.tensor(evaluated, dtype=torch.float64)
    figure, axes = panel("time t", "log-SNR")
    axes.axhline(0, color=GRID, linewidth=0.8)
    t = _drawn_times(axes, marks, _is_large(schedule))
    end = 1.3 * REACH
    curve, points = (schedule.log_snr(times).clamp(-end, end).numpy() for times in (t, marks))
    axes.plot(t.numpy(), curve, color=FIRST, linewidth=1.6)
    label = "evaluations of the network"
    axes.plot(marks.numpy(), points, "o", color=SECOND, markersize=3.6, markeredgewidth=0, label=label, clip_on=False)
    return finish(figure, "log-snr", "Log-SNR over time")


def _is_large(schedule: Schedule) -> bool:
    """Tell whether the noise outgrows the signal so far that only logarithmic axes show both."""
    return float(schedule.sigma(torch.ones((), dtype=torch.float64))) > 4


def _drawn_times(axes: "Axes", marks: Tensor, large: bool) -> Tensor:
    """Return the times to draw a curve at, and set up their axis."""
    if not large:
        axes.set_xlim(0, 1)
        return torch.linspace(0, 1, 401, dtype=torch.float64)
    from matplotlib.ticker import FuncFormatter

    first = min(float(marks.min()), 0.1) / 1.5
    axes.set_xscale("log")
    axes.set_xlim(first, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return torch.logspace(math.log10(first), 0, 401, dtype=torch.float64)


def smoothed(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return a running mean over a thirtieth of the points around each, at a few hundred steps.

    At the beginning, where values fall steeply, a window is cut short on both sides alike, so that it stays centred; at
    the end on its right alone, so that a single value does not draw the eye.
    """
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), torch.tensor(values, dtype=torch.float64).cumsum(0)])
    count = len(values)
    widest = max(1, count // 60)
    chosen = sorted({round(i * (count - 1) / (_SMOOTHED_POINTS - 1)) for i in range(_SMOOTHED_POINTS)})
    means = []
    for i in chosen:
        start, stop = i - min(widest, i), min(i + min(widest, i) + 1, count)
        means.append(float(sums[stop] - sums[start]) / (stop - start))
    return [steps[i] for i in chosen], means


def _finite(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values where there is a value; what was not finite is null in the log."""
    pairs = [(float(r["step"]), float(r[name])) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _raw_and_smoothed(axes: "Axes", steps: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    every = math.ceil(len(steps) / _MOST_POINTS)
    place, raw = steps[::every], values[::every]
    axes.plot(place, raw, "o", color=colour, alpha=0.4, markersize=3.2, markeredgewidth=0, label=label)
    axes.plot(*smoothed(steps, values), color=colour, linewidth=1.6, label="smoothed")


def _bound(axes: "Axes", values: Sequence[float]) -> None:
    """Keep a few outliers from flattening the rest: the axis spans 99.5 % of the values."""
    low, high = torch.quantile(
        torch.tensor(values, dtype=torch.float64), torch.tensor([0.0, 0.995], dtype=torch.float64)
    ).tolist()
    if low < high:
        axes.set_ylim(*((low / 1.15, high * 1.15) if low > 0 else (low, high)))


def _band(axes: "Axes", x: Sequence[float], means: Means, colour: str, label: str) -> None:
    """Draw means with their 95 % intervals."""
    low = [max(value - 1.96 * error, value / 10) for value, error in zip(means.values, means.errors, strict=True)]
    high = [value + 1.96 * error for value, error in zip(means.values, means.errors, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, means.values, color=colour, linewidth=1.6, label=label)


def _density(axes: "Axes", times: Times, schedule: Schedule, limits: tuple[float, float]) -> None:
    """Shade how often training draws each log-SNR, to no scale."""
    u = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    drawn = schedule.log_snr(times.quantile(u, schedule).clamp(1e-12, 1.0))
    counts, edges = torch.histogram(drawn, bins=40, range=limits)
    behind = axes.twinx()
    behind.stairs(counts.numpy(), edges.numpy(), fill=True, color=SHADE, linewidth=0)
    behind.set_ylim(0, max(float(counts.max()), 1.0) * 2.2)
    behind.set_axis_off()
    behind.set_zorder(-1)
