"""All scores of a set of samples, with the floors that say what perfect samples would get.

Each comparison is made twice at equal counts: samples against held-out test examples, and real training
examples, which the feature network has not seen either, against the same test examples. The second is the
best that a generator can be expected to reach with these features at this count.

A score that the data are too few or too small for is ``Missing``, with the reason; the others are formed all the same.
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
from unfog.evaluation.classifier import Budget, to_pixels, too_small
from unfog.evaluation.features import FeatureCard, FeatureExtractor
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.interval import Score, bootstrap
from unfog.metrics.manifold import density_coverage, precision_recall
from unfog.metrics.neighbours import copying, nearest_neighbours

SHOWN = 16
"""How many of the samples nearest to a training example are listed."""

PRECISION_K, DENSITY_K = 3, 5
"""Neighbours that set the size of a ball, of precision and recall and of density and coverage, as published."""

NAMES = {
    "frechet": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "copying": "copying",
    "accuracy": "classification accuracy score",
}
"""What the scores are called, by their fields."""


@dataclass(frozen=True)
class Missing:
    """Stands for a score that could not be formed.

    Attributes:
        reason: why not, as a sentence without its end.
    """

    reason: str


@dataclass(frozen=True)
class Comparison:
    """How close one set is to the test examples, in the features of one network; what cannot be said is missing.

    Attributes:
        frechet: squared Fréchet distance of the features (not FID: the features are those of the named
            network).
        precision: share of the set that lies within the test examples' manifold.
        recall: share of the test examples that lie within the set's manifold.
        density: mean number of test balls around a member, over k.
        coverage: share of test balls that hold a member.
    """

    frechet: Score | Missing
    precision: Score | Missing
    recall: Score | Missing
    density: Score | Missing
    coverage: Score | Missing

    @staticmethod
    def without(why: Missing) -> "Comparison":
        """Return a comparison of which nothing can be said."""
        return Comparison(why, why, why, why, why)


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
        features: the network whose features were compared; missing where none can be made.
        count: examples on either side of each comparison; 0 without features.
        samples: samples against test examples.
        floor: real training examples, unknown to the feature network, against the same test examples.
        copying: probability that a sample is nearer to the training set than a test example is; 0.5 without
            copying.
        nearest: the samples nearest to a training example, nearest first; none without features.
        accuracy: classification accuracy score.
        seed: of all subsets and resamples.
    """

    features: FeatureCard | Missing
    count: int
    samples: Comparison
    floor: Comparison
    copying: Score | Missing
    nearest: tuple[Resemblance, ...]
    accuracy: AccuracyReport | Missing
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as a dictionary that JSON can hold; one that is missing is written as its reason."""
        features = self.features if isinstance(self.features, FeatureCard) else None
        return {**asdict(self), **({} if features is None else {"features": features.to_dict()})}

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Names of the scores that could not be formed, by the reason."""
        found: dict[str, tuple[str, ...]] = {}
        for name, score in {**vars(self.samples), "copying": self.copying, "accuracy": self.accuracy}.items():
            if isinstance(score, Missing):
                found[score.reason] = (*found.get(score.reason, ()), NAMES[name])
        return found


