"""What samples are worth: the accuracy, on real test data, of a classifier that saw nothing but samples.

A generator that leaves out part of a class, or confuses two, trains a classifier that fails there, whatever
its samples look like one by one. Next to the score stands a yardstick: the same classifier, with the same
seed and the same number of steps, after training on as many real examples. The intervals tell what the size of the test
set leaves open; another seed of the classifier moves both numbers too, which ``seed`` lets one try.

Source: S. Ravuri and O. Vinyals, "Classification accuracy score for conditional generative models", 2019,
arXiv 1905.10887. Their classifier is one for ImageNet; here it is a small network for small images, so
numbers compare with the yardstick and not with the publication.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unfog.data.dataset import ArrayDataset, Dataset
from unfog.data.loader import ShuffledBatches
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.classifier import Affine, Budget, build, fit, logits, pieces, subset, to_pixels
from unfog.metrics.interval import Score, proportion


@dataclass(frozen=True)
class AccuracyReport:
    """The classification accuracy score and its yardstick.

    Attributes:
        score: share of the test examples that the classifier trained on samples names rightly.
        per_class: the same among the test examples of each class, by the name of the class.
        yardstick: accuracy after training on as many real examples; None if it was not asked for.
        examples: how many samples (and real examples) the classifiers were trained on.
        budget: size and training of the classifiers.
        seed: of their weights, order and augmentation.
    """

    score: Score
    per_class: Mapping[str, Score]
    yardstick: Score | None
    examples: int
    budget: Budget
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return asdict(self)


def classification_accuracy_score(
    samples: Tensor,
    labels: Tensor,
    test: Dataset,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    real: Dataset | None = None,
    device: torch.device | str = "cpu",
) -> AccuracyReport:
    """Train a classifier on samples alone and test it on real data.

    Args:
        samples: ``(N, C, H, W)`` uint8, or floats in [-1, 1], which are rounded to 8 bits.
        labels: ``(N,)`` whole numbers: the class that each sample was made for.
        test: real examples with labels, unknown to the generator.
        seed: of the classifier's weights, order and augmentation.
        budget: size and training of the classifier.
        real: real training examples with labels, N or more, for the yardstick.
        device: where the classifiers are trained.

    Raises:
        ValueError: if shapes disagree, labels are missing or out of range, or there are too few real
            examples.

    Source: Ravuri and Vinyals 2019, arXiv 1905.10887.
    """
    budget = budget or Budget()
    classes = _class_names(test, "test")
    drawn = _as_dataset(samples, labels, test)
    if real is not None:
        _check_real(real, test, len(drawn))
    right, truth = _right_answers(drawn, test, budget, seed, device)
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    note = f"accuracy on {len(truth)} real test examples of a classifier trained on {len(drawn)} samples alone"
    if missing:
        note += f"; no samples of {', '.join(classes[i] for i in missing)}"
    yardstick = None
    if real is not None:
        order = permutation(len(real), seed_of("accuracy", "real", seed), 0)[: len(drawn)]
        chosen = subset(real, torch.from_numpy(order))
        real_right, _ = _right_answers(chosen, test, budget, seed, device)
        yardstick = _share(real_right, f"the same classifier trained on {len(chosen)} real examples")
    present = [i for i in range(len(classes)) if bool((truth == i).any())]
    return AccuracyReport(
        score=_share(right, note),
        per_class={classes[i]: _share(right[truth == i], f"test examples of {classes[i]}") for i in present},
        yardstick=yardstick,
        examples=len(drawn),
        budget=budget,
        seed=seed,
    )


def _right_answers(
    train: Dataset, test: Dataset, budget: Budget, seed: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Train a classifier on one set; return where it names another one rightly, ``(N,)`` bool, and the labels there."""
    info = test.info
    classes = len(_class_names(test, "test"))
    seed = seed_of("accuracy", seed)
    network = build(info.channels, classes, info.size, budget, seed=seed).to(device)
    steps = budget.steps_for(len(train))
    fit(network, ShuffledBatches(train, seed=seed), classes, steps, budget, Affine(), seed=seed)
    right, truth = [], []
    for piece in pieces(torch.arange(len(test))):
        values = test.gather(piece)
        truth.append(values["label"])
        right.append(logits(network, values["x0"]).argmax(1) == values["label"])
    return torch.cat(right), torch.cat(truth)


def _as_dataset(samples: Tensor, labels: Tensor, test: Dataset) -> ArrayDataset:
    pixels = to_pixels(samples)
    classes = _class_names(test, "test")
    wanted = test.info.fields["x0"].shape
    require(
        tuple(pixels.shape[1:]) == wanted,
        f"samples of the shape of the test images {wanted}, got {tuple(pixels.shape[1:])}",
    )
    require(
        labels.shape == (len(pixels),) and not labels.is_floating_point(),
        f"one whole number as the label of each of {len(pixels)} samples, got {labels.dtype} {tuple(labels.shape)}",
    )
    require(
        0 <= int(labels.min()) <= int(labels.max()) < len(classes),
        f"labels from 0 to {len(classes) - 1}, got {int(labels.min())} to {int(labels.max())}",
    )
    return ArrayDataset(pixels.cpu().numpy(), labels.cpu().numpy(), name="samples", classes=classes)


def _check_real(real: Dataset, test: Dataset, count: int) -> None:
    same = _class_names(real, "real") == test.info.classes and real.info.fields["x0"] == test.info.fields["x0"]
    require(same, f"real examples of the shape and classes of the test set {test.info.name}, got {real.info.name}")
    require(
        len(real) >= count,
        f"at least {count} real examples, as many as samples, got {len(real)}; give fewer samples or no real set",
    )


def _class_names(dataset: Dataset, role: str) -> tuple[str, ...]:
    classes = dataset.info.classes
    if classes is None or len(classes) < 2:
        raise ValueError(f"the {role} set {dataset.info.name} needs labels of two classes or more to measure accuracy")
    return classes


def _share(right: Tensor, note: str) -> Score:
    return proportion(int(right.sum()), len(right), note=note)
