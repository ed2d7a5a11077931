"""What a sweep found as one picture: accuracy and quality against cost, and what guidance trades."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unfog.diffusion.checks import require
from unfog.evaluation.pictures import (
    BASE,
    COLOURS,
    MARKS,
    MUTED,
    dress,
    legend_above,
    panels,
    plain_logarithm,
    plain_ticks,
    save,
)
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import Point
from unfog.metrics.interval import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Row(NamedTuple):
    """A row of panels: what is drawn against the cost, and the level that cannot be gone below, by guidance."""

    name: str
    read: Callable[[Point], Score | Missing]
    level_name: str
    levels: Mapping[float, Score]


class _Look(NamedTuple):
    """How the lines of a sampler are drawn."""

    colour: str
    mark: str


def draw_sweep(points: Sequence[Point], floor: Comparison | Missing, errors: Mapping[float, Score], path: Path) -> None:
    """Draw the distance to the accurate solution and the Fréchet distance against the evaluations, a line a sampler.

    Each guidance and each grid has a column. Below them stands, where several scales were tried, precision against
    recall. Rows without a single value are left out.

    Args:
        points: what was measured.
        floor: what real examples get.
        errors: how well the accurate solution is known, by guidance.
        path: of the PNG file.

    Raises:
        ValueError: if nothing was measured that could be drawn.
    """
    columns = sorted({(point.guidance, point.grid) for point in points})
    rows, looks = _rows(points, floor, errors), _looks(points)
    require(bool(rows), "a distance to draw: none of the settings has one")
    trades = _trades(points)
    figure, axes = panels(len(rows) + bool(trades), len(columns))
    for number, (row, drawn) in enumerate(zip(rows, axes, strict=False)):
        for place, (column, one) in enumerate(zip(columns, drawn, strict=True)):
            here = [point for point in points if (point.guidance, point.grid) == column]
            title = _title(column, columns) if number == 0 else ""
            dress(one, "evaluations", "" if place else row.name, title=title, log_x=True, log_y=True)
            _curves(one, here, row.read, looks)
            if column[0] in row.levels:
                level = row.levels[column[0]].value
                one.axhline(level, color=BASE, linewidth=1.0, linestyle=(0, (4, 3)), label=row.level_name)
            plain_ticks(one, _apart(sorted({point.evaluations for point in here})))
        limits = [limit for one in drawn for limit in one.get_ylim()]
        for one in drawn:
            one.set_ylim(min(limits), max(limits))
            plain_logarithm(one)
    if trades:
        _draw_trades(axes[-1][0], trades, looks)
        for one in axes[-1][1:]:
            one.set_axis_off()
    legend_above(figure, [one for row in axes for one in row])
    save(figure, path)


def _title(column: tuple[float, str], columns: Sequence[tuple[float, str]]) -> str:
    """Say what of guidance and grid tells a column from the others."""
    scales, grids = ({each[place] for each in columns} for place in (0, 1))
    told = [f"guidance {column[0]:g}"] if len(scales) > 1 else []
    return ", ".join([*told, *([column[1]] if len(grids) > 1 else [])])


def _rows(points: Sequence[Point], floor: Comparison | Missing, errors: Mapping[float, Score]) -> list[_Row]:
    real: dict[float, Score] = {}
    if isinstance(floor, Comparison) and isinstance(floor.frechet, Score):
        real = dict.fromkeys([point.guidance for point in points], floor.frechet)
    rows = [
        _Row("distance to the accurate solution", lambda point: point.distance, "accurate solution known to", errors),
        _Row("squared Fréchet distance", lambda point: point.quality.frechet, "real images", real),
    ]
    return [row for row in rows if any(isinstance(row.read(point), Score) for point in points)]


def _looks(points: Sequence[Point]) -> dict[str, _Look]:
    samplers = list(dict.fromkeys(point.sampler for point in points))
    return {name: _Look(COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]) for k, name in enumerate(samplers)}


def _curves(
    axes: "Axes", points: Sequence[Point], read: Callable[[Point], Score | Missing], looks: Mapping[str, _Look]
) -> None:
    """Draw a line a sampler, with the intervals of its points."""
    for name, look in looks.items():
        scored = [(point.evaluations, read(point)) for point in points if point.sampler == name]
        found = sorted((cost, s.value, s.low, s.high) for cost, s in scored if isinstance(s, Score))
        if not found:
            continue
        costs, values, lows, highs = (list(column) for column in zip(*found, strict=True))
        # An interval may reach zero, which a logarithmic axis does not.
        ends = [max(low, 0.5 * value) for low, value in zip(lows, values, strict=True)]
        axes.fill_between(costs, ends, highs, color=look.colour, alpha=0.09, linewidth=0)
        axes.plot(costs, values, marker=look.mark, color=look.colour, linewidth=1.6, markersize=4.5, label=name)


def _apart(values: Sequence[float]) -> list[float]:
    """Return values that can be labelled beside each other on a logarithmic axis."""
    kept = list(values[:1])
    for value in values[1:]:
        if value > 1.25 * kept[-1]:
            kept.append(value)
    return kept


class _Trade(NamedTuple):
    """Precision and recall of one sampler with one number of steps, by scale of guidance."""

    sampler: str
    steps: int
    scales: tuple[float, ...]
    recall: tuple[float, ...]
    precision: tuple[float, ...]


def _trades(points: Sequence[Point]) -> list[_Trade]:
    """Return for each sampler on each grid the number of steps with the most scales, of several the most steps."""
    made: list[_Trade] = []
    for line in dict.fromkeys((point.sampler, point.grid) for point in points):
        found: dict[int, list[tuple[float, float, float]]] = {}
        for point in points:
            recall, precision = point.quality.recall, point.quality.precision
            if (point.sampler, point.grid) == line and isinstance(recall, Score) and isinstance(precision, Score):
                found.setdefault(point.steps, []).append((point.guidance, recall.value, precision.value))
        steps = max(found, key=lambda count: (len(found[count]), count), default=0)
        if len(found.get(steps, ())) > 1:
            scales, recalls, precisions = zip(*sorted(found[steps]), strict=True)
            made.append(_Trade(line[0], steps, scales, recalls, precisions))
    return made


def _draw_trades(axes: "Axes", trades: Sequence[_Trade], looks: Mapping[str, _Look]) -> None:
    """Draw precision against recall, the scales of guidance joined."""
    steps = ", ".join(f"{count}" for count in sorted({trade.steps for trade in trades}))
    dress(axes, "recall (variety)", "precision (fidelity)", title=f"{steps} steps, by scale of guidance")
    for trade in trades:
        look = looks[trade.sampler]
        axes.plot(trade.recall, trade.precision, marker=look.mark, color=look.colour, linewidth=1.4, markersize=4.5)
        for scale, x, y in zip(trade.scales, trade.recall, trade.precision, strict=True):
            axes.annotate(f"{scale:g}", (x, y), (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
    axes.margins(0.1)