def evaluate(
    samples: Tensor,
    labels: Tensor | None,
    train: Dataset,
    test: Dataset,
    extractor: FeatureExtractor | Missing,
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
        extractor: features to compare in, or why there are none.
        budget: of the classifiers behind the accuracy; None takes the default.
        seed: of all subsets, classifiers and resamples.
        resamples: of each bootstrap.

    Returns:
        The scores; what there are too few samples or examples for is missing.

    Raises:
        ValueError: if the extractor was made from other data, or shapes disagree.
    """
    if isinstance(extractor, FeatureExtractor):
        _check_origin(extractor, train)
    pixels = to_pixels(samples)
    device = torch.device("cpu") if isinstance(extractor, Missing) else extractor.network.head.weight.device
    accuracy = _accuracy(pixels, labels, train, test, budget, seed, device)
    if isinstance(extractor, Missing):
        nothing = Comparison.without(extractor)
        return Scores(extractor, 0, nothing, nothing, extractor, (), accuracy, seed)
    _, unseen = extractor.card.config.split(len(train))
    count = min(len(pixels), len(test), len(unseen))
    drawn = extractor(pixels)
    held_out = extractor.of(test, _choice(len(test), count, seed, "test"))
    training = extractor.of(train)
    real = training[unseen[:count]]
    name = extractor.card.name
    there = (
        f"of samples there are {len(pixels)}, of test examples {len(test)}, and of training examples that the feature "
        f"network has not seen {len(unseen)}"
    )
    return Scores(
        features=extractor.card,
        count=count,
        samples=compare(held_out, drawn[_choice(len(drawn), count, seed, "samples")], name, seed, resamples, there),
        floor=compare(held_out, real, name, seed, resamples, there),
        copying=_copying(drawn, training, held_out, seed, resamples),
        nearest=_most_alike(drawn, training),
        accuracy=accuracy,
        seed=seed,
    )


def compare(
    real: Tensor, features: Tensor, name: str, seed: int, resamples: int, there: str | None = None
) -> Comparison:
    """Compare a set with real examples.

    Args:
        real: ``(N, D)`` features of real examples.
        features: ``(N, D)`` features of the set.
        name: of the network that made the features.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        there: how many examples there are, told where they are too few; N unless given.

    Returns:
        The comparison; a Fréchet distance needs more than D examples, precision and recall more than 3, density and
        coverage more than 5, and what needs more is missing.
    """
    real, features = real.double(), features.double()
    count, dim = min(len(real), len(features)), real.shape[1]

    def needing(more_than: int, why: str) -> Missing | None:
        reason = f"more than {more_than} examples on either side are needed {why}; {there or f'there are {count}'}"
        return Missing(reason) if count <= more_than else None

    distance = needing(dim, f"for features of {dim} dimensions") or _frechet(real, features, name, seed, resamples)
    few = needing(PRECISION_K, f"to look at {PRECISION_K} neighbours")
    precision, recall = (few, few) if few else precision_recall(real, features, k=PRECISION_K)
    few = needing(DENSITY_K, f"to look at {DENSITY_K} neighbours")
    density, coverage = (few, few) if few else density_coverage(real, features, k=DENSITY_K)
    return Comparison(distance, precision, recall, density, coverage)


def _frechet(real: Tensor, features: Tensor, name: str, seed: int, resamples: int) -> Score:
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
    return replace(frechet, low=max(frechet.low, 0.0))


def _copying(drawn: Tensor, training: Tensor, held_out: Tensor, seed: int, resamples: int) -> Score | Missing:
    if min(len(drawn), len(held_out)) < 2:
        return Missing(
            f"2 or more are needed on either side to tell a spread from; of samples there are {len(drawn)}, of test "
            f"examples {len(held_out)}"
        )
    return copying(drawn, training, held_out, seed=seed_of("copying", seed), resamples=resamples)


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
    labels: Tensor | None,
    train: Dataset,
    test: Dataset,
    budget: Budget | None,
    seed: int,
    device: torch.device,
) -> AccuracyReport | Missing:
    if labels is None:
        return Missing("it needs classes, and the samples were drawn without")
    if (small := too_small(train.info.size)) is not None:
        return Missing(small)
    if len(train.info.classes or ()) < 2:
        return Missing("it needs two classes or more to tell apart, and there is one")
    require(len(labels) == len(pixels), f"a label for each of {len(pixels)} samples, got {len(labels)}")
    chosen = _choice(len(pixels), min(len(pixels), len(train)), seed, "accuracy")
    return classification_accuracy_score(
        pixels[chosen], labels[chosen], test, seed=seed, budget=budget, real=train, device=device
    )


def _most_alike(drawn: Tensor, training: Tensor) -> tuple[Resemblance, ...]:
    found = nearest_neighbours(drawn, training, 1)
    order = found.distances[:, 0].argsort(stable=True)[:SHOWN].tolist()
    return tuple(Resemblance(i, int(found.indices[i, 0]), float(found.distances[i, 0])) for i in order)
