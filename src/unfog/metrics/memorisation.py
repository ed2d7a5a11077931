"""Near-copies of training examples among samples, found with a threshold that unseen real examples set.

How near a sample is to a training example says little by itself: plain pictures are near to many. What tells a copy is
that one training example is much nearer than the others. A sample is therefore judged by its *ratio*: the distance to
its nearest training example over the mean distance to the next ones. Copies have ratios near 0, and new pictures below
1, by how much depends on the data. So the threshold is not chosen but calibrated: real examples that the model has not
seen are judged in the same way, and the threshold is the value that a share ``level`` of them falls below. By
construction a new picture that is distributed like them is then flagged with probability ``level`` at most, whatever
the data and the distance (conformal p-values).

Pictures are compared so that what a copy may have gone through changes little: mirroring, a shift by some pixels,
brightness, contrast, light noise and compression. They are shrunk to at most 32 pixels, smoothed unless they are small,
cut to a window in the middle, centred and brought to unit length; of the samples every shift and mirroring is tried.
That is done in full only against the candidates that a coarse comparison leaves.

Source: the ratio to the nearest other examples, N. Carlini et al., "Extracting training data from diffusion models",
2023, arXiv 2301.13188, section 5 (there with a factor of its own and a threshold chosen by eye; in pixels, without
alignment); features in the place of pixels, G. Somepalli et al., "Diffusion art or digital forgery?", 2022, arXiv
2212.03860. Conformal p-values and that the procedure of Benjamini and Hochberg holds with them: S. Bates et al.,
"Testing for outliers with conformal p-values", 2021, arXiv 2104.08279.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.metrics.interval import LEVEL, Score
from unfog.metrics.neighbours import check_sets, nearest_neighbours

NEIGHBOURS = 50
"""Training examples that a sample is compared with in full; the mean distance to all but the nearest is its measure."""

SIDE = 32
"""Longest side of the pictures that are compared, in pixels."""

_CELLS = 8
_FINE = 16
_GREY = 1.0
_BLOCK = 4_000_000
_CHUNK = 2048
_QUERIES = 256
_POINTS = 8192


class Likeness(NamedTuple):
    """How near samples come to training examples.

    Attributes:
        ratios: ``(N,)`` float64, the distance to the nearest training example over the mean of the next ones; not below
            0, and up to 1.
        distances: ``(N,)`` float64, the distance to the nearest.
        indices: ``(N,)`` int64, which example it is.
    """

    ratios: Tensor
    distances: Tensor
    indices: Tensor


class Threshold(NamedTuple):
    """The ratio below which a sample is flagged.

    Attributes:
        ratio: samples below it are flagged.
        level: probability with which a new picture is flagged, at most.
        false_positives: the share of new pictures that this very threshold flags: ``k / (n + 1)`` for the k-th smallest
            of n ratios, with the interval that is left by the calibration set being finite.
    """

    ratio: float
    level: float
    false_positives: Score


def thumbnails(images: Tensor) -> Tensor:
    """Return pictures as they are compared: no side longer than 32 pixels.

    Args:
        images: ``(N, C, H, W)`` uint8.

    Returns:
        ``(N, C, h, w)`` uint8, means over areas; the pictures themselves if they are small.

    Raises:
        TypeError: if they are not uint8.
        ValueError: if they have another shape.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"pictures are compared as uint8, as they would be saved; got {images.dtype}")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"expected pictures (N, C, H, W) with N >= 1; got {tuple(images.shape)}")
    height, width = images.shape[2:]
    longest = max(height, width)
    if longest <= SIDE:
        return images
    size = [max(1, round(side * SIDE / longest)) for side in (height, width)]
    pieces = (F.interpolate(piece.float(), size=size, mode="area") for piece in torch.split(images, _CHUNK))
    return torch.cat([piece.round_().to(torch.uint8) for piece in pieces])


