"""All scores of a set of samples, with the floors that say what perfect samples would get.

Each comparison is made twice at equal counts: samples against held-out test examples, and real training
examples, which the feature network has not seen either, against the same test examples. The second is the
best that a generator can be expected to reach with these features at this count.

A score that the data are too few or too small for is ``Missing``, with the reason; the others are formed all the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.accuracy import AccuracyReport, classification_accuracy_score
from unfog.evaluation.card import Card, ExtractorCard
from unfog.evaluation.classifier import Budget, pieces, to_pixels, too_small
from unfog.evaluation.extractors import Extractor
from unfog.evaluation.features import FeatureCard, FeatureExtractor
from unfog.metrics.frechet import Moments
from unfog.metrics.frechet_limit import Strata, fewest, frechet_estimate
from unfog.metrics.inception_score import SPLITS, inception_score
from unfog.metrics.interval import Score
from unfog.metrics.kernel import BLOCKS, kernel_score
from unfog.metrics.manifold import density_coverage, precision_recall
from unfog.metrics.neighbours import copying, nearest_neighbours

SHOWN = 16
"""How many of the samples nearest to a training example are listed."""

PRECISION_K, DENSITY_K = 3, 5
"""Neighbours that set the size of a ball, of precision and recall and of density and coverage, as published."""

MOST = 10_000
"""Most examples on either side that neighbours are looked for among."""

INTERVALS = "95 %: normal by the delta method (Fréchet), normal (kernel, Inception Score, density), Wilson (shares)"
"""Kinds of the intervals of a comparison."""

NAMES = {
    "frechet": "Fréchet distance",
    "limit": "Fréchet distance at infinite counts",
    "kernel": "kernel distance",
    "inception": "Inception Score",
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
    """How close one set is to real examples, in the features of one network; what cannot be said is missing.

    What an older version did not measure, or is not defined for the network, is None.

    Attributes:
        frechet: squared Fréchet distance of the features, as published: too large by a bias that falls with the
            counts. It is FID only if the features are those of the published Inception network; the note says so.
        precision: share of the set that lies within the real examples' manifold.
        recall: share of the real examples that lie within the set's manifold.
        density: mean number of real balls around a member, over k.
        coverage: share of real balls that hold a member.
        limit: the squared Fréchet distance extrapolated to infinite counts: that of the distributions.
        kernel: squared kernel distance of the features (KID in those of the published Inception network).
        inception: Inception Score of the set, which real examples do not enter.
    """

    frechet: Score | Missing
    precision: Score | Missing
    recall: Score | Missing
    density: Score | Missing
    coverage: Score | Missing
    limit: Score | Missing | None = None
    kernel: Score | Missing | None = None
    inception: Score | Missing | None = None

    @staticmethod
    def without(why: Missing) -> "Comparison":
        """Return a comparison of which nothing can be said."""
        return Comparison(why, why, why, why, why, why, why)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Comparison":
        """Return the comparison that was written as a dictionary."""
        made: dict[str, Any] = {name: None if value is None else score_of(value) for name, value in stored.items()}
        return Comparison(**made)


def score_of(stored: Mapping[str, Any]) -> Score | Missing:
    """Return the score, or the reason why there is none, that was written as a dictionary."""
    return Missing(**stored) if "reason" in stored else Score(**stored)


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
        features: the network whose features were compared: how it was made if it was trained for these data; missing
            where none can be made.
        count: examples on either side of each comparison; 0 without features.
        samples: samples against test examples.
        floor: real training examples, unknown to the feature network, against the same test examples.
        copying: probability that a sample is nearer to the training set than a test example is; 0.5 without
            copying.
        nearest: the samples nearest to a training example, nearest first; none without features.
        accuracy: classification accuracy score.
        seed: of all subsets and resamples.
        card: under which conditions ``samples`` were compared; None without features, and from older versions.
    """

    features: FeatureCard | ExtractorCard | Missing
    count: int
    samples: Comparison
    floor: Comparison
    copying: Score | Missing
    nearest: tuple[Resemblance, ...]
    accuracy: AccuracyReport | Missing
    seed: int
    card: Card | None = None

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
    extractor: Extractor | Missing,
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
        train: the examples that the generator was trained on, the same that ``extractor`` was made from if it was made
            from any.
        test: real examples that neither has seen.
        extractor: features to compare in, or why there are none.
        budget: of the classifiers behind the accuracy; None takes the default.
        seed: of all subsets, classifiers and resamples.
        resamples: of the bootstrap of copying.

    Returns:
        The scores; what there are too few samples or examples for is missing.

    Raises:
        ValueError: if the extractor was made from other data, or shapes disagree.
    """
    if isinstance(extractor, FeatureExtractor):
        _check_origin(extractor, train)
    pixels = to_pixels(samples)
    device = torch.device("cpu") if isinstance(extractor, Missing) else extractor.device
    accuracy = _accuracy(pixels, labels, train, test, budget, seed, device)
    if isinstance(extractor, Missing):
        nothing = Comparison.without(extractor)
        return Scores(extractor, 0, nothing, nothing, extractor, (), accuracy, seed)
    own = extractor.card if isinstance(extractor, FeatureExtractor) else None
    # A published network has seen none of them; sets are often sorted by class, so not the first ones.
    unseen = own.config.split(len(train))[1] if own else _choice(len(train), len(train), seed, "train")
    count = min(len(pixels), len(test), len(unseen))
    identity = extractor.identity
    drawn = extractor(pixels)
    tested, picked = _choice(len(test), count, seed, "test"), _choice(len(drawn), count, seed, "samples")
    held_out = extractor.of(test, tested)
    training = extractor.of(train)
    real, chosen = training[unseen[:count]], drawn[picked]
    classes = classes_of(test, tested)
    of_samples = Strata(classes, None if labels is None else labels[picked])
    of_real = Strata(classes, classes_of(train, unseen[:count]))
    there = (
        f"of samples there are {len(pixels)}, of test examples {len(test)}, and of training examples that the feature "
        f"network has not seen {len(unseen)}"
    )
    return Scores(
        features=own or identity,
        count=count,
        samples=compare(held_out, chosen, identity, seed, there, logits=extractor.logits(chosen), strata=of_samples),
        floor=compare(held_out, real, identity, seed, there, logits=extractor.logits(real), strata=of_real),
        copying=_copying(drawn, training, held_out, seed, resamples),
        nearest=_most_alike(drawn, training),
        accuracy=accuracy,
        seed=seed,
        card=Card.of(identity, pixels.shape[1:], (count, count), test.info.fingerprint, seed, INTERVALS),
    )


def compare(
    real: Tensor,
    features: Tensor,
    identity: ExtractorCard,
    seed: int,
    there: str | None = None,
    *,
    logits: Tensor | None = None,
    moments: Moments | None = None,
    strata: Strata | None = None,
) -> Comparison:
    """Compare a set with real examples.

    Args:
        real: ``(N, D)`` features of real examples, in random order.
        features: ``(M, D)`` features of the set, in random order.
        identity: of the network that made the features.
        seed: of cuts and subsets.
        there: how many examples there are, told where they are too few; the smaller of N and M unless given.
        logits: ``(M, classes)`` of the set; the Inception Score is left out without them.
        moments: of all real examples, where ``real`` are a choice of very many; the Fréchet distance is then to these.
        strata: classes of both sets, whose shares are then taken as fixed by the Fréchet distance.

    Returns:
        The comparison; a Fréchet distance needs more than D examples, its value at infinite counts twice as many, the
        kernel distance 40, precision and recall more than 3, density and coverage more than 5, and what needs more is
        missing. Neighbours are looked for among as many of both sets, and at most ``MOST``.
    """
    real, features = real.double(), features.double()
    count, dim = min(len(real), len(features)), real.shape[1]

    def needing(more_than: int, why: str) -> Missing | None:
        reason = f"more than {more_than} examples on either side are needed {why}; {there or f'there are {count}'}"
        return Missing(reason) if count <= more_than else None

    frechet: Score | Missing
    limit: Score | Missing | None
    if few := needing(dim, f"for features of {dim} dimensions"):
        frechet = limit = few
    else:
        note = f"squared Fréchet distance of {identity.name} ({identity.title})"
        frechet, limit = frechet_estimate(
            moments or real, features, seed=seed_of("frechet", seed), strata=strata, note=note
        )
        limit = limit or needing(fewest(dim) - 1, f"to extrapolate for features of {dim} dimensions")
    kernel = needing(2 * BLOCKS - 1, "for the kernel distance") or kernel_score(
        real, features, seed=seed_of("kernel", seed), note=f"squared kernel distance of {identity.name}"
    )
    among, samples = real[: min(count, MOST)], features[: min(count, MOST)]
    few = needing(PRECISION_K, f"to look at {PRECISION_K} neighbours")
    precision, recall = (few, few) if few else precision_recall(among, samples, k=PRECISION_K)
    few = needing(DENSITY_K, f"to look at {DENSITY_K} neighbours")
    density, coverage = (few, few) if few else density_coverage(among, samples, k=DENSITY_K)
    inception = None if logits is None else _inception_score(logits, seed)
    return Comparison(frechet, precision, recall, density, coverage, limit, kernel, inception)


def _inception_score(logits: Tensor, seed: int) -> Score | Missing:
    if len(logits) < SPLITS:
        return Missing(f"its {SPLITS} splits need as many samples; there are {len(logits)}")
    return inception_score(logits, seed=seed_of("inception score", seed))


def _copying(drawn: Tensor, training: Tensor, held_out: Tensor, seed: int, resamples: int) -> Score | Missing:
    if min(len(drawn), len(held_out)) < 2:
        return Missing(
            f"2 or more are needed on either side to tell a spread from; of samples there are {len(drawn)}, of test "
            f"examples {len(held_out)}"
        )
    return copying(drawn, training, held_out, seed=seed_of("copying", seed), resamples=resamples)


def classes_of(dataset: Dataset, ids: Tensor) -> Tensor | None:
    """Return the class of some examples, ``(N,)`` int64, or None where the data have none."""
    if "label" not in dataset.info.fields:
        return None
    return torch.cat([dataset.gather(piece)["label"] for piece in pieces(ids)])


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
