"""Precision, recall, density and coverage: are samples realistic, and is all of the data reproduced?

The manifold of a set is the union of balls around its members, each reaching to the member's k-th nearest
neighbour in the same set. Precision is the share of samples inside the manifold of the real examples, recall
the share of real examples inside the manifold of the samples. Density counts how many real balls hold a
sample, so that one outlier with a large ball no longer passes everything; coverage is the share of real balls
that hold a sample at all. Balls are closed, as in the definition of Kynkäänniemi et al.; for continuous
features this matters only if the sets share examples (identical sets then have density (k + 1) / k).

All four depend on the counts and on the features: compare them only at equal counts of the same features.

Source: T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019,
arXiv 1904.06991, section 2. M. F. Naeem et al., "Reliable fidelity and diversity metrics for generative
models", 2020, arXiv 2002.09797, section 3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unfog.metrics.interval import Score, mean, proportion
from unfog.metrics.neighbours import check_sets, nearest_neighbours, squared_distances

CHUNK = 1024


class PrecisionRecall(NamedTuple):
    """Share of samples that are realistic, and share of real examples that are reproduced."""

    precision: Score
    recall: Score


class DensityCoverage(NamedTuple):
    """Mean number of real balls around a sample over k, and share of real balls that hold a sample."""

    density: Score
    coverage: Score


def precision_recall(real: Tensor, samples: Tensor, *, k: int = 3, chunk: int = CHUNK) -> PrecisionRecall:
    """Return improved precision and recall.

    Args:
        real: ``(N, D)`` features of real examples.
        samples: ``(M, D)`` features of samples; the publication takes M = N.
        k: neighbours that set the size of a ball; 3 in the publication.
        chunk: rows and columns of distances that are held at once.

    Raises:
        ValueError: if the shapes disagree, or a set has no more than ``k`` members.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2.
    """
    real, samples = check_sets(real, samples)
    inside_real = _balls_around(samples, real, _radii(real, k), chunk) > 0
    inside_samples = _balls_around(real, samples, _radii(samples, k), chunk) > 0
    note = f"k = {k}, {len(samples)} samples against {len(real)} real examples"
    return PrecisionRecall(
        proportion(int(inside_real.sum()), len(samples), note=f"precision, {note}"),
        proportion(int(inside_samples.sum()), len(real), note=f"recall, {note}"),
    )


def density_coverage(real: Tensor, samples: Tensor, *, k: int = 5, chunk: int = CHUNK) -> DensityCoverage:
    """Return density and coverage.

    Args:
        real: ``(N, D)`` features of real examples.
        samples: ``(M, D)`` features of samples.
        k: neighbours that set the size of a ball; 5 in the publication.
        chunk: rows and columns of distances that are held at once.

    Raises:
        ValueError: if the shapes disagree, or the real set has no more than ``k`` members.

    Source: Naeem et al. 2020, arXiv 2002.09797, section 3.2.
    """
    real, samples = check_sets(real, samples)
    radii = _radii(real, k)
    balls = _balls_around(samples, real, radii, chunk)
    nearest = nearest_neighbours(real, samples, 1).distances[:, 0]
    note = f"k = {k}, {len(samples)} samples against {len(real)} real examples"
    expected = expected_coverage(len(real), len(samples), k)
    return DensityCoverage(
        mean(balls.double() / k, note=f"density, {note}"),
        proportion(
            int((nearest <= radii).sum()),
            len(real),
            note=f"coverage, {note}, {expected:.4f} expected of samples from the data's own distribution",
        ),
    )


def expected_coverage(real: int, samples: int, k: int) -> float:
    """Return the mean coverage if samples and real examples come from one continuous distribution.

    A real ball stays empty if its k nearest among all others are real, so the value is
    ``1 - prod_{i=1..k} (N - i) / (N + M - i)`` for N real examples and M samples.

    Args:
        real: number of real examples, more than ``k``.
        samples: number of samples, at least 1.
        k: neighbours that set the size of a ball.

    Raises:
        ValueError: if there are too few examples.

    Source: Naeem et al. 2020, arXiv 2002.09797, lemma 2.
    """
    if k < 1 or real <= k or samples < 1:
        raise ValueError(f"expected k >= 1, more than k real examples and a sample; got {k}, {real} and {samples}")
    empty = 1.0
    for i in range(1, k + 1):
        empty *= (real - i) / (real + samples - i)
    return 1 - empty


def _radii(points: Tensor, k: int) -> Tensor:
    """Return ``(N,)`` the distance of each point to its k-th nearest neighbour in the set."""
    if k >= len(points):
        raise ValueError(f"k = {k} neighbours need a set of {k + 1} examples or more; got {len(points)}")
    return nearest_neighbours(points, points, k, exclude_self=True).distances[:, -1]


def _balls_around(queries: Tensor, centres: Tensor, radii: Tensor, chunk: int) -> Tensor:
    """Return ``(N,)`` int64, in how many of the balls each query lies."""
    middle = centres.mean(0, dtype=torch.float64)
    counts = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk].double() - middle
        for first in range(0, len(centres), chunk):
            columns = centres[first : first + chunk].double() - middle
            distances, error = squared_distances(rows, columns)
            # Within rounding a point on the rim is inside: a copy of a centre must lie in its ball of radius
            # zero.
            inside = distances <= radii[first : first + chunk].square() + error
            counts[start : start + chunk] += inside.sum(1)
    return counts
