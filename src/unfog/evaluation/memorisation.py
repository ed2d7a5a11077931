"""Which samples are near-copies of training examples: the suspects, with how sure one may be of each.

What is flagged, and why with that threshold, is told in ``unfog.metrics.memorisation``. Samples are compared as
pictures and, where a feature network is given, by its features too; both ways have the threshold for half of the level,
so that a new picture is flagged by either with the whole level's probability at most.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unfog.data.dataset import Dataset, to_uint8
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.classifier import pieces, to_pixels
from unfog.metrics.interval import Score, proportion
from unfog.metrics.memorisation import (
    NEIGHBOURS,
    Likeness,
    calibrated,
    false_discovery_rates,
    feature_likeness,
    p_values,
    picture_likeness,
    rank_of,
    thumbnails,
)

LEVEL = 0.01
"""Probability with which a new picture is flagged, at most."""

HELD_OUT = 10_000
"""Most held-out examples that thresholds are calibrated on."""

PICTURES = "pictures"
"""What the comparison of pictures is called."""


@dataclass(frozen=True)
class Features:
    """A network that pictures are compared with besides their pixels.

    Attributes:
        name: of the network.
        of: makes of pictures ``(N, C, H, W)`` uint8 their features ``(N, D)``.
    """

    name: str
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Suspect:
    """A sample that is flagged.

    Attributes:
        sample: number of the sample.
        training: number of the training example that it is nearest to.
        ratio: of its distance to that example over the mean distance to the next ones.
        p_value: probability that a new picture has such a ratio or a smaller one.
        false_discovery: expected share of new pictures among this suspect and all with smaller ratios.
    """

    sample: int
    training: int
    ratio: float
    p_value: float
    false_discovery: float


@dataclass(frozen=True)
class View:
    """One way of comparing samples with training examples, and what it found.

    Attributes:
        name: ``pictures``, or the name of a feature network.
        threshold: ratios below it are flagged.
        false_positives: share of new pictures that the threshold flags, as far as the held-out examples tell.
        flagged: share of the samples that are flagged.
        suspects: the flagged samples, the smallest ratio first.
        quantiles: of the ratios of the samples and of the held-out examples, at 0.001, 0.01, 0.1 and 0.5.
    """

    name: str
    threshold: float
    false_positives: Score
    flagged: Score
    suspects: tuple[Suspect, ...]
    quantiles: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def beyond_chance(self) -> bool:
        """Whether more samples are flagged than new pictures would be, by more than the intervals leave open."""
        return self.flagged.low > self.false_positives.high


@dataclass(frozen=True)
class Memorisation:
    """What was found.

    Attributes:
        samples: how many samples were looked at.
        training: how many training examples they were compared with: all.
        held_out: how many held-out examples calibrated the thresholds.
        level: probability with which a new picture is flagged in any view, at most.
        neighbours: how many training examples make up a ratio.
        views: the ways of comparing.
        seed: of the choice of held-out examples.
    """

    samples: int
    training: int
    held_out: int
    level: float
    neighbours: int
    views: tuple[View, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary that JSON can hold."""
        return asdict(self)


def share_of(level: float, held_out: Dataset, *, by_features: bool) -> float:
    """Return the level of each way of comparing: all of it, or half where features are compared besides pictures.

    Args:
        level: probability with which a new picture is flagged in any view, at most.
        held_out: the examples that set the thresholds.
        by_features: whether features are compared too.

    Raises:
        ValueError: if the level is out of range, or there are too few held-out examples for it.
    """
    share = level / 2 if by_features else level
    rank_of(share, min(len(held_out), HELD_OUT))
    return share


def memorisation(
    samples: Tensor,
    train: Dataset,
    held_out: Dataset,
    *,
    level: float = LEVEL,
    features: Features | None = None,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> Memorisation:
    """Look for near-copies of training examples among samples.

    Args:
        samples: ``(N, C, H, W)`` uint8, or floats in [-1, 1], which are rounded to 8 bits.
        train: the examples that the model was trained on; all of them are looked at.
        held_out: real examples that it was not trained on, like those; they set the thresholds.
        level: probability with which a new picture is flagged, at most.
        features: a network to compare with besides; best one that was trained on other data, for features that were
            trained on these examples know them from held-out ones.
        neighbours: training examples that make up a ratio.
        seed: of the choice of held-out examples where there are more than ``HELD_OUT``.

    Raises:
        ValueError: if the shapes disagree, or there are too few held-out examples for the level.
    """
    pixels = to_pixels(samples)
    shape = train.info.fields["x0"].shape
    require(tuple(pixels.shape[1:]) == shape, f"samples shaped like the training set's {shape}, got {pixels.shape[1:]}")
    chosen = torch.from_numpy(permutation(len(held_out), seed_of("memorisation", seed), 0)[:HELD_OUT])
    share = share_of(level, held_out, by_features=features is not None)
    views = [_by_pictures(pixels, train, held_out, chosen, share, neighbours)]
    if features is not None:
        views.append(_by_features(pixels, train, held_out, chosen, share, neighbours, features))
    return Memorisation(len(pixels), len(train), len(chosen), level, neighbours, tuple(views), seed)


def _by_pictures(
    samples: Tensor, train: Dataset, held_out: Dataset, chosen: Tensor, level: float, neighbours: int
) -> View:
    training = _read(train, torch.arange(len(train)), thumbnails)
    real = picture_likeness(_read(held_out, chosen, thumbnails), training, neighbours=neighbours)
    return _view(PICTURES, picture_likeness(samples, training, neighbours=neighbours), real, level)


def _by_features(
    samples: Tensor,
    train: Dataset,
    held_out: Dataset,
    chosen: Tensor,
    level: float,
    neighbours: int,
    features: Features,
) -> View:
    training = _read(train, torch.arange(len(train)), features.of)
    real = feature_likeness(_read(held_out, chosen, features.of), training, neighbours=neighbours)
    mine = torch.cat([features.of(piece) for piece in pieces(samples)])
    return _view(features.name, feature_likeness(mine, training, neighbours=neighbours), real, level)


def _read(dataset: Dataset, ids: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what is made of some examples, read a part at a time."""
    return torch.cat([make(to_uint8(dataset.gather(piece)["x0"])) for piece in pieces(ids)])


def _view(name: str, samples: Likeness, held_out: Likeness, level: float) -> View:
    threshold = calibrated(held_out.ratios, level)
    p = p_values(samples.ratios, held_out.ratios)
    rates = false_discovery_rates(p)
    flagged = samples.ratios < threshold.ratio
    order = samples.ratios.argsort(stable=True)
    suspects = [
        Suspect(k, int(samples.indices[k]), float(samples.ratios[k]), float(p[k]), float(rates[k]))
        for k in order[flagged[order]].tolist()
    ]
    at = torch.tensor([0.001, 0.01, 0.1, 0.5], dtype=torch.float64)
    mine, real = (tuple(torch.quantile(one.ratios, at).tolist()) for one in (samples, held_out))
    note = f"share of the samples below the threshold, {name}"
    return View(
        name=name,
        threshold=threshold.ratio,
        false_positives=threshold.false_positives,
        flagged=proportion(len(suspects), len(samples.ratios), note=note),
        suspects=tuple(suspects),
        quantiles=(mine, real),
    )
