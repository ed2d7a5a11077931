"""The Fréchet distance between two distributions, from finite samples of them, with an interval that covers it.

The distance of the moments of n examples to those of m is on average too large, by about ``K_1 / n + K_2 / m``, with
constants that depend on the distributions: two models cannot be compared by it even at equal counts. Two numbers are
therefore told apart here, each an estimate of something else:

- ``finite``: what the published protocol prints. Estimates the mean distance at these counts.
- ``limit``: that distance with its value at infinite counts extrapolated, linear in the reciprocal of the counts.
  Estimates the distance between the two distributions; may come out below zero where they are alike.

The extrapolation goes through two points: all examples, and both sets cut in halves, the mean over several random
cuts. ``limit = 2 all - halves``. The part of the error that is linear in the examples is the same in both, so nothing
of it is amplified, as it would be in a regression over random subsets.

The standard error is that of the delta method. The distance changes with an example x of the first set by

    phi(x) = 2 (m_1 - m_2) . (x - m_1) + (x - m_1)' (1 - T) (x - m_1)
    T = S_1^-1/2 (S_1^1/2 S_2 S_1^1/2)^1/2 S_1^-1/2,

T being the map of optimal transport between the two Gaussians. ``V = Var(phi) / n``, summed over both sets, is the
variance if T is known. T of the examples carries noise, which adds to V twice the variance Q of the part of the error
that is quadratic in the examples: where the distributions are equal, phi is zero and V = 2 Q. The linear part L is
found without that noise as the covariance of two such phi, with T from either half of a cut; then ``Q = (V - L) / 2``.
A cut leaves only those pairs of examples in the extrapolated quadratic part that it separates, twice: the mean over c
cuts has the variance (1 + 1 / c) Q. In all it is L + (1 + 1 / c) Q.

A set whose classes have fixed shares (drawn evenly over the classes, or a balanced test set) varies less than one that
is drawn at random, and random halves of it vary more: the extrapolation would overshoot. So examples may be given
strata; each cut then halves every stratum, and variances are those within strata. What is estimated is the distance of
the distributions with their classes in these shares.

Source: M. J. Chong and D. Forsyth, "Effectively unbiased FID and Inception Score and where to find them", 2020, arXiv
1911.07023 (bias, extrapolation in the count; there by regression over subsets of the samples). Gradient of the
distance: optimal transport between Gaussians, Dowson and Landau 1982 and textbooks. That the intervals cover the
distance is measured in ``tests/metrics/test_frechet_limit.py``.
"""

import math
from statistics import NormalDist, fmean
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.metrics.frechet import Moments, distance_at, frechet_distance, roots
from unfog.metrics.interval import LEVEL, Score

HALVINGS = 4
"""Random cuts that the distance of halves is averaged over."""

KIND = "normal interval, delta method"


class Strata(NamedTuple):
    """The class of each example, where the shares of the classes are not left to chance.

    Attributes:
        real: ``(M,)`` int64; None for examples that were drawn at random.
        features: ``(N,)`` int64, likewise.
    """

    real: Tensor | None = None
    features: Tensor | None = None


class FrechetEstimate(NamedTuple):
    """Two estimates from the same examples.

    Attributes:
        finite: the distance at these counts; its interval covers the mean distance at these counts.
        limit: the distance extrapolated to infinite counts; its interval covers that of the distributions. None where
            there are fewer than ``fewest`` examples.
    """

    finite: Score
    limit: Score | None


def fewest(dim: int) -> int:
    """Return how many examples of ``dim`` dimensions ``limit`` needs.

    Halves of fewer than twice as many examples as dimensions have covariances so near to singular that the bias is no
    longer linear in the reciprocal of the count, and the interval is too narrow.
    """
    return 4 * dim


