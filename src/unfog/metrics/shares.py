"""Shares of values in two sets: are samples distributed over classes and attributes as the data are?

Source: A. Donner and G. Y. Zou, "Closed-form confidence intervals for functions of the normal mean and standard
deviation", Stat. Methods Med. Res. 21, 2012, for the interval of a ratio from those of its parts (MOVER-R). J. Zhao et
al., "Men also like shopping: reducing gender bias amplification using corpus-level constraints", 2017, arXiv
1707.09457, for amplification. M. Saerens, P. Latinne and C. Decaestecker, "Adjusting the outputs of a classifier to new
a priori probabilities", Neural Comput. 14, 2002, for shares behind a classifier's confusion by expectation maximisation
(there from probabilities, here from counts). S. Holm, "A simple sequentially rejective multiple test procedure", Scand.
J. Stat. 6, 1979.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.metrics.interval import Score, bootstrap

_ITERATIONS = 500
_PRIOR = 0.5


class Homogeneity(NamedTuple):
    """A test of whether two sets have the same shares.

    Attributes:
        p_value: probability of a chi-square statistic that large if they have, by permutation; at least
            ``1 / (resamples + 1)``.
        expected_variation: mean total variation distance if they have, which finite counts alone leave.
    """

    p_value: float
    expected_variation: float


def counts_of(values: Tensor, size: int) -> Tensor:
    """Return how often each value occurs, ``(size,)`` float64.

    Args:
        values: ``(N,)`` int64 in 0 .. ``size - 1``, N at least 1.
        size: number of values.

    Raises:
        ValueError: if there is none, or one lies outside.
    """
    if values.ndim != 1 or len(values) == 0 or int(values.min()) < 0 or int(values.max()) >= size:
        raise ValueError(f"expected a vector of whole numbers from 0 to {size - 1}; got {tuple(values.shape)}")
    return torch.bincount(values, minlength=size).double()


def ratio(numerator: Score, denominator: Score, *, note: str = "") -> Score:
    """Return the ratio of two independent shares with the interval that follows from theirs.

    With estimates ``a, b`` and intervals ``[l, u]`` and ``[m, v]`` the ends are

        (a b - sqrt(a^2 b^2 - l v (2 a - l) (2 b - v))) / (v (2 b - v)),
        (a b + sqrt(a^2 b^2 - u m (2 a - u) (2 b - m))) / (m (2 b - m)).

    Args:
        numerator: not below 0.
        denominator: above 0, as is its lower end, and its upper end below twice its value.
        note: what is compared.

    Raises:
        ValueError: if the denominator is too uncertain for a ratio.

    Source: Donner and Zou 2012, see the module.
    """
    a, low, high = numerator.value, numerator.low, numerator.high
    b, least, most = denominator.value, denominator.low, denominator.high
    if least <= 0 or most >= 2 * b:
        raise ValueError(f"the denominator of a ratio must be known to be above 0; got {b:g} in [{least:g}, {most:g}]")
    under = a * a * b * b - low * most * (2 * a - low) * (2 * b - most)
    over = a * a * b * b - high * least * (2 * a - high) * (2 * b - least)
    ends = (
        (a * b - math.sqrt(max(0.0, under))) / (most * (2 * b - most)),
        (a * b + math.sqrt(max(0.0, over))) / (least * (2 * b - least)),
    )
    count = min(numerator.count, denominator.count)
    # Rounding alone can put the value an ulp outside.
    return Score(a / b, min(max(0.0, ends[0]), a / b), max(ends[1], a / b), count, f"{note}; MOVER-R interval")


def total_variation(a: Tensor, b: Tensor, size: int, *, seed: int, resamples: int = 200) -> Score:
    """Return half the sum of the absolute differences of the shares: the share that would have to be moved.

    Args:
        a: ``(N,)`` values of one set, int64 in 0 .. ``size - 1``.
        b: ``(M,)`` values of the other.
        size: number of values.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """

    def distance(chosen: Sequence[Tensor]) -> float:
        return _variation(counts_of(a[chosen[0]], size), counts_of(b[chosen[1]], size))

    note = "total variation distance of the shares"
    found = bootstrap(distance, (len(a), len(b)), seed=seed, resamples=resamples, recentre=True, note=note)
    return replace(found, low=max(0.0, found.low))


def amplification(samples: Tensor, data: Tensor, size: int, *, seed: int, resamples: int = 200) -> Score:
    """Return by how much the values that are common in the data have become more common: 0 if they have not.

    The sum, over the values whose share in the data is above ``1 / size``, of the share among the samples less that in
    the data; below 0 where samples are more even than the data.

    Args:
        samples: ``(N,)`` values of samples, int64 in 0 .. ``size - 1``.
        data: ``(M,)`` values of real examples.
        size: number of values.
        seed: of the bootstrap; which values are common is not resampled.
        resamples: of the bootstrap.

    Source: Zhao et al. 2017, arXiv 1707.09457, section 3, for one object.
    """
    common = counts_of(data, size) / len(data) > 1 / size

    def gain(chosen: Sequence[Tensor]) -> float:
        mine, real = counts_of(samples[chosen[0]], size), counts_of(data[chosen[1]], size)
        return float((mine / mine.sum() - real / real.sum())[common].sum())

    note = "gain in share of the values that are common in the data"
    return bootstrap(gain, (len(samples), len(data)), seed=seed, resamples=resamples, note=note)


def compared(a: Tensor, b: Tensor, size: int, *, seed: int, resamples: int = 1000) -> Homogeneity:
    """Test whether two sets have the same shares, by exchanging members at random.

    Args:
        a: ``(N,)`` values of one set, int64 in 0 .. ``size - 1``.
        b: ``(M,)`` values of the other.
        size: number of values.
        seed: of the permutations.
        resamples: number of permutations.
    """
    first, second = counts_of(a, size), counts_of(b, size)
    pooled, total = torch.cat([a, b]), first + second
    expected = total * len(a) / len(pooled)
    # Both sets' terms of the chi-square statistic are multiples of the first's, so its own order them alike.
    used = total > 0

    def statistic(counts: Tensor) -> float:
        return float(((counts - expected)[used].square() / expected[used]).sum())

    observed = statistic(first)
    generator = torch.Generator().manual_seed(seed)
    reached, variation = 0, 0.0
    for _ in range(resamples):
        counts = counts_of(pooled[torch.randperm(len(pooled), generator=generator)[: len(a)]], size)
        # Equal tables may differ in the last bit of their sums.
        reached += statistic(counts) >= observed * (1 - 1e-12)
        variation += _variation(counts, total - counts)
    return Homogeneity((1 + reached) / (1 + resamples), variation / resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together: Holm's, each the smallest level that would reject its test."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = most
    return adjusted


def behind_confusion(told: Tensor, truth: Tensor, answers: Tensor, size: int) -> Tensor:
    """Return the shares that most likely lie behind a classifier's answers: ``(size,)`` float64, summing to 1.

    The answers are taken for draws from ``sum_i share_i P(answer | i)``, where ``P(answer | i)`` is how the classifier
    answers to real examples of class ``i``. That holds if it confuses samples as it confuses real examples.

    Args:
        told: ``(N,)`` its answers to the samples, int64 in 0 .. ``size - 1``.
        truth: ``(M,)`` classes of real examples that it was not trained on.
        answers: ``(M,)`` its answers to those.
        size: number of classes.

    Source: Saerens et al. 2002, see the module.
    """
    counts = counts_of(told, size)
    confusion = torch.bincount(truth * size + answers, minlength=size * size).reshape(size, size).double()
    # Half an example of every answer, spread over all: no answer is impossible, and few examples count for less.
    confusion += _PRIOR / size
    confusion /= confusion.sum(1, keepdim=True)
    shares = torch.full((size,), 1 / size, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        joint = shares[:, None] * confusion
        new = (joint / joint.sum(0) * counts).sum(1) / counts.sum()
        moved = float((new - shares).abs().max())
        shares = new
        if moved < 1e-12:
            break
    return shares


def _variation(a: Tensor, b: Tensor) -> float:
    return float((a / a.sum() - b / b.sum()).abs().sum()) / 2
