"""What races between families came to: a table and curves, from their records.

One seed is told with the interval over examples, several by mean and standard deviation over seeds: that of quality is
part of how stable a family is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from unfog.diffusion.checks import require
from unfog.evaluation.pictures import COLOURS, MARKS, dress, legend_above, panels, save

Record = Mapping[str, Any]

COLUMNS = (
    "family",
    "seeds",
    "parameters",
    "steps",
    "Fréchet distance",
    "precision",
    "recall",
    "coverage",
    "spread",
    "accuracy score",
    "bits per dimension",
    "ms an image",
    "evaluations",
    "explosions",
    "diverged",
)
"""Of the table; ``rows`` has a cell for each."""

ABSENT = "–"


def by_family(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each family, families in the order in which they first appear."""
    families = dict.fromkeys(str(record["family"]) for record in records)
    return {family: [record for record in records if record["family"] == family] for family in families}


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return a row of cells for each family, and one of real images at the end.

    Raises:
        ValueError: if the records are of different data, time, batch, counts or features.
    """
    require_alike(records)
    made = [_row(family, runs) for family, runs in by_family(records).items()]
    # Once a seed: what is drawn of the data depends on it, and not on the family.
    scores = {record["seed"]: record["scores"] for record in records if record["scores"]}.values()
    floors = [score["floor"] for score in scores]
    if floors:
        cells = dict.fromkeys(COLUMNS, "") | {"family": "real images"}
        names = {"Fréchet distance": "frechet", "precision": "precision", "recall": "recall", "coverage": "coverage"}
        cells |= {column: pooled([floor[name] for floor in floors]) for column, name in names.items()}
        yardsticks = [score["accuracy"].get("yardstick") for score in scores]
        cells["accuracy score"] = pooled([yardstick for yardstick in yardsticks if yardstick])
        made.append(tuple(cells[column] for column in COLUMNS))
    return made


def _row(family: str, runs: Sequence[Record]) -> tuple[str, ...]:
    done = [run for run in runs if run["scores"]]
    quality = {
        name: pooled([run["scores"]["samples"][name] for run in done])
        for name in ("frechet", "precision", "recall", "coverage")
    }
    diverged = sum(run["stability"]["diverged"] is not None for run in runs)
    explosions = [float(sum(run["stability"]["explosions"].values())) for run in runs]
    cells = {
        "family": family,
        "seeds": ", ".join(str(run["seed"]) for run in runs),
        "parameters": f"{runs[0]['parameters']:,} ({runs[0]['drawing_parameters']:,} draw)",
        "steps": numbers([float(run["steps"]) for run in runs], "{:.0f}"),
        "Fréchet distance": quality["frechet"],
        "precision": quality["precision"],
        "recall": quality["recall"],
        "coverage": quality["coverage"],
        "spread": pooled([run["spread"] for run in done]),
        "accuracy score": pooled([run["accuracy"] for run in done]),
        "bits per dimension": pooled([run["bits"].get("score", run["bits"]) for run in done]),
        "ms an image": numbers([1e3 * run["speed"]["seconds_per_image"] for run in done], "{:.3g}"),
        "evaluations": str(done[0]["speed"]["evaluations"]) if done else ABSENT,
        "explosions": numbers(explosions, "{:.3g}"),
        "diverged": f"{diverged} of {len(runs)}",
    }
    return tuple(cells[column] for column in COLUMNS)


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield sentences that say what is equal, what the columns mean, and what each model is."""
    first = records[0]
    sizes = [record["parameters"] for record in records]
    counts = next((record["scores"]["count"] for record in records if record["scores"]), None)
    yield (
        f"Equal for all: {first['budget_seconds']:g} s of training on {first['data']['name']} "
        f"({first['data']['count']} examples), batches of {first['batch_size']}, trained parameters within "
        f"{100 * (max(sizes) / min(sizes) - 1):.1f} %."
    )
    yield (
        "Fréchet distance (squared), precision, recall and coverage in features of a network of our own (not FID)"
        + ("" if counts is None else f", {counts} samples against as many test examples")
        + "; smaller is better for the first, larger for the others. Spread: mean distance within a class over that of "
        "test examples; 1 is as diverse as the data, 0 one picture a class. Accuracy score: of a classifier trained on "
        f"{first['samples']} samples alone, on test examples. Explosions: how often a gradient was ten times the "
        "median of the hundred steps before. One seed: 95 % interval over examples; several: mean ± standard deviation."
    )
    for family, runs in by_family(records).items():
        done = next((run for run in runs if run["scores"]), None)
        told = [f"{topic}: {value}" for topic, value in runs[0]["settings"].items()]
        if done is not None:
            speed, bits = done["speed"], done["bits"]
            told.append(f"samples: {speed['settings']}, {speed['batch_size']} at a time")
            told.append(f"bits: {bits['kind']}" if "kind" in bits else f"no bits: {bits['reason']}")
        yield f"{family}: {'; '.join(told)}."
        for run in runs:
            if run["stability"]["diverged"]:
                yield f"{family}, seed {run['seed']}: {run['stability']['diverged']}"


