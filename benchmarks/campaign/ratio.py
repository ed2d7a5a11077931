"""Ratios of distances with their intervals: over training seeds, and over samples.

The two answer different questions. Over seeds: what would other trainings give? The logarithms of the ratios, one a
seed, are taken as normal, so their mean has Student's interval. Over samples: what would other samples of the same
networks, and other test images, give? That is the bootstrap's.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from unfog.metrics.interval import LEVEL


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Distance(NamedTuple):
    """A Fréchet distance and its bootstrap resamples."""

    value: float
    resampled: tuple[float, ...]

    @property
    def recentred(self) -> tuple[float, ...]:
        """The resamples without their bias: a resample has fewer distinct members, so its distance is too large."""
        shift = self.value - fmean(self.resampled)
        return tuple(max(one + shift, 0.0) for one in self.resampled)

    def interval(self) -> Interval:
        """Return the distance with its bootstrap percentile interval, recentred on the value."""
        return Interval(self.value, *_percentiles(self.recentred))


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return the geometric mean of the ratios of pairs with Student's interval of the mean logarithm.

    Args:
        ours: distances, one a seed; positive.
        theirs: of the same seeds in the same order.

    Raises:
        ValueError: if there are fewer than two pairs.
    """
    if len(ours) < 2:
        raise ValueError(f"expected two seeds or more for an interval over seeds, got {len(ours)}")
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    centre = fmean(logs)
    radius = float(stdtrit(len(logs) - 1, (1 + LEVEL) / 2)) * stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(centre), math.exp(centre - radius), math.exp(centre + radius))


def over_samples(ours: Sequence[Distance], theirs: Sequence[Distance]) -> Interval:
    """Return the geometric mean of the ratios of pairs with the percentile interval of their paired resamples.

    Resample k of every distance is of the same test images, so that it is taken with resample k of the others.

    Args:
        ours: one a seed.
        theirs: of the same seeds in the same order, with as many resamples.
    """
    value = _geometric([a.value for a in ours], [b.value for b in theirs])
    columns = zip(*(d.recentred for d in (*ours, *theirs)), strict=True)
    drawn = [_geometric(column[: len(ours)], column[len(ours) :]) for column in columns]
    return Interval(value, *_percentiles(drawn))


def _geometric(ours: Sequence[float], theirs: Sequence[float]) -> float:
    ratios = [a / b if b else math.inf for a, b in zip(ours, theirs, strict=True)]
    return math.prod(ratios) ** (1 / len(ratios))


def _percentiles(drawn: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high
