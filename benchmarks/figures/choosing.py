"""Renders the measured part of docs/choosing-a-sampler.md from what ``unfog sweep`` wrote."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures.detail import Lines
from benchmarks.pages import insert
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import RULE, Point, recommended, undominated
from unfog.evaluation.sweep_chart import draw_sweep
from unfog.metrics.interval import Score

PAGE = "choosing-a-sampler.md"
RECORDS = Path(__file__).parents[1] / "records" / "sweep"
"""Folders with a ``sweep.json`` each."""


class Sweep(NamedTuple):
    """A part of a ``sweep.json``: settings that were measured alike.

    Attributes:
        name: of the run.
        about: counts, weights and machine.
        points: what was found.
        floor: what real examples get.
        errors: how well the accurate solution is known, by guidance.
    """

    name: str
    about: Mapping[str, Any]
    points: tuple[Point, ...]
    floor: Comparison | Missing
    errors: Mapping[float, Score]

    @property
    def scored(self) -> bool:
        """Whether the samples were compared with real examples."""
        return bool(self.about["amount"]["samples"])


def read(records: Path) -> list[Sweep]:
    """Return everything that was swept, distances before metrics.

    Raises:
        ValueError: if there is nothing.
    """
    found = [sweep for path in sorted(records.glob("*/sweep.json")) for sweep in _parts(path)]
    if not found:
        raise ValueError(f"expected a sweep.json in a folder of {records}; the page says which commands write them")
    return sorted(found, key=lambda sweep: (sweep.scored, sweep.name != "mnist-small", sweep.name))


def _parts(path: Path) -> Iterator[Sweep]:
    for part in json.loads(path.read_text(encoding="utf-8"))["sweeps"].values():
        points = tuple(Point.from_dict(entry["found"]) for entry in part["settings"])
        stored = part["floor"]
        formed = stored and "reason" not in stored
        floor = Comparison.from_dict(stored) if formed else Missing("no samples were asked for")
        errors = {float(scale): Score(**known["error"]) for scale, known in part["accurate"].items()}
        if points:
            yield Sweep(part["origin"]["run"], part, points, floor, errors)


def render(docs: Path, command: str, records: Path = RECORDS) -> None:
    """Draw the plots and write the tables of the page.

    Args:
        docs: the folder of the documentation.
        command: that renders, as the marker of the page names it.
        records: where the sweeps lie.
    """
    lines: Lines = []
    for sweep in read(records):
        picture = f"sweep-{sweep.name}-{'metrics' if sweep.scored else 'distance'}.png"
        draw_sweep(sweep.points, sweep.floor, sweep.errors, docs / "images" / picture)
        lines += [*section(sweep, picture), ""]
    insert(docs / PAGE, lines, command)


def section(sweep: Sweep, picture: str) -> Lines:
    """Return what the page says of one sweep."""
    amount, origin = sweep.about["amount"], sweep.about["origin"]
    made = sweep.about["machine"]
    source = f"Step {origin['step']} of `{sweep.name}`, weights `{origin['weights']}`, seed {amount['seed']}"
    when = f"{made['processor']}, {made['date']}."
    if sweep.scored:
        title = f"### {sweep.name}: quality of {amount['samples']} samples"
        told = f"{source}, features `{sweep.about['features']}`; {when}"
        table = quality_table(sweep)
    else:
        title = f"### {sweep.name}: distance to the accurate solution"
        known = ", ".join(f"{score.value:.2g}" for _, score in sorted(sweep.errors.items()))
        steps = sweep.about["accurate_by"]["steps"]
        told = (
            f"{source}, {amount['noises']} noises; root mean square over pixels, black to white being 2, mean over the "
            f"noises with its 95 % interval. The accurate solution is `dpmpp` on `trailing` with {steps} steps; with "
            f"{steps // 2} it ends {known} away. {when}"
        )
        table = distance_table(sweep)
    return [title, "", f"![{title.removeprefix('### ')}](images/{picture})", "", *table, "", told]


def distance_table(sweep: Sweep) -> Lines:
    """Return distances, a row a sampler and a column a number of steps; evaluations in brackets where they differ."""
    steps = sorted({point.steps for point in sweep.points})
    lines = [
        f"| sampler | grid | {' | '.join(f'{count} steps' for count in steps)} |",
        f"|---|---|{'---|' * len(steps)}",
    ]
    best = {count: _nearest(sweep.points, count) for count in steps}
    for line in dict.fromkeys((point.sampler, point.grid, point.guidance) for point in sweep.points):
        found = {point.steps: point for point in sweep.points if (point.sampler, point.grid, point.guidance) == line}
        cells = (_distance(found[count], best[count]) if count in found else "" for count in steps)
        lines.append(f"| `{line[0]}` | `{line[1]}` | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Evaluations in brackets where they are not the steps; bold: the nearest of those that make no more.",
    ]


def _nearest(points: Sequence[Point], evaluations: int) -> float:
    """Return the least distance among the settings that make at most so many evaluations."""
    scores = [point.distance for point in points if point.evaluations <= evaluations]
    return min((score.value for score in scores if isinstance(score, Score)), default=0.0)


def _distance(point: Point, best: float) -> str:
    if isinstance(point.distance, Missing):
        return "–"
    score = point.distance
    told = f"{score.value:.3f} ± {(score.high - score.low) / 2:.3f}"
    if point.evaluations == point.steps and score.value <= best:
        told = f"**{told}**"
    return told if point.evaluations == point.steps else f"{told} ({point.evaluations})"


def quality_table(sweep: Sweep) -> Lines:
    """Return the metrics, a row a setting, and what the rule recommends."""
    best = set(map(id, undominated(sweep.points)))
    lines = [
        "| sampler | steps | guidance | evaluations | Fréchet distance | precision | recall | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = sorted(sweep.points, key=lambda point: (point.guidance, point.sampler, point.steps))
    lines += [
        f"| `{point.sampler}` | {point.steps} | {point.guidance:g} | {point.evaluations} | {_metrics(point.quality)} | "
        f"{'*' if id(point) in best else ''} |"
        for point in points
    ]
    if isinstance(sweep.floor, Comparison):
        lines.append(f"| real images | | | | {_metrics(sweep.floor)} | |")
    chosen = recommended(sweep.points)
    if isinstance(chosen, Missing):
        return lines
    return [
        *lines,
        "",
        f"*: nothing that costs as much or less has a smaller Fréchet distance. Recommended: `{chosen.sampler}`, "
        f"{chosen.steps} steps, guidance {chosen.guidance:g}, {chosen.evaluations} evaluations: {RULE}.",
    ]


def _metrics(quality: Comparison) -> str:
    frechet, precision, recall = quality.frechet, quality.precision, quality.recall
    told = [f"{frechet.value:.3f} [{frechet.low:.3f}, {frechet.high:.3f}]" if isinstance(frechet, Score) else "–"]
    told += [f"{score.value:.3f}" if isinstance(score, Score) else "–" for score in (precision, recall)]
    return " | ".join(told)