def require_alike(records: Sequence[Record]) -> None:
    """Refuse to put records into one table that were not made alike.

    Raises:
        ValueError: names what differs.
    """
    require(len(records) > 0, "at least one record to make a table of, got none")
    keys: dict[str, Callable[[Record], Any]] = {
        "data": lambda record: record["data"]["fingerprint"],
        "time": lambda record: record["budget_seconds"],
        "batch": lambda record: record["batch_size"],
        "samples": lambda record: record["samples"],
        "features": lambda record: record["scores"] and record["scores"]["features"]["name"],
    }
    for name, key in keys.items():
        found = {str(value) for record in records if (value := key(record)) is not None}
        require(
            len(found) <= 1,
            f"records of the same {name}, got {', '.join(sorted(found))}; remove those that are out of date",
        )


def pooled(scores: Sequence[Record]) -> str:
    """Write one seed's score with its interval, and those of several as mean and standard deviation."""
    formed = [score for score in scores if "value" in score]
    if len(formed) == 1:
        return f"{formed[0]['value']:.3f} [{formed[0]['low']:.3f}, {formed[0]['high']:.3f}]"
    return numbers([score["value"] for score in formed], "{:.3f}")


def numbers(values: Sequence[float], form: str) -> str:
    """Write a value, or the mean and standard deviation of several."""
    if len(values) > 1:
        return f"{form.format(fmean(values))} ± {form.format(stdev(values))}"
    return form.format(values[0]) if values else ABSENT


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw quality and coverage against training time, one line a run and one colour a family.

    Raises:
        ValueError: as ``rows``.
    """
    require_alike(records)
    figure, [axes] = panels(1, 3)
    wanted = (("frechet", "Fréchet distance (own features)"), ("precision", "precision"), ("recall", "recall"))
    for one, (name, title) in zip(axes, wanted, strict=True):
        dress(one, "seconds of training", title, log_x=True, log_y=name == "frechet")
        for (family, runs), colour, mark in zip(by_family(records).items(), COLOURS, MARKS, strict=False):
            for number, run in enumerate(runs):
                points = [point for point in run["curve"] if "value" in point[name]]
                seconds, values = [point["seconds"] for point in points], [point[name]["value"] for point in points]
                label = family if number == 0 else None
                one.plot(seconds, values, color=colour, marker=mark, markersize=4, alpha=0.8, label=label)
        # The times at which there is something to read, and no powers of ten between them.
        times = sorted({float(f"{point['seconds']:.2g}") for run in records for point in run["curve"]})
        one.set_xticks(times, [f"{time:g}" for time in times])
        one.minorticks_off()
    legend_above(figure, axes)
    save(figure, path)
