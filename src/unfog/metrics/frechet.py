"""The Fréchet distance between two sets of features, each taken as a Gaussian.

    d^2 = |m_1 - m_2|^2 + Tr(S_1) + Tr(S_2) - 2 Tr((S_1^1/2 S_2 S_1^1/2)^1/2)

With the features of the published Inception network this is the number called FID. This module knows nothing
of networks. Whoever reports a distance says which features it was taken of; two distances compare only if
features and counts agree, because the estimate is biased upwards by about 1 / count.

Source: D. C. Dowson and B. V. Landau, "The Fréchet distance between multivariate normal distributions", J.
Multivariate Anal. 12, 1982. M. Heusel et al., 2017, arXiv 1706.08500 (its use for generated images). Merging
of moments: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        mean: ``(D,)`` float64.
        covariance: ``(D, D)`` float64, symmetric, normalised by ``count - 1`` (zero for a single example).
        count: number of examples.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        dim = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if tuple(self.covariance.shape) != (dim, dim):
            raise ValueError(
                "expected a mean (D,) and a covariance (D, D); "
                f"got {tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            )
        if self.mean.dtype != torch.float64 or self.covariance.dtype != torch.float64:
            raise TypeError(f"moments are float64; got {self.mean.dtype} and {self.covariance.dtype}")
        if self.count < 1:
            raise ValueError(f"moments need at least one example; got count {self.count}")
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("the moments are not finite; look for NaN or infinity in the features")

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Return the moments of ``features``, ``(N, D)`` of any real dtype.

        Raises:
            ValueError: if there is no example, the shape is not ``(N, D)``, or a number is not finite.
        """
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"expected features (N, D) with N >= 1; got {tuple(features.shape)}")
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return Moments(mean, centred.T @ centred / max(len(features) - 1, 1), len(features))

    @staticmethod
    def stream(batches: Iterable[Tensor]) -> "Moments":
        """Return the moments of all examples of ``batches``, each ``(n, D)``, holding one batch at a time.

        Raises:
            ValueError: if there is no batch.
        """
        parts = (Moments.of(batch) for batch in batches)
        first = next(parts, None)
        if first is None:
            raise ValueError("got no batch of features; moments need at least one example")
        return reduce(Moments.merge, parts, first)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets taken together.

        Raises:
            ValueError: if the dimensions differ.
        """
        _check_same_dimension(self, other)
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter = scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(self.mean + shift * (other.count / count), scatter / (count - 1), count)


def frechet_distance(a: Moments, b: Moments, *, allow_singular: bool = False) -> float:
    """Return the squared Fréchet distance of two Gaussians, the quantity that publications print.

    The trace of the root is computed as the sum of the singular values of ``S_1^1/2 S_2^1/2``: real and
    non-negative by construction, and accurate where the covariances are rank deficient, since no small
    eigenvalue is squared.

    Args:
        a: moments of one set.
        b: moments of the other.
        allow_singular: accept sets with no more examples than dimensions. Their covariance has no full rank,
            and the distance says more about the counts than about the distributions.

    Raises:
        ValueError: if the dimensions differ, or a set is too small and ``allow_singular`` is not set.

    Source: Dowson and Landau 1982, see the module.
    """
    _check_same_dimension(a, b)
    dim, count = len(a.mean), min(a.count, b.count)
    if count <= dim and not allow_singular:
        raise ValueError(
            f"{count} examples in {dim} dimensions give a singular covariance and a misleading distance: "
            f"use at least {dim + 1} examples, features of fewer dimensions, or allow_singular=True"
        )
    overlap = torch.linalg.svdvals(roots(a.covariance).root @ roots(b.covariance).root).sum()
    return distance_at(a, b, overlap)


def distance_at(a: Moments, b: Moments, overlap: Tensor) -> float:
    """Return the distance of two Gaussians whose trace of the root of the product of covariances is ``overlap``."""
    shift = a.mean - b.mean
    distance = shift @ shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    # A squared distance; rounding alone can put it below zero.
    return max(float(distance), 0.0)


class Roots(NamedTuple):
    """Symmetric square root of a covariance ``(D, D)``, and the pseudo-inverse of that root."""

    root: Tensor
    inverse: Tensor


def roots(covariance: Tensor) -> Roots:
    """Return the roots of a positive semi-definite matrix ``(D, D)``; what is zero within rounding stays zero."""
    values, vectors = torch.linalg.eigh(covariance)
    # Below the rounding error of the decomposition an eigenvalue is zero; its root would be 1e-8, not 1e-16.
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor
    scales = torch.where(kept, values, 0).sqrt()
    inverses = torch.where(kept, values, torch.inf).rsqrt()
    return Roots((vectors * scales) @ vectors.T, (vectors * inverses) @ vectors.T)


def _check_same_dimension(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets need the same features; got {len(a.mean)} and {len(b.mean)} dimensions")
