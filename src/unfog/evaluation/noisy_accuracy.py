"""What a classifier of noisy data knows, by noise level: on examples that it has not seen."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from unfog.data.dataset import Dataset
from unfog.diffusion.checks import require
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.loss import chosen_examples, evaluating
from unfog.metrics.interval import Score, mean, proportion
from unfog.tasks.noisy_classification import NoisyClassification

LEVELS = 8


@dataclass(frozen=True)
class LevelAccuracy:
    """What is known at one noise level.

    Attributes:
        t: the time.
        log_snr: there.
        accuracy: share of right answers.
        cross_entropy: in nats; the logarithm of the number of classes is what knowing nothing costs.
    """

    t: float
    log_snr: float
    accuracy: Score
    cross_entropy: Score

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)


def levels_of(schedule: Schedule) -> torch.Tensor:
    """Return times, ``(8,)`` float64, even in half log-SNR between almost no noise and almost nothing else."""
    ends = schedule.log_snr(torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)).clamp(-12.0, 12.0)
    return schedule.time(torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64))


def accuracy_by_level(
    task: NoisyClassification, dataset: Dataset, *, count: int = 2000, seed: int = 0, batch_size: int = 250
) -> list[LevelAccuracy]:
    """Measure a classifier on noisy examples, at each noise level on the same ones.

    Args:
        task: its classifier is measured.
        dataset: the examples, with labels.
        count: most examples, at least 2; a fixed random choice of the set.
        seed: of the choice and of the noise.
        batch_size: examples at a time; it changes speed and memory only.

    Raises:
        ValueError: if the examples have no labels, or a number is out of its range.
    """
    require(dataset.info.classes is not None, f"examples with labels, which {dataset.info.name} has not")
    schedule = task.classifier.process.schedule
    ids = chosen_examples(dataset, count, seed)
    device = next(task.classifier.parameters(), ids).device
    found = []
    with evaluating(task):
        for number, t in enumerate(levels_of(schedule)):
            entropy, right = [], []
            for some in torch.split(ids, batch_size):
                values = {name: value.to(device) for name, value in dataset.gather(some).items()}
                rng = Rng.of(seed_of("noisy accuracy", seed), some, step=number, device=device)
                answers = task.answers(values["x0"], values["label"], t.to(device).expand(len(some)), rng=rng)
                entropy.append(answers.cross_entropy.double().cpu())
                right.append(answers.right.double().cpu())
            hits = int(torch.cat(right).sum())
            note = f"{dataset.info.name}, log-SNR {float(schedule.log_snr(t)):.1f}"
            found.append(
                LevelAccuracy(
                    float(t),
                    float(schedule.log_snr(t)),
                    proportion(hits, len(ids), note=f"right answers, {note}"),
                    mean(torch.cat(entropy), note=f"cross entropy in nats, {note}"),
                )
            )
    return found
