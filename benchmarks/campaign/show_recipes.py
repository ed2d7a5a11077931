"""What the records of the recipes say, as Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.campaign.jobs import RECIPES, SEEDS, Job, Trained
from unfog.evaluation.adherence import Adherence
from unfog.evaluation.card import IncomparableError, require_alike
from unfog.evaluation.tables import adherence

ROWS = (
    ("Fréchet distance, own features (not FID)", "frechet"),
    ("the same at infinite counts", "limit"),
    ("kernel distance", "kernel"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
)
Score = Mapping[str, Any]


@dataclass(frozen=True)
class Trainings:
    """The finished runs of one recipe, by ascending seed.

    Attributes:
        recipe: its name.
        records: at least one.
    """

    recipe: str
    records: tuple[Mapping[str, Any], ...]

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """What each run recorded of itself."""
        return [record["measured"] for record in self.records]

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The evaluation of each run."""
        return [measured["evaluation"] for measured in self.measured]

    @property
    def minutes(self) -> str:
        """Wall time of training times its threads, one on each core."""
        return core_minutes(self.records)


def of_seeds(records: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job]) -> list[Mapping[str, Any]]:
    """Return the records of those jobs that have one, in the order of the jobs."""
    return [records[job.id] for job in jobs if job.id in records]


def core_minutes(records: Sequence[Mapping[str, Any]]) -> str:
    """Return how long runs were trained, a minute of each thread counting."""
    minutes = [int(record["machine"]["threads"]) * record["measured"]["training_seconds"] / 60 for record in records]
    return spread(minutes, "{:.1f}") + " core-min"


def commands_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the commands that runs were trained by, a line each, with their folders as from the project's own."""
    return "\n".join(re.sub(r"(--out )\S*/(?=runs/)", r"\1", record["measured"]["run_command"]) for record in records)


def trainings(records: Mapping[str, Mapping[str, Any]]) -> list[Trainings]:
    """Gather the records of each recipe.

    Raises:
        ValueError: if two seeds of a recipe were not trained and measured alike.
    """
    found = []
    for recipe in RECIPES:
        done = of_seeds(records, [Trained(recipe, seed) for seed in SEEDS])
        if done:
            found.append(Trainings(recipe, tuple(done)))
            _require_alike(found[-1])
    return found


