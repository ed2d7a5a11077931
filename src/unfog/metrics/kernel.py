"""The kernel distance between two sets of features: the squared maximum mean discrepancy of a cubic polynomial kernel.

    k(x, y) = (x . y / D + 1)^3
    d = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

The estimate is unbiased at every count, so it may come out below zero, and it needs no covariance of full rank. With
the features of the published Inception network this is the number called KID.

Source: M. Bińkowski, D. J. Sutherland, M. Arbel and A. Gretton, "Demystifying MMD GANs", 2018, arXiv 1801.01401 (the
kernel, the unbiased estimate and its mean over subsets). The interval from disjoint blocks: W. Zaremba, A. Gretton and
M. Blaschko, "B-tests: low variance kernel two-sample tests", 2013, arXiv 1307.1954.
"""

import torch
from torch import Tensor

from unfog.metrics.interval import LEVEL, Score
from unfog.metrics.interval import mean as mean_score
from unfog.metrics.neighbours import check_sets

SUBSETS, SUBSET_SIZE = 100, 1000
"""Subsets that the distance is averaged over and their size, as published implementations have them."""

BLOCKS = 20
"""Fewest disjoint blocks that the standard error is taken from."""


def kernel_distance(real: Tensor, features: Tensor) -> float:
    """Return the unbiased estimate of the squared kernel distance.

    Args:
        real: ``(M, D)`` features of real examples, M at least 2.
        features: ``(N, D)`` features of samples, N at least 2.

    Raises:
        ValueError: if the shapes disagree or a set has fewer than two members.

    Source: Bińkowski et al. 2018, arXiv 1801.01401, section 4.
    """
    real, features = check_sets(real, features)
    if min(len(real), len(features)) < 2:
        raise ValueError(f"each set needs two examples or more; got {len(real)} and {len(features)}")
    real, features = real.double(), features.double()
    distance = _within(real) + _within(features) - 2 * _kernel(real, features).mean()
    return float(distance)


def kernel_score(
    real: Tensor,
    features: Tensor,
    *,
    seed: int,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    level: float = LEVEL,
    note: str = "squared kernel distance",
) -> Score:
    """Return the kernel distance averaged over random subsets, with an interval.

    The interval is that of the mean over disjoint blocks of both sets, which are independent: it covers the distance
    of the distributions, and is wider than need be where these are equal.

    Args:
        real: ``(M, D)`` features of real examples.
        features: ``(N, D)`` features of samples.
        seed: of subsets and blocks.
        subsets: how many are averaged over.
        size: examples of each set in a subset; the smaller set where that has fewer.
        level: confidence, strictly between 0 and 1.
        note: what is measured; how is appended.

    Raises:
        ValueError: if the shapes disagree, or a set has fewer than 40 members, of which no 20 blocks can be made.

    Source: Bińkowski et al. 2018, arXiv 1801.01401; blocks: Zaremba et al. 2013, arXiv 1307.1954.
    """
    real, features = check_sets(real, features)
    count = min(len(real), len(features))
    if count < 2 * BLOCKS:
        raise ValueError(f"an interval needs {2 * BLOCKS} examples or more of each set; got {count}")
    if subsets < 1 or size < 2:
        raise ValueError(f"expected at least 1 subset of 2 examples or more; got {subsets} of {size}")
    size = min(size, count)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        kernel_distance(*(one[torch.randperm(len(one), generator=generator)[:size]] for one in (real, features)))
        # All examples of both sets are one subset, however often it is drawn.
        for _ in range(1 if size == len(real) == len(features) else subsets)
    ]
    value = sum(drawn) / len(drawn)
    blocks = max(BLOCKS, count // size)
    orders = [torch.randperm(len(one), generator=generator).tensor_split(blocks) for one in (real, features)]
    parts = torch.tensor([kernel_distance(real[a], features[b]) for a, b in zip(*orders, strict=True)])
    spread = mean_score(parts, level=level)
    radius = (spread.high - spread.low) / 2
    told = f"{note}, mean over {len(drawn)} subsets of {size} of {len(features)} against {len(real)}"
    return Score(value, value - radius, value + radius, count, f"{told}; {level:.0%} normal interval, {blocks} blocks")


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(points: Tensor) -> Tensor:
    """Return the mean of the kernel over pairs of different points."""
    values = _kernel(points, points)
    return (values.sum() - values.diagonal().sum()) / (len(points) * (len(points) - 1))
