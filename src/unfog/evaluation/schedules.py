"""Noise schedules over each other, as a picture: alpha_bar, log-SNR and, of tables, betas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Schedule, Tabulated
from unfog.evaluation.loss import REACH
from unfog.evaluation.pictures import COLOURS, dress, legend_above, panels, save

_POINTS = 801
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Of lines beyond the first eight, whose colours repeat."""


def plot_schedules(names: Sequence[str], schedules: Sequence[Schedule], path: Path) -> None:
    """Draw schedules over each other.

    alpha_bar is the share of the signal in the variance, ``alpha^2 / (alpha^2 + sigma^2)``. The log-SNR is cut off
    beyond plus and minus 13, and betas are drawn where one of the schedules is a table.

    Args:
        names: of the schedules, all different.
        schedules: at least one.
        path: of the file, whose suffix is .png or .svg.

    Raises:
        ValueError: if there is nothing to draw, or the suffix is another one.
    """
    require(len(schedules) >= 1, "at least one schedule to draw")
    require(path.suffix in (".png", ".svg"), f"a file that ends in .png or .svg, got {path.name}")
    tables = [one for one in schedules if isinstance(one, Tabulated)]
    figure, [axes] = panels(1, 3 if tables else 2)
    signal = dress(axes[0], "time t", title="alpha_bar")
    ratio = dress(axes[1], "time t", title="log-SNR")
    beta = dress(axes[2], "level", title="beta", log_y=True) if tables else None
    t = torch.linspace(0.0, 1.0, _POINTS, dtype=torch.float64)
    end = 1.3 * REACH
    for k, (name, one) in enumerate(zip(names, schedules, strict=True)):
        colour, dash = COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % len(_DASHES)]
        look: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.6}
        log_snr = one.log_snr(t)
        signal.plot(t.tolist(), torch.sigmoid(log_snr).tolist(), label=name, **look)
        ratio.plot(t.tolist(), log_snr.clamp(-end, end).tolist(), **look)
        if beta is not None and isinstance(one, Tabulated):
            betas = one.betas()
            beta.plot(range(1, len(betas) + 1), betas.tolist(), **look)
    for drawn in axes[:2]:
        drawn.set_xlim(0, 1)
    legend_above(figure, axes)
    save(figure, path)