def picture_likeness(samples: Tensor, training: Tensor, *, neighbours: int = NEIGHBOURS) -> Likeness:
    """Compare pictures with training examples, whatever shift, mirroring, brightness or light noise lies between.

    Memory beyond the arguments is some 100 MB and the coarse comparison's 192 numbers for each training example of 32
    pixels in colour.

    Args:
        samples: ``(N, C, H, W)`` uint8.
        training: ``(M, C, H, W)`` uint8, the examples that the generator was trained on; only their ``thumbnails`` are
            looked at, so these may be given instead.
        neighbours: training examples that each sample is compared with in full, fewer if there are fewer; at least 2.

    Raises:
        TypeError: if the pictures are not uint8.
        ValueError: if the shapes disagree, or a side is shorter than 4 pixels.
    """
    samples, training = thumbnails(samples), thumbnails(training)
    check_sets(samples, training)
    height, width = samples.shape[2:]
    if min(height, width) < 4:
        raise ValueError(f"expected pictures of at least 4 pixels either way; got {height} x {width}")
    neighbours = _checked(neighbours, len(training))
    reach = max(1, round(max(height, width) / 16))
    candidates = _candidates(samples, training, neighbours, reach)
    window = (height - 2 * reach) * (width - 2 * reach) * samples.shape[1]
    block = max(1, _BLOCK // (window * neighbours))
    found = [
        _aligned(some, training, ids, reach)
        for some, ids in zip(torch.split(samples, block), torch.split(candidates, block), strict=True)
    ]
    return _likeness(torch.cat(found), candidates)


def feature_likeness(samples: Tensor, training: Tensor, *, neighbours: int = NEIGHBOURS) -> Likeness:
    """Compare features of samples with those of training examples, by Euclidean distance.

    Args:
        samples: ``(N, D)``.
        training: ``(M, D)``.
        neighbours: nearest training examples that the yardstick is made of, fewer if there are fewer; at least 2.

    Raises:
        ValueError: if the shapes disagree.
    """
    found = nearest_neighbours(samples, training, _checked(neighbours, len(training)))
    return _likeness(found.distances, found.indices)


def rank_of(level: float, count: int) -> int:
    """Return which of the ratios of held-out examples, the smallest first, is the threshold of a level.

    Args:
        level: strictly between 0 and 1.
        count: of held-out examples.

    Raises:
        ValueError: if there are too few for such a level, or the level is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of false positives must lie strictly between 0 and 1; got {level}")
    # The slack is for levels such as 0.01, whose product is not whole in binary.
    rank = math.floor(level * (count + 1) + 1e-9)
    if rank < 1:
        needed = math.ceil(1 / level - 1 - 1e-9)
        raise ValueError(f"a level of {level:g} needs {needed} held-out examples or more; got {count}")
    return rank


def calibrated(held_out: Tensor, level: float = 0.01) -> Threshold:
    """Return the threshold that flags a share ``level`` of new pictures at most.

    Args:
        held_out: ``(n,)`` ratios of real examples that the generator was not trained on; at least ``1 / level - 1``.
        level: strictly between 0 and 1.

    Raises:
        ValueError: if there are too few for such a level, or the level is out of range.
    """
    if held_out.ndim != 1:
        raise ValueError(f"expected a vector of ratios; got {tuple(held_out.shape)}")
    count = len(held_out)
    rank = rank_of(level, count)
    low, high = (_beta_quantile(rank, count + 1 - rank, p) for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    note = (
        f"share of new pictures below ratio number {rank} of {count} held-out ones, the smallest first; {LEVEL:.0%} "
        "interval of the Beta distribution of that share"
    )
    ratio = float(held_out.double().kthvalue(rank).values)
    return Threshold(ratio, level, Score(rank / (count + 1), low, high, count, note))


def p_values(ratios: Tensor, held_out: Tensor) -> Tensor:
    """Return conformal p-values ``(1 + number of held-out ratios not above) / (n + 1)``: ``(N,)`` float64.

    A sample whose p-value is not above ``level`` lies below the threshold of ``calibrated``, and the other way round.

    Args:
        ratios: ``(N,)`` of samples.
        held_out: ``(n,)`` of held-out real examples.

    Source: Bates et al. 2021, arXiv 2104.08279.
    """
    order = held_out.double().sort().values
    return (1 + torch.searchsorted(order, ratios.double(), right=True)).double() / (len(order) + 1)


def false_discovery_rates(p: Tensor) -> Tensor:
    """Return for each p-value the rate of false discoveries if it and all smaller ones were taken for discoveries.

    Args:
        p: ``(N,)`` p-values.

    Returns:
        ``(N,)`` float64 in [0, 1].

    Source: Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", J. R. Stat. Soc. B 57, 1995.
    """
    order = p.double().argsort(stable=True)
    scaled = p.double()[order] * len(p) / torch.arange(1, len(p) + 1, dtype=torch.float64)
    rates = torch.empty_like(scaled)
    rates[order] = scaled.flip(0).cummin(0).values.flip(0).clamp(max=1)
    return rates


def _checked(neighbours: int, available: int) -> int:
    if neighbours < 2 or available < 2:
        raise ValueError(f"expected 2 neighbours or more and as many training examples; got {neighbours}, {available}")
    return min(neighbours, available)


def _likeness(distances: Tensor, indices: Tensor) -> Likeness:
    """Return ratios from the distances ``(N, k)`` to some training examples, in any order."""
    distances, order = distances.double().sort(dim=1, stable=True)
    yardstick = distances[:, 1:].mean(1).clamp(min=torch.finfo(torch.float64).tiny)
    return Likeness(distances[:, 0] / yardstick, distances[:, 0], indices.gather(1, order)[:, 0])


def _candidates(samples: Tensor, training: Tensor, count: int, reach: int) -> Tensor:
    """Return ``(N, count)`` int64: the training examples that a coarse comparison finds nearest to each sample.

    Samples are moved by a pixel each way and mirrored: a thin line loses most of its likeness when it is moved by one.
    """
    points = _coarse(training, 0, 0, reach)
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    found = []
    for some in torch.split(samples, _QUERIES):
        moved = [_coarse(image, *shift, reach) for image in (some, some.flip(-1)) for shift in shifts]
        cosines = torch.empty(len(some), 0)
        indices = torch.empty(len(some), 0, dtype=torch.int64)
        for start in range(0, len(points), _POINTS):
            chunk = points[start : start + _POINTS].T
            best = moved[0] @ chunk
            for image in moved[1:]:
                torch.maximum(best, image @ chunk, out=best)
            top = best.topk(min(count, best.shape[1]))
            cosines = torch.cat([cosines, top.values], 1)
            indices = torch.cat([indices, top.indices + start], 1)
            cosines, order = cosines.topk(min(count, cosines.shape[1]))
            indices = indices.gather(1, order)
        found.append(indices)
    return torch.cat(found)


def _coarse(pictures: Tensor, down: int, right: int, reach: int) -> Tensor:
    """Return what pictures are compared by at first: their window in the middle, moved by ``down`` and ``right``.

    Returns:
        ``(N, D)`` float32 of unit length, of means over 8 cells a side unless the pictures are small.
    """
    height, width = pictures.shape[2:]
    longest = max(height, width)
    rows, columns = slice(reach + down, height - reach + down), slice(reach + right, width - reach + right)
    made = []
    for piece in torch.split(pictures[:, :, rows, columns], _CHUNK):
        seen = piece.float()
        if longest > _FINE:
            seen = F.interpolate(
                seen, size=[max(1, round(side * _CELLS / longest)) for side in (height, width)], mode="area"
            )
        made.append(_unit(seen.flatten(1)))
    return torch.cat(made)


def _aligned(samples: Tensor, training: Tensor, ids: Tensor, reach: int) -> Tensor:
    """Return ``(n, k)`` distances of samples to their candidates, each at the best shift and mirroring."""
    height, width = samples.shape[2:]
    smooth = _smoothed(samples)
    inner = (height - 2 * reach, width - 2 * reach)
    windows = torch.stack(
        [
            image[:, :, down : down + inner[0], right : right + inner[1]].flatten(1)
            for image in (smooth, smooth.flip(-1))
            for down, right in _offsets(reach)
        ],
        1,
    )
    middle = _smoothed(training[ids.flatten()])[:, :, reach : reach + inner[0], reach : reach + inner[1]]
    examples = _unit(middle.flatten(1)).reshape(*ids.shape, -1)
    cosines = torch.bmm(_unit(windows), examples.transpose(1, 2)).amax(1)
    return (2 - 2 * cosines).clamp_(min=0).sqrt_()


def _offsets(reach: int) -> list[tuple[int, int]]:
    """Return where the window of a picture may begin."""
    return [(down, right) for down in range(2 * reach + 1) for right in range(2 * reach + 1)]


def _smoothed(pictures: Tensor) -> Tensor:
    """Return pictures as floats, each pixel a mean over its 3 x 3 neighbours with the weights 1, 2, 1 both ways.

    Small ones are left: of 8 pixels a side the border, which a shift changes, would reach into all of the window.
    """
    if max(pictures.shape[2:]) <= _FINE:
        return pictures.float()
    x = F.pad(pictures.float(), (1, 1, 1, 1), mode="replicate")
    x = (x[:, :, 1:-1] * 2).add_(x[:, :, :-2]).add_(x[:, :, 2:])
    return (x[..., 1:-1] * 2).add_(x[..., :-2]).add_(x[..., 2:]).div_(16)


def _unit(vectors: Tensor) -> Tensor:
    """Centre vectors ``(..., D)`` of grey levels and give them unit length: ``(..., D + 1)``.

    The last entry stands for a contrast of one grey level that every picture has beside its own, so that two blank ones
    are alike, and no noise of a blank one is blown up.
    """
    vectors = vectors - vectors.mean(-1, keepdim=True)
    floor = torch.full_like(vectors[..., :1], _GREY * math.sqrt(vectors.shape[-1]))
    return F.normalize(torch.cat([vectors, floor], -1), dim=-1)


def _beta_quantile(a: int, b: int, p: float) -> float:
    """Return the quantile of a Beta distribution: that of the a-th smallest of a + b - 1 uniform numbers."""
    count = a + b - 1
    choices = [math.lgamma(count + 1) - math.lgamma(j + 1) - math.lgamma(count - j + 1) for j in range(a)]
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        x = (low + high) / 2
        # The a-th smallest lies above x if fewer than a of the numbers lie below.
        above = sum(
            math.exp(choice + j * math.log(x) + (count - j) * math.log1p(-x)) for j, choice in enumerate(choices)
        )
        low, high = (x, high) if 1 - above < p else (low, x)
    return (low + high) / 2
