"""Pictures that stand alone, in the style of the report's charts (``drawing``) and with the colours of its light page.

Matplotlib is imported where it is used, and only its object-oriented interface: nothing global is changed.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, BASE, SHADE = "#1c1f26", "#5f6571", "#dcdcd8", "#7b7f89", "#e9e9e5"
COLOURS = ("#2f6db5", "#c8641b", "#2f8f6b", "#8d4fa8", "#b9345a", "#8c7a12", "#1f97a6", "#5b4a3f")
"""Of lines, in their order; the first two are the report's."""
MARKS = ("o", "s", "D", "^", "v", "P", "X", "h")
"""Of points, in the order of the colours, so that lines are told apart without colour too."""
PANEL = (4.3, 3.1)
"""Width and height of a panel in inches."""
_DPI = 160


def panels(rows: int, columns: int, *, panel: tuple[float, float] = PANEL) -> "tuple[Figure, list[list[Axes]]]":
    """Return an empty figure and its panels, row by row.

    Args:
        rows: of panels.
        columns: of panels.
        panel: width and height of one, in inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (panel[0] * columns, panel[1] * rows)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches, so that nothing touches the edge
    figure = Figure(figsize=size, dpi=_DPI, layout=layout, facecolor="white")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def dress(
    axes: "Axes", x: str = "", y: str = "", *, title: str = "", log_x: bool = False, log_y: bool = False
) -> "Axes":
    """Give a panel its labels and the common look: horizontal rules, a base line, no frame."""
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    axes.tick_params(which="both", color=LINE, labelcolor=MUTED, labelsize=8.5)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    return axes


def blank(axes: "Axes", low: float, high: float, *, title: str = "") -> "Axes":
    """Make a panel a square map from ``low`` to ``high`` both ways, without ticks and rules."""
    dress(axes, title=title)
    axes.set_aspect("equal")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    return axes


def plain_ticks(axes: "Axes", values: Sequence[float]) -> None:
    """Label a logarithmic horizontal axis at some values alone, written as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plain_logarithm(axes: "Axes") -> None:
    """Label a logarithmic vertical axis with plain numbers, as many as fit its range, which is set already."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    few = MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 6 else None
    axes.yaxis.set_major_locator(few or LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 500 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend_above(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Put one legend above all panels, each name once, in as many columns as fit."""
    named = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    if named:
        # About 13 characters go into an inch, and a line and the space between columns take six.
        columns = int(13 * figure.get_figwidth() / (6 + max(map(len, named))))
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside upper left",
            ncols=min(max(columns, 1), len(named)),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.6,
        )


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, or SVG if its path ends so, with nothing in the file that changes from time to time."""
    from matplotlib import rc_context

    written = io.BytesIO()
    if path.suffix == ".svg":
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(written, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, written.getvalue())
