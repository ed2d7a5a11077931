"""The pictures of the campaign: loss against time, and samples side by side."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from PIL import Image

from benchmarks.campaign.jobs import System
from benchmarks.campaign.show_equal import NAMES, Campaign, Outcome

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {System.UNFOG: "#0072B2", System.DIFFUSERS: "#D55E00", System.DDPM_PYTORCH: "#009E73"}
DPI = 160
MAGNIFIED = 2
"""Pixels of the page for each pixel of a sample."""
GAP, HEAD = 48, 90


def draw_losses(campaign: Campaign, path: Path) -> None:
    """Draw the training loss of each system against the wall time, one panel a system and one line a seed."""
    systems = [system for system in System if campaign.by(system)]
    figure = Figure(figsize=(3.6 * len(systems), 3.7), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(systems), sharex=True, squeeze=False)[0]
    for system, axes in zip(systems, panels, strict=True):
        outcomes = campaign.by(system)
        for one in outcomes:
            points = one.training["loss_curve"]["points"]
            seconds, losses = [point[0] for point in points], [point[2] for point in points]
            axes.plot(seconds, losses, color=COLOURS[system], alpha=0.75, linewidth=1.1)
        _dress(axes, system, outcomes)
    panels[0].set_ylabel("training loss, each system's own")
    _save(figure, path)


def draw_samples(outcomes: Sequence[Outcome], records: Path, path: Path) -> None:
    """Put the samples of several systems side by side at equal scale.

    Args:
        outcomes: scored, of one seed; the sampler that counts is shown.
        records: folder of the records, where the pictures of the scores lie.
        path: the picture to be written.

    Raises:
        ValueError: if the picture of a score is missing.
    """
    sheets = [_sheet(one, records) for one in outcomes]
    width = sum(sheet.shape[1] for sheet in sheets) + GAP * (len(sheets) + 1)
    height = max(sheet.shape[0] for sheet in sheets) + HEAD + GAP // 2
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = GAP
    for one, sheet in zip(outcomes, sheets, strict=True):
        # figimage draws pixel on pixel, whereas axes would resample.
        figure.figimage(sheet, left, GAP // 2, cmap="gray", vmin=0, vmax=255)
        middle = (left + sheet.shape[1] / 2) / width
        figure.text(middle, 1 - 34 / height, NAMES[one.system], ha="center", fontsize=13, color=COLOURS[one.system])
        figure.text(
            middle,
            1 - 70 / height,
            f"Fréchet distance {one.distance.value:.3f} · {one.best['evaluations']} evaluations a sample",
            ha="center",
            fontsize=9,
        )
        left += sheet.shape[1] + GAP
    _save(figure, path)


def _sheet(one: Outcome, records: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """Return the magnified sheet of samples that was kept beside a score's record, in grey."""
    assert one.scored is not None
    picture = records / f"{one.scored['id']}-{one.scored['measured']['counts']}.png"
    if not picture.is_file():
        raise ValueError(f"expected {picture} beside its record; remove the record to make both anew")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    return pixels.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1)


def _dress(axes: Axes, system: System, outcomes: Sequence[Outcome]) -> None:
    loss = textwrap.fill(outcomes[0].training["settings"]["loss"], 38)
    axes.set_title(NAMES[system], fontsize=12, color=COLOURS[system], pad=32)
    axes.text(0.5, 1.02, loss, transform=axes.transAxes, ha="center", va="bottom", fontsize=7.5, color="#444444")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds of training")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#dddddd", linewidth=0.6)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No version of matplotlib in the file, so that it changes only with what it shows.
    figure.savefig(path, metadata={"Software": None})
