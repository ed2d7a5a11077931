"""What ``unfog train`` and ``unfog evaluate`` tell of a classifier of noisy data."""

import json

from unfog.checkpoint import write_atomically
from unfog.cli.console import number, output, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.data.dataset import Dataset
from unfog.evaluation.noisy_accuracy import accuracy_by_level
from unfog.machine import machine
from unfog.metrics.interval import Score
from unfog.recipe.build import build_training
from unfog.recipe.export import origin_of
from unfog.recipe.run import Run, StoredWeights, default_device
from unfog.tasks.noisy_classification import NoisyClassification

NUMBERS = "classifier.json"


def report(run: Run, test: Dataset, weights: StoredWeights, *, seed: int, batch_size: int) -> None:
    """Measure a classifier on held-out examples, write ``classifier.json`` into its folder and print the numbers.

    Args:
        run: trained.
        test: examples that it has not seen.
        weights: of it.
        seed: of the noise.
        batch_size: examples at a time.

    Raises:
        CommandError: if it cannot be measured.
    """
    with refusing():
        task = build_training(run.recipe, run.network(weights).to(default_device()))
        if not isinstance(task, NoisyClassification):
            raise CommandError(f"{run.folder} is no classifier")
        levels = accuracy_by_level(task, test, seed=seed, batch_size=batch_size)
    told = {
        "origin": origin_of(run, weights),
        "machine": machine(),
        "dataset": test.info.name,
        "seed": seed,
        "levels": [level.to_dict() for level in levels],
    }
    write_atomically(run.folder / NUMBERS, json.dumps(told, indent=1).encode())
    listing = table("log-SNR>", "right answers", "cross entropy (nats)")
    for level in levels:
        listing.add_row(f"{level.log_snr:.1f}", _shown(level.accuracy), _shown(level.cross_entropy))
    show(f"{levels[0].accuracy.count} held-out examples of {test.info.name}, noisy", listing)
    output().print(str(run.folder / NUMBERS), markup=False, soft_wrap=True)


def _shown(score: Score) -> str:
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
