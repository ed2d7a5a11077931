"""The noise of a trajectory: increments of one path, so that a seed gives the same composition at every step count.

The reverse process adds noise between half log-SNRs a < b. In units of what it has added by then it is an
Ornstein-Uhlenbeck path Y, ``E[Y_a Y_b] = e^(a - b)``, and the noise of a step its normalised increment

    xi(a, b) = (Y_b - e^(a - b) Y_a) / sqrt(1 - e^(2 (a - b))),

a standard normal number, independent of those of steps that do not overlap. Two steps make up their joint one,

    xi(a, b) = sqrt(f) xi(a, m) + sqrt(1 - f) xi(m, b)

with the share f of the noise up to m (``table.share``). So a step is split by a rotation with one fresh number n:
``xi(a, m) = sqrt(f) xi + sqrt(1 - f) n`` and ``xi(m, b) = sqrt(1 - f) xi - sqrt(f) n``. The path is built that way from
the whole axis downwards, halved in flow time ``alpha / (alpha + sigma)``: the first halvings belong to the seed alone,
and a table only cuts what is left to fit its steps. Step counts that share no times share the path down to 1/64 of the
axis.

Source:
    Levy's construction of Brownian motion, for a stationary path; with ``eta = 1`` in ``table.transition`` the noise is
    exactly that of Song et al. 2021 (arXiv 2011.13456), eq. 6, with x0 held constant.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from unfog.diffusion.random import Purpose, Rng
from unfog.sampling.table import Row, noise_weights, share, span_ends

_HALVINGS = 6
_CUTS = 1 << _HALVINGS
"""Below it are the keys of the halvings, by their place in the tree; from it on those of a table's cuts, in order."""
_APART = 1 << 31
"""From here on are the keys of noise that is no increment of the path."""
_AT_ONCE = 1 << 22  # numbers drawn ahead, so that few large draws replace many small ones


class _Split(NamedTuple):
    """An interval of the path that is cut in two: at which half log-SNR, the key of the fresh number, and both parts.

    A part that is None stays whole.
    """

    at: float
    key: int
    left: "_Split | None"
    right: "_Split | None"


def noises(rows: Sequence[Row], x: Tensor, rng: Rng) -> Iterator[Tensor]:
    """Yield the unit noise of each move of a table that wants some, in the order of the moves.

    Args:
        rows: the table.
        x: ``(B, ...)`` what the noise is shaped and typed like.
        rng: one key per sample.
    """
    ends, weights = span_ends(rows), noise_weights(rows)
    cells = max(0, len(ends) - 1)
    apart = _drawn([_APART + k for k in range(sum(max(cell) >= cells for cell in weights))], x, rng)
    path = _cells(ends, x, rng)
    last_use = {cell: index for index, combination in enumerate(weights) for cell in combination}
    known: dict[int, Tensor] = {}
    reached = 0
    for index, combination in enumerate(weights):
        if max(combination) >= cells:
            yield next(apart)
            continue
        while reached <= max(combination):
            known[reached] = next(path)
            reached += 1
        yield _combined([(known[cell], weight) for cell, weight in combination.items()])
        for cell in combination:
            if last_use[cell] == index:
                del known[cell]


def _combined(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    (first, weight), *others = terms
    if not others:
        return first  # a whole increment: its weight is 1
    total = first * weight
    for term, weight in others:
        total.add_(term, alpha=weight)
    return total


def _drawn(keys: Sequence[int], x: Tensor, rng: Rng) -> Iterator[Tensor]:
    """Yield the normal numbers of keys, drawn several at once."""
    ahead = max(1, _AT_ONCE // max(1, x.numel()))
    for start in range(0, len(keys), ahead):
        yield from rng.normals(x.shape[1:], Purpose.STEP, keys[start : start + ahead]).to(x).unbind()


def _cells(ends: Sequence[float], x: Tensor, rng: Rng) -> Iterator[Tensor]:
    """Yield the increments of the path between neighbours of ``ends``, in their order."""
    finite = [end for end in ends if math.isfinite(end)]
    tree = _halved(-math.inf, math.inf, 1, finite, {end: k for k, end in enumerate(finite)})
    draws = _drawn([0, *_keys(tree)], x, rng)
    joined, start = x, -math.inf
    for a, b, xi in _pieces(tree, -math.inf, math.inf, next(draws), draws):
        # Halvings lie between the ends: neighbours are joined again.
        joined = xi if a == start else _rotated(joined, xi, share(start, a, b))
        if b in ends:
            if start in ends:
                yield joined
            start = b


def _halved(a: float, b: float, place: int, inside: Sequence[float], order: Mapping[float, int]) -> _Split | None:
    """Return how an interval is halved until no end, or a last piece, is inside.

    Args:
        a: lower end of the interval, half log-SNR.
        b: its upper end.
        place: in the tree: 1 for the whole axis, twice as much and one more for the halves.
        inside: the ends of spans that lie inside, rising.
        order: numbers of all ends.
    """
    if not inside:
        return None
    if place >= _CUTS:
        return _Split(inside[0], _CUTS + order[inside[0]], None, _halved(inside[0], b, place, inside[1:], order))
    level = place.bit_length()
    flow = (2 * (place - (1 << (level - 1))) + 1) / (1 << level)
    m = math.log(flow) - math.log1p(-flow)
    k = bisect_left(inside, m)
    right = inside[k + 1 :] if inside[k : k + 1] == [m] else inside[k:]
    return _Split(m, place, _halved(a, m, 2 * place, inside[:k], order), _halved(m, b, 2 * place + 1, right, order))


def _keys(tree: _Split | None) -> Iterator[int]:
    """Yield the keys of a tree in the order in which ``_pieces`` draws them."""
    if tree is not None:
        yield tree.key
        yield from _keys(tree.left)
        yield from _keys(tree.right)


def _pieces(
    tree: _Split | None, a: float, b: float, xi: Tensor, draws: Iterator[Tensor]
) -> Iterator[tuple[float, float, Tensor]]:
    """Yield the whole parts of an interval, from left to right, with their increments."""
    if tree is None:
        yield a, b, xi
        return
    fresh, part = next(draws), share(a, tree.at, b)
    yield from _pieces(tree.left, a, tree.at, _rotated(xi, fresh, part), draws)
    yield from _pieces(tree.right, tree.at, b, _rotated(xi, -fresh, 1.0 - part), draws)


def _rotated(first: Tensor, second: Tensor, part: float) -> Tensor:
    """Return ``sqrt(part) first + sqrt(1 - part) second``."""
    return (first * math.sqrt(part)).add_(second, alpha=math.sqrt(1.0 - part))
