"""Write the measured figures of finished runs into README.md and docs/results.md, between their markers.

    python benchmarks/results.py runs/demo runs/mnist-small runs/cifar10-small

Every figure is read from what the runs wrote: ``evaluation.json``, ``log.jsonl`` and ``manifest.json``.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.recipe.run import Run

ROOT = Path(__file__).parent.parent
START, END = "<!-- figures: begin (benchmarks/results.py) -->", "<!-- figures: end -->"
ROWS = (
    ("Frechet distance, own features (not FID)", "frechet"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
)


@dataclass(frozen=True)
class Result:
    """A finished run with its measurements."""

    run: Run
    measured: dict[str, Any]

    @property
    def minutes(self) -> float:
        """Training time; the logged steps stand for all."""
        seconds = [float(str(record["seconds"])) for record in self.run.log()]
        return sum(seconds) / len(seconds) * self.run.recipe.train.steps / 60

    @property
    def accuracy(self) -> dict[str, Any]:
        """The classification accuracy scores of samples and of as many real images."""
        accuracy: dict[str, Any] = self.measured["scores"]["accuracy"]
        return accuracy


def read(folder: Path) -> Result:
    """Read a run that was evaluated."""
    return Result(Run.open(folder), json.loads((folder / "evaluation.json").read_text()))


def share(score: dict[str, Any]) -> str:
    """Return a proportion in percent with its interval."""
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def number(score: dict[str, Any]) -> str:
    """Return a score with its interval."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def overview(results: list[Result]) -> list[str]:
    """Return one row a run."""
    machine = results[0].measured["machine"]
    lines = [
        "| recipe | training | CAS from samples | CAS from as many real images | held-out loss (predicting 0) |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        loss, real = result.measured["loss_test"], result.accuracy.get("yardstick")
        lines.append(
            f"| `{result.run.recipe.name}` | {result.minutes:.1f} min | {share(result.accuracy['score'])}, "
            f"{result.measured['samples']} samples at {result.measured['evaluations']} evaluations | "
            f"{share(real) if real else ''} | {loss['network']['value']:.4f} ({loss['zero']['value']:.4f}) |"
        )
    return [
        *lines,
        "",
        f"CAS: accuracy on held-out real images of a classifier trained on samples alone, with its 95 % interval. "
        f"Measured on {machine['date']} on {machine['processor']}, accelerator: {machine['accelerator']}, torch "
        f"{machine['torch']}; one run each, seed {results[0].run.recipe.train.seed}.",
    ]


def details(result: Result) -> list[str]:
    """Return the section of one run."""
    run, measured = result.run, result.measured
    train, scores, machine = run.recipe.train, measured["scores"], measured["machine"]
    lines = [
        f"### {run.recipe.name}",
        "",
        f"```sh\n{run.manifest.command}\n```",
        "",
        f"{train.steps} steps of {train.batch_size} examples of {run.manifest.data.name} ({run.manifest.data.count}) "
        f"in {result.minutes:.1f} minutes; {measured['samples']} samples, {measured['settings']}, seed "
        f"{measured['seed']}, drawn in {measured['sampling_seconds']:.0f} s. {machine['processor']}, torch "
        f"{machine['torch']}, {machine['date']}. Features: `{scores['features']['name']}`.",
        "",
        "| score | samples | real images | examples each |\n|---|---|---|---|",
    ]
    for name, key in ROWS:
        lines.append(
            f"| {name} | {number(scores['samples'][key])} | {number(scores['floor'][key])} | {scores['count']} |"
        )
    real = result.accuracy.get("yardstick")
    lines.append(
        f"| classification accuracy score | {share(result.accuracy['score'])} | {share(real) if real else ''} | "
        f"{measured['samples']} |"
    )
    held, seen = measured["loss_test"], measured["loss_train"]
    lines += [
        f"| loss, held out | {number(held['network'])} | | {held['network']['count']} |",
        f"| loss, training examples | {number(seen['network'])} | | {seen['network']['count']} |",
        f"| loss of predicting 0, held out | {number(held['zero'])} | | {held['zero']['count']} |",
        "",
    ]
    return lines


def insert(path: Path, lines: list[str]) -> None:
    """Replace what stands between the markers of a file."""
    before, rest = path.read_text().split(START)
    _, after = rest.split(END)
    path.write_text("\n".join([before + START, "", *lines, "", END + after]))


def main() -> None:
    """Render the figures of the runs named on the command line."""
    results = [read(Path(folder)) for folder in sys.argv[1:]]
    insert(ROOT / "README.md", overview(results))
    insert(ROOT / "docs" / "results.md", [*overview(results), "", *(line for r in results for line in details(r))])


if __name__ == "__main__":
    main()
