"""All scores of a set of samples, with the floors that say what perfect samples would get.

Each comparison is made twice at equal counts: samples against held-out test examples, and real training
examples, which the feature network has not seen either, against the same test examples. The second is the
best that a generator can be expected to reach with these features at this count.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.accuracy import AccuracyReport, classification_accuracy_score
from unfog.evaluation.classifier import Budget, to_pixels
from unfog.evaluation.features import FeatureCard, FeatureExtractor
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.interval import Score, bootstrap
from unfog.metrics.manifold import density_coverage, precision_recall
from unfog.metrics.neighbours import copying, nearest_neighbours

SHOWN = 16
"""How many of the samples nearest to a training example are listed."""


@dataclass(frozen=True)
class Comparison:
    """How close one set is to the test examples, in the features of one network.

    Attributes:
        frechet: squared Fréchet distance of the features (not FID: the features are those of the named
            network).
        precision: share of the set that lies within the test examples' manifold.
        recall: share of the test examples that lie within the set's manifold.
        density: mean number of test balls around a member, over k.
        coverage: share of test balls that hold a member.
    """

    frechet: Score
    precision: Score
    recall: Score
    density: Score
    coverage: Score


@dataclass(frozen=True)
class Resemblance:
    """A sample and the training example that is nearest to it.

    Attributes:
        sample: number of the sample.
        training: number of the training example.
        distance: between their features.
    """

    sample: int
    training: int
    distance: float


@dataclass(frozen=True)
class Scores:
    """Everything that was measured.

    Attributes:
        features: the network whose features were compared.
        count: examples on either side of each comparison.
        samples: samples against test examples.
        floor: real training examples, unknown to the feature network, against the same test examples.
        copying: probability that a sample is nearer to the training set than a test example is; 0.5 without
            copying.
        nearest: the samples nearest to a training example, nearest first.
        accuracy: classification accuracy score; None without labels or if it was not asked for.
        seed: of all subsets and resamples.
    """

    features: FeatureCard
    count: int
    samples: Comparison
    floor: Comparison
    copying: Score
    nearest: tuple[Resemblance, ...]
    accuracy: AccuracyReport | None
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as a dictionary that JSON can hold."""
        return {**asdict(self), "features": self.features.to_dict()}


def evaluate(
    samples: Tensor,
    labels: Tensor | None,
    train: Dataset,
    test: Dataset,
    extractor: FeatureExtractor,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    resamples: int = 200,
) -> Scores:
    """Measure a set of samples against the data that it imitates.

    Args:
        samples: ``(N, C, H, W)`` uint8, or floats in [-1, 1], which are rounded to 8 bits.
        labels: ``(N,)`` the class that each sample was made for; None leaves out the classification accuracy
            score.
        train: the examples that the generator was trained on, the same that ``extractor`` was made from.
        test: real examples that neither has seen.
        extractor: features to compare in.
        budget: of the classifiers behind the accuracy; None takes the default.
        seed: of all subsets, classifiers and resamples.
        resamples: of each bootstrap.

    Raises:
        ValueError: if the extractor was made from other data, shapes disagree, or there are too few examples.
    """
    _check_origin(extractor, train)
    pixels = to_pixels(samples)
    _, unseen = extractor.card.config.split(len(train))
    count = min(len(pixels), len(test), len(unseen))
    drawn = extractor(pixels)
    held_out = extractor.of(test, _choice(len(test), count, seed, "test"))
    training = extractor.of(train)
    real = training[unseen[:count]]
    name = extractor.card.name
    accuracy = None
    if labels is not None:
        accuracy = _accuracy(pixels, labels, train, test, budget, seed, extractor.network.head.weight.device)
    return Scores(
        features=extractor.card,
        count=count,
        samples=compare(held_out, drawn[_choice(len(drawn), count, seed, "samples")], name, seed, resamples),
        floor=compare(held_out, real, name, seed, resamples),
        copying=copying(drawn, training, held_out, seed=seed_of("copying", seed), resamples=resamples),
        nearest=_most_alike(drawn, training),
        accuracy=accuracy,
        seed=seed,
    )


def compare(real: Tensor, features: Tensor, name: str, seed: int, resamples: int) -> Comparison:
    """Compare a set with real examples.

    Args:
        real: ``(N, D)`` features of real examples.
        features: ``(N, D)`` features of the set.
        name: of the network that made the features.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there are no more than D examples.
    """
    real, features = real.double(), features.double()
    # Checked on the sets themselves; a resample has the same count but fewer distinct members.
    frechet_distance(Moments.of(features), Moments.of(real))
    frechet = bootstrap(
        lambda ids: frechet_distance(Moments.of(features[ids[0]]), Moments.of(real[ids[1]]), allow_singular=True),
        (len(features), len(real)),
        seed=seed_of("frechet", seed),
        resamples=resamples,
        recentre=True,
        note=f"squared Fréchet distance of {name} (not FID), {len(features)} against {len(real)}",
    )
    # Recentring can carry the lower end below zero, where no squared distance lies.
    frechet = replace(frechet, low=max(frechet.low, 0.0))
    precision, recall = precision_recall(real, features)
    density, coverage = density_coverage(real, features)
    return Comparison(frechet, precision, recall, density, coverage)


def _check_origin(extractor: FeatureExtractor, train: Dataset) -> None:
    made, given = extractor.card.fingerprint, train.info.fingerprint
    require(
        made == given,
        f"the training set that {extractor.card.name} was made from ({made[:8]}), got {train.info.name} ({given[:8]}); "
        "call feature_extractor on this training set",
    )


def _choice(total: int, count: int, seed: int, role: str) -> Tensor:
    """Return ``count`` of ``total`` numbers; sets are often sorted by class, so not the first ones."""
    return torch.from_numpy(permutation(total, seed_of("evaluate", role, seed), 0)[:count])


def _accuracy(
    pixels: Tensor,
    labels: Tensor,
    train: Dataset,
    test: Dataset,
    budget: Budget | None,
    seed: int,
    device: torch.device,
) -> AccuracyReport:
    require(len(labels) == len(pixels), f"a label for each of {len(pixels)} samples, got {len(labels)}")
    chosen = _choice(len(pixels), min(len(pixels), len(train)), seed, "accuracy")
    return classification_accuracy_score(
        pixels[chosen], labels[chosen], test, seed=seed, budget=budget, real=train, device=device
    )


def _most_alike(drawn: Tensor, training: Tensor) -> tuple[Resemblance, ...]:
    found = nearest_neighbours(drawn, training, 1)
    order = found.distances[:, 0].argsort(stable=True)[:SHOWN].tolist()
    return tuple(Resemblance(i, int(found.indices[i, 0]), float(found.distances[i, 0])) for i in order)
