"""Nearest neighbours by brute force in bounded memory, and how close samples come to the training examples.

Distances are Euclidean, in float64, over whatever the rows hold: features or flattened pixels.

Source of the copying test: C. Meehan, K. Chaudhuri and S. Dasgupta, "A non-parametric test to detect
data-copying in generative models", 2020, arXiv 2004.05675.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.metrics.interval import Score, bootstrap

QUERY_CHUNK = 1024
POINT_CHUNK = 4096


class Neighbours(NamedTuple):
    """The nearest points of some queries.

    Attributes:
        distances: ``(N, k)`` float64, ascending in each row.
        indices: ``(N, k)`` int64, which point; equally distant points come in any order.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(
    queries: Tensor,
    points: Tensor,
    k: int,
    *,
    exclude_self: bool = False,
    query_chunk: int = QUERY_CHUNK,
    point_chunk: int = POINT_CHUNK,
) -> Neighbours:
    """Return the ``k`` points nearest to each query.

    Memory beyond the arguments is about ``query_chunk * point_chunk`` numbers, whatever the sizes.

    Args:
        queries: ``(N, ...)``; everything behind the first axis is one vector.
        points: ``(M, ...)`` of the same trailing shape.
        k: how many neighbours, at least 1.
        exclude_self: the queries are the points, row by row, and no row is its own neighbour.
        query_chunk: rows of queries that are looked at together.
        point_chunk: rows of points that are looked at together.

    Raises:
        ValueError: if the shapes disagree or there are fewer than ``k`` points to choose from.
    """
    queries, points = check_sets(queries, points)
    available = len(points) - exclude_self
    if not 1 <= k <= available:
        raise ValueError(f"k must lie between 1 and {available}, the number of points to choose from; got {k}")
    if exclude_self and len(queries) != len(points):
        raise ValueError(f"exclude_self means that queries are the points; got {len(queries)} and {len(points)} rows")
    # Any centre near the points does; converting all of them at once would take their memory a second time.
    centre = points[:point_chunk].double().mean(0)
    found = [
        _nearest(queries[start : start + query_chunk], start, points, centre, k, exclude_self, point_chunk)
        for start in range(0, len(queries), query_chunk)
    ]
    return Neighbours(torch.cat([f.distances for f in found]), torch.cat([f.indices for f in found]))


def copying(samples: Tensor, training: Tensor, held_out: Tensor, *, seed: int, resamples: int = 200) -> Score:
    """Return how often a sample lies nearer to the training set than a held-out example does.

    The probability that a random sample has a smaller distance to its nearest training example than a random
    held-out example has, ties counted half: 1/2 if samples are as new as held-out data, near 1 if they are
    copies. Below 1/2 the samples are farther from the data than real examples are.

    Args:
        samples: ``(N, ...)``.
        training: ``(M, ...)``, the examples that the generator was trained on.
        held_out: ``(K, ...)``, real examples that it was not trained on.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if the shapes disagree or a set is empty.

    Source: Meehan et al. 2020, arXiv 2004.05675: the Mann-Whitney statistic over the whole space, without
    their split into cells, as a probability.
    """
    near = nearest_neighbours(samples, training, 1).distances[:, 0]
    far = nearest_neighbours(held_out, training, 1).distances[:, 0]

    def probability(indices: Sequence[Tensor]) -> float:
        a, b = near[indices[0]], far[indices[1]].sort().values
        below = torch.searchsorted(b, a)
        upto = torch.searchsorted(b, a, right=True)
        return float(1 - (below + upto).double().mean() / (2 * len(b)))

    note = "probability that a sample is nearer to the training set than a held-out example; 0.5 without copying"
    return bootstrap(probability, (len(near), len(far)), seed=seed, resamples=resamples, note=note)


def check_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets as ``(N, D)`` and ``(M, D)``.

    Raises:
        ValueError: if one is empty or the vectors differ in length.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[1:] != b.shape[1:] or len(a) == 0 or len(b) == 0:
        raise ValueError(
            "expected two non-empty sets (N, ...) and (M, ...) of the same trailing shape; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a.flatten(1), b.flatten(1)


def squared_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances of all pairs and a bound of their rounding error.

    ``|a|^2 + |b|^2 - 2 a b`` is a matrix product and fast, but it cancels: equal vectors come out at the
    rounding error of their squared lengths, not at zero. Rows should be centred first, which keeps the
    lengths small.

    Args:
        a: ``(n, D)`` float64.
        b: ``(m, D)`` float64.

    Returns:
        ``(n, m)`` squared distances, not below zero, and ``(n, m)`` bounds of their absolute error.
    """
    lengths = (a * a).sum(1)[:, None] + (b * b).sum(1)
    bound = lengths * (2 * (a.shape[1] + 2) * torch.finfo(torch.float64).eps)
    return torch.addmm(lengths, a, b.T, alpha=-2).clamp_(min=0), bound


def _nearest(
    queries: Tensor, offset: int, points: Tensor, centre: Tensor, k: int, exclude_self: bool, point_chunk: int
) -> Neighbours:
    """Return the neighbours of one chunk of queries, whose first row is row ``offset`` of all queries."""
    raw = queries.double()
    queries = raw - centre
    best = torch.full((len(queries), 0), torch.inf, dtype=torch.float64)
    indices = torch.zeros((len(queries), 0), dtype=torch.int64)
    for start in range(0, len(points), point_chunk):
        chunk = points[start : start + point_chunk].double() - centre
        distances, _ = squared_distances(queries, chunk)
        if exclude_self:
            _exclude_diagonal(distances, offset - start)
        nearest = distances.topk(min(k, len(chunk)), largest=False)
        best = torch.cat([best, nearest.values], 1)
        indices = torch.cat([indices, nearest.indices + start], 1)
        best, order = best.topk(min(k, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    # Now without cancellation, so that a copy has distance zero.
    exact = torch.stack([(points[column].double() - raw).norm(dim=1) for column in indices.unbind(1)], 1)
    exact, order = exact.sort(stable=True, dim=1)
    return Neighbours(exact, indices.gather(1, order))


def _exclude_diagonal(distances: Tensor, shift: int) -> None:
    """Set entry (row, row + shift) to infinity, wherever that column exists."""
    rows = torch.arange(len(distances))
    columns = rows + shift
    inside = (columns >= 0) & (columns < distances.shape[1])
    distances[rows[inside], columns[inside]] = torch.inf
