"""Scoring pictures against pictures, without any model: two folders, data sets, or what a run drew."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.data.sources import DataSpec, open_dataset, open_parts
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.card import Card
from unfog.evaluation.extractors import Extractor, Features, published
from unfog.evaluation.features import FeatureExtractor, feature_extractor
from unfog.evaluation.reference import Reference, reference_statistics
from unfog.evaluation.scores import INTERVALS, Comparison, classes_of, compare
from unfog.evaluation.weights import feature_folder
from unfog.metrics.frechet_limit import Strata

HOLDOUT = 0.1
"""Share of real examples without a test split that own features are not trained on, and compare with."""


@dataclass(frozen=True)
class ImageScores:
    """How close pictures are to real ones.

    Attributes:
        name: of the pictures.
        against: name of the real ones.
        card: under which conditions they were compared.
        scores: what was found.
    """

    name: str
    against: str
    card: Card
    scores: Comparison

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as a dictionary that JSON can hold."""
        scores = {name: None if score is None else vars(score) for name, score in vars(self.scores).items()}
        return {"name": self.name, "against": self.against, "card": self.card.to_dict(), "scores": scores}


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Real pictures in the features of a network: what others are scored against.

    Attributes:
        extractor: makes the features.
        data: the real pictures.
        statistics: of them.
    """

    extractor: Extractor
    data: Dataset
    statistics: Reference

    @staticmethod
    def of(data: Dataset, extractor: Extractor, cache: Path | None = None) -> "Yardstick":
        """Return the yardstick that real pictures are.

        Args:
            data: real pictures.
            extractor: makes the features.
            cache: folder in which statistics are kept; ``features`` in Unfog's cache unless given.

        Raises:
            DamagedCheckpointError: if stored statistics are not what was written.
            ValueError: if the extractor cannot look at such pictures.
        """
        return Yardstick(extractor, data, reference_statistics(data, extractor, cache or feature_folder()))

    def score(self, pictures: Dataset, *, count: int | None = None, seed: int = 0) -> ImageScores:
        """Score pictures.

        The Fréchet and the kernel distance take all of both sets, as published programs do; neighbours are looked for
        among as many of both.

        Args:
            pictures: what is scored.
            count: how many of them; a random choice. All unless given.
            seed: of choices, cuts and subsets.

        Raises:
            ValueError: if there are not so many, or their size is another one and the network cannot do with that.
        """
        total = len(pictures)
        require(count is None or 1 <= count <= total, f"a count of 1 to {total}, the pictures there are, got {count}")
        shape, real_shape = (tuple(one.info.fields["x0"].shape) for one in (pictures, self.data))
        if isinstance(self.extractor, FeatureExtractor):
            require(
                shape == real_shape,
                f"pictures of the size of {self.data.info.name} {real_shape} for features trained on it, got {shape}; "
                "bring both to one with size and channels, or take published features",
            )
        order = torch.from_numpy(permutation(total, seed_of("score", "pictures", seed), 0)[:count])
        features = self.extractor.of(pictures, order)
        kept = self.statistics.features
        shuffle = torch.from_numpy(permutation(len(kept), seed_of("score", "real", seed), 0))
        moments = None if self.statistics.whole else self.statistics.moments
        identity, info = self.extractor.identity, self.data.info
        strata = Strata(classes_of(self.data, self.statistics.ids[shuffle]), classes_of(pictures, order))
        logits = self.extractor.logits(features)
        found = compare(kept[shuffle], features, identity, seed, logits=logits, moments=moments, strata=strata)
        card = Card.of(identity, shape, (len(features), len(self.data)), info.fingerprint, seed, INTERVALS)
        return ImageScores(pictures.info.name, info.name, card, found)


def yardstick(
    spec: DataSpec, features: Features | Extractor, *, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Yardstick:
    """Open real pictures and return the yardstick that they are.

    Own features are trained on the training split, and compared with the test split or, without one, with a tenth of
    the training examples that they are not trained on.

    Args:
        spec: which pictures; its split counts for published features only.
        features: which.
        weights: of a published network, instead of those in the cache.
        device: where the network runs.

    Raises:
        ValueError: if there are no such pictures, or own features cannot be made of them.
        FileNotFoundError: if weights are missing; says where to put them.
        DamagedCheckpointError: if something stored is not what was written.
    """
    if features is not Features.OWN:
        extractor = published(features, weights, device=device) if isinstance(features, Features) else features
        return Yardstick.of(open_dataset(spec), extractor)
    require(weights is None, "weights for published features only; own features are trained on the data")
    train, test = open_parts(replace(spec, split="train"), HOLDOUT)
    return Yardstick.of(test, feature_extractor(train, feature_folder(), device=device))