def overview(found: Sequence[Trainings]) -> list[str]:
    """Return one row a recipe, and what the columns mean."""
    if not found:
        return []
    lines = [
        "| recipe | seeds | training | CAS from samples | CAS from as many real images | "
        "held-out loss (predicting 0) |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        first = one.evaluations[0]
        accuracy = [evaluation["scores"]["accuracy"] for evaluation in one.evaluations]
        cas = pooled([a["score"] for a in accuracy], share) + ", " if _known(accuracy) else ""
        network, zero = ([e["loss_test"][name]["value"] for e in one.evaluations] for name in ("network", "zero"))
        lines.append(
            f"| `{one.recipe}` | {len(one.records)} of {len(SEEDS)} | {one.minutes} | {cas}"
            f"{first['samples']} samples at {first['evaluations']} evaluations | {_yardstick(accuracy)} | "
            f"{spread(network, '{:.4f}')} ({spread(zero, '{:.4f}')}) |"
        )
    return [
        *lines,
        "",
        "Training: wall time times threads. CAS: accuracy on held-out real images of a classifier trained on samples "
        "alone, for models that know classes. One seed: its value with the "
        "95 % interval over examples; several: mean ± standard deviation over seeds. "
        f"Measured {_dates(found)} on {_machines(found)}.",
    ]


def details(one: Trainings) -> list[str]:
    """Return the section of one recipe."""
    first, measured = one.evaluations[0], one.measured[0]
    features, seconds = first["scores"]["features"]["name"], [e["sampling_seconds"] for e in one.evaluations]
    commands = commands_of(one.records)
    lines = [
        f"### {one.recipe}",
        "",
        f"```sh\n{commands}\n```",
        "",
        f"{measured['steps']} steps of {measured['batch_size']} examples of {measured['data']['name']} "
        f"({measured['data']['count']}) in {one.minutes}; {first['samples']} samples, {first['settings']}, seed "
        f"{', '.join(str(evaluation['seed']) for evaluation in one.evaluations)}, drawn in {spread(seconds, '{:.0f}')} "
        f"s. {_machines([one])}, {_dates([one])}. Features: `{features}`.",
        "",
        "| score | samples | real images | examples each |",
        "|---|---|---|---|",
    ]
    for name, key in ROWS:
        samples, floor = ([e["scores"][of].get(key) for e in one.evaluations] for of in ("samples", "floor"))
        if not all(samples):
            continue  # measured before there was this score, or without what it needs
        real = pooled(floor, number) if all(floor) else ""
        lines.append(f"| {name} | {pooled(samples, number)} | {real} | {first['scores']['count']} |")
    accuracy = [e["scores"]["accuracy"] for e in one.evaluations]
    if _known(accuracy):
        lines.append(
            f"| classification accuracy score | {pooled([a['score'] for a in accuracy], share)} | "
            f"{_yardstick(accuracy)} | {first['samples']} |"
        )
    for name, data, key in (
        ("loss, held out", "loss_test", "network"),
        ("loss, training examples", "loss_train", "network"),
        ("loss of predicting 0, held out", "loss_test", "zero"),
    ):
        losses = [e[data][key] for e in one.evaluations]
        lines.append(f"| {name} | {pooled(losses, number)} | | {losses[0]['count']} |")
    return [*lines, "", *_adherence([e["adherence"] for e in one.evaluations if e.get("adherence")])]


def _adherence(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of what samples show of what was asked for, of runs that are told attributes."""
    if not found:
        return []
    lines = ["| asked for | shown | by chance | examples each |", "|---|---|---|---|"]
    for rows in zip(*(adherence(Adherence.from_dict(one)) for one in found), strict=True):
        shown = pooled([asdict(row.score) for row in rows], share)
        chance = [asdict(row.chance) for row in rows if row.chance is not None]
        by_chance = pooled(chance, share) if chance else ""
        lines.append(f"| {rows[0].name} | {shown} | {by_chance} | {rows[0].score.count} |")
    errors = [
        f"{name}: {pooled([one['reading_error'][name] for one in found], share)}" for name in found[0]["reading_error"]
    ]
    return [
        *lines,
        "",
        f"Attributes are read from the pictures. Share of real examples that are read wrongly: {'; '.join(errors)}.",
        "",
    ]


def share(score: Score) -> str:
    """Write a proportion in percent with its interval."""
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def number(score: Score) -> str:
    """Write a score with its interval."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def pooled(scores: Sequence[Score], alone: Callable[[Score], str]) -> str:
    """Write one seed's score by itself, with its interval, and those of several as mean and standard deviation."""
    if len(scores) == 1:
        return alone(scores[0])
    values = [score["value"] for score in scores]
    if alone is share:
        return spread([100 * value for value in values], "{:.1f}") + " %"
    return spread(values, "{:.3f}")


def spread(values: Sequence[float], form: str) -> str:
    """Write a value, or the mean and standard deviation of several."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(fmean(values))} ± {form.format(stdev(values))}"


def _known(accuracy: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether there is a classification accuracy; models without classes have a reason in its place."""
    return all("score" in one for one in accuracy)


def _yardstick(accuracy: Sequence[Mapping[str, Any]]) -> str:
    real = [one["yardstick"] for one in accuracy if one.get("yardstick")]
    return pooled(real, share) if real else ""


def _machines(found: Sequence[Trainings]) -> str:
    machines = [e["machine"] for one in found for e in one.evaluations]
    told = {
        f"{m['processor']}, {m['threads']} threads, accelerator: {m['accelerator']}, torch {m['torch']}"
        for m in machines
    }
    return "; ".join(sorted(told))


def _dates(found: Sequence[Trainings]) -> str:
    return ", ".join(sorted({e["machine"]["date"] for one in found for e in one.evaluations}))


def _require_alike(found: Trainings) -> None:
    """Refuse to average over different things."""
    conditions = {
        f"training {number}": {
            "steps": measured["steps"],
            "batch size": measured["batch_size"],
            "data": measured["data"]["fingerprint"],
            "samples": evaluation["samples"],
            "sampler": evaluation["settings"],
            "features": evaluation["scores"]["features"]["name"],
            # Records of versions without metric cards have none, and stand beside each other only.
            "metric card": {
                name: value for name, value in (evaluation["scores"].get("card") or {}).items() if name != "seed"
            },
        }
        for number, (measured, evaluation) in enumerate(zip(found.measured, found.evaluations, strict=True), 1)
    }
    try:
        require_alike(conditions)
    except IncomparableError as error:
        raise IncomparableError(
            f"the records of recipe/{found.recipe} differ: {error}; remove those that are out of date, and make "
            f"campaign ONLY=recipe/{found.recipe} makes them anew"
        ) from error
