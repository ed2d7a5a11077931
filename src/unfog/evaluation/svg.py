"""What charts are drawn with: panels, and SVG that takes its colours and its font from the page around it.

Matplotlib draws with placeholder colours, which are then replaced by the page's custom properties (``var(--ink)``), so
one drawing serves light, dark and paper. Charts have one panel each and sizes of their own, and the page lays them out:
on a narrow screen they stack instead of shrinking.

Matplotlib is imported where it is used, and only its object-oriented interface: nothing global is changed.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Placeholders, and the properties of the page that stand in their place.
INK, MUTED, GRID, FIRST, SECOND, BASE, SHADE = (f"#0{i}0{i}0{i}" for i in range(1, 8))
SERIES = tuple(f"#1{i}1{i}1{i}" for i in range(8))
"""Colours of up to eight curves that are to be told apart."""
_PROPERTIES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    FIRST: "--first",
    SECOND: "--second",
    BASE: "--base",
    SHADE: "--shade",
    **{colour: f"--series-{k}" for k, colour in enumerate(SERIES)},
}

_SIZE = (5.4, 3.3)


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows.

    Attributes:
        svg: an ``<svg>`` element without identifiers that could clash with those of other charts.
        title: a few words, which screen readers read out.
    """

    svg: str
    title: str


def panel(x: str, y: str, *, log: bool = False, size: tuple[float, float] = _SIZE) -> "tuple[Figure, Axes]":
    """Return a figure and its one panel.

    Args:
        x: what is said under the horizontal axis.
        y: what is said beside the vertical axis.
        log: whether the vertical axis is logarithmic.
        size: width and height in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    axes.tick_params(which="both", color=GRID, labelcolor=MUTED, labelsize=8.5)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    return figure, axes


def plain_log_ticks(axis: "Axis") -> None:
    """Label a logarithmic axis with plain numbers, as many as fit its range."""
    from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    locator: Locator = LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 500 else (1.0,))
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 6 else locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def finish(figure: "Figure", name: str, title: str, *, columns: int | None = None) -> Chart:
    """Turn a figure into an element for a page, with a legend above it.

    Args:
        figure: from ``panel``.
        name: of the chart, unlike that of any other on its page.
        title: a few words for those who do not see it.
        columns: of the legend; all in a row unless given.
    """
    from matplotlib import rc_context

    for axes in figure.axes:
        if axes.get_yscale() == "log" and axes.axison:
            plain_log_ticks(axes.yaxis)
    labelled = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = [handle for both in labelled for handle in both[0]]
    if handles:
        figure.legend(
            handles,
            [label for both in labelled for label in both[1]],
            loc="outside upper left",
            ncols=columns or len(handles),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.6,
        )
    written = io.BytesIO()
    # The salt makes the identifiers, and with them the page, the same each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return Chart(_for_page(written.getvalue().decode(), name, title), title)


def _for_page(svg: str, name: str, title: str) -> str:
    """Make an SVG file an element: the page's colours and font, its own identifiers, and no size but its shape."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style inside would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(title)}">', svg, count=1)
    svg = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    for colour, used in _PROPERTIES.items():
        svg = svg.replace(colour, f"var({used})")
    # Matplotlib writes the font in one declaration or in several, depending on its version.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    return "".join(line.strip() + "\n" for line in _unindented(svg))


def _unindented(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())