def frechet_estimate(
    real: Tensor | Moments,
    features: Tensor,
    *,
    seed: int,
    strata: Strata | None = None,
    halvings: int = HALVINGS,
    level: float = LEVEL,
    note: str = "squared Fréchet distance",
) -> FrechetEstimate:
    """Estimate the squared Fréchet distance between two distributions.

    Args:
        real: ``(M, D)`` features of real examples; or moments, which are then taken as those of the distribution:
            neither their bias nor their error is part of the estimate.
        features: ``(N, D)`` features of samples.
        seed: of the cuts.
        strata: classes of the examples, where their shares are fixed.
        halvings: how many cuts, at least 1.
        level: confidence, strictly between 0 and 1.
        note: what is measured; what is estimated and the kind of interval are appended.

    Raises:
        ValueError: if the dimensions differ, a set has no more than D examples, or strata are not one for each.

    Source: Chong and Forsyth 2020, arXiv 1911.07023; see the module for what differs.
    """
    if features.ndim != 2:
        raise ValueError(f"expected features (N, D); got {tuple(features.shape)}")
    if halvings < 1:
        raise ValueError(f"expected at least one cut into halves; got {halvings}")
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must lie strictly between 0 and 1; got {level}")
    features = features.double()
    fixed = isinstance(real, Moments)
    known = None if isinstance(real, Moments) else real.double()
    counts = (len(features),) if known is None else (len(features), len(known))
    ours = Moments.of(features)
    theirs = real if isinstance(real, Moments) else Moments.of(real)
    value = frechet_distance(theirs, ours)
    strata = strata or Strata()
    given = (strata.features,) if known is None else (strata.features, strata.real)
    groups = tuple(_numbered(one, count) for one, count in zip(given, counts, strict=True))
    _, phi = _compared(ours, theirs, features, known)
    # Of too few examples to cut, the linear part is taken for all of the variance, which is then too large.
    total = sum(_variance(part, part, group) for part, group in zip(phi, groups, strict=True))
    generator = torch.Generator().manual_seed(seed)
    enough = min(counts) >= fewest(features.shape[1])
    cuts = [_cut(features, known, theirs, groups, generator) for _ in range(halvings)] if enough else []
    # The linear part cannot be larger than both together, nor negative; its estimate can.
    linear = min(max(fmean(cut.linear for cut in cuts), 0.0), total) if cuts else total
    variance = linear + (1 + 1 / halvings) * (total - linear) / 2
    radius = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    of = f"{len(features)} samples against " + (f"moments of {theirs.count}" if fixed else f"{theirs.count}")
    kind = f"{level:.0%} {KIND}"
    count = min(*counts, theirs.count)
    told = f"{note}, {of}; mean distance at these counts; {kind}"
    finite = Score(value, max(value - radius, 0.0), value + radius, count, told)
    if not cuts:
        return FrechetEstimate(finite, None)
    limit = 2 * value - fmean(cut.distance for cut in cuts)
    told = f"{note} between the distributions, extrapolated from {of} to infinite counts; {kind}"
    return FrechetEstimate(finite, Score(limit, limit - radius, limit + radius, count, told))


class _Cut(NamedTuple):
    """One cut of both sets into halves.

    Attributes:
        distance: mean over the two pairs of halves.
        linear: variance of the part of the estimate that is linear in the examples.
    """

    distance: float
    linear: float


def _cut(
    features: Tensor, real: Tensor | None, moments: Moments, groups: tuple[Tensor, ...], generator: torch.Generator
) -> _Cut:
    halves = [_halves(group, generator) for group in groups]
    distance = 0.0
    responses: list[tuple[Tensor, ...]] = []
    for half in range(2):
        ours = Moments.of(features[halves[0][half]])
        theirs = moments if real is None else Moments.of(real[halves[1][half]])
        between, phi = _compared(ours, theirs, features, real)
        distance += between / 2
        responses.append(phi)
    return _Cut(distance, sum(_variance(*parts) for parts in zip(*responses, groups, strict=True)))


def _numbered(strata: Tensor | None, count: int) -> Tensor:
    """Return the strata of a set, numbered from 0; one of all examples unless given."""
    if strata is None:
        return torch.zeros(count, dtype=torch.int64)
    if strata.shape != (count,):
        raise ValueError(f"expected a stratum for each of {count} examples; got {tuple(strata.shape)}")
    numbers: Tensor = torch.unique(strata, return_inverse=True)[1]
    return numbers


def _halves(groups: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut a set at random, each stratum evenly."""
    order = torch.randperm(len(groups), generator=generator)
    order = order[groups[order].argsort(stable=True)]
    return order[0::2], order[1::2]


def _variance(first: Tensor, second: Tensor, groups: Tensor) -> float:
    """Return the covariance of two means of responses, from what these vary within strata."""
    sizes = groups.bincount()
    residuals = [part - (groups.bincount(weights=part) / sizes)[groups] for part in (first, second)]
    # Strata of one example leave nothing to tell a spread from.
    freedom = max(len(groups) - len(sizes), 1)
    return float(residuals[0] @ residuals[1]) / freedom / len(groups)


def _compared(
    ours: Moments, theirs: Moments, features: Tensor, real: Tensor | None
) -> tuple[float, tuple[Tensor, ...]]:
    """Return the distance, and phi of each example of each set that examples are given of: ``(N,)`` and ``(M,)``."""
    mine, other = roots(ours.covariance), roots(theirs.covariance)
    u, singular, v = torch.linalg.svd(mine.root @ other.root)
    rotation = u @ v  # mine.root @ other.root = (u s u') (u v)
    shift = ours.mean - theirs.mean
    phi = [_response(features - ours.mean, shift, other.root @ rotation.T @ mine.inverse)]
    if real is not None:
        phi.append(_response(real - theirs.mean, -shift, mine.root @ rotation @ other.inverse))
    return distance_at(ours, theirs, singular.sum()), tuple(phi)


def _response(centred: Tensor, shift: Tensor, transport: Tensor) -> Tensor:
    return 2 * centred @ shift + centred.square().sum(1) - ((centred @ transport) * centred).sum(1)
