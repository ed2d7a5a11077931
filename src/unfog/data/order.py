"""The order of the examples of a run, as a pure function of (seed, epoch).

The examples of a run are numbered from its start. Position ``n`` of a set of ``N`` examples lies in epoch ``n // N``
and is the ``n % N``-th element of that epoch's permutation. Nothing is remembered between calls but a cache, so a
resumed run, another batch size and another number of processes see the same examples in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of ``count`` examples in one epoch.

    The raw stream of Philox, which its definition fixes, is sorted. NumPy reserves the right to change what
    ``Generator.permutation`` makes of the same stream, and an order that changes with NumPy's version cannot be
    resumed.

    Args:
        count: number of examples, at least 1.
        seed: 0 <= seed < 2**63.
        epoch: 0 <= epoch < 2**63.

    Returns:
        ``(count,)`` int64, each of 0 .. count - 1 once.
    """
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    # Stable, so that two equal keys of 64 bits, should they ever occur, fall the same way on every machine.
    return np.argsort(generator.random_raw(count), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Order:
    """Which example stands at which running position.

    Attributes:
        count: number of examples in the set, at least 1.
        seed: chooses the permutations, 0 <= seed < 2**63.
        shuffle: False leaves each epoch in the order of the set.
    """

    count: int
    seed: int
    shuffle: bool = True
    _of_epoch: Callable[[int], NDArray[np.int64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"an order needs at least one example, but count is {self.count}: the set is empty")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 .. 2**63 - 1, but is {self.seed}")
        # A batch straddles at most two epochs unless it is larger than the set.
        cached = lru_cache(maxsize=2)(partial(permutation, self.count, self.seed))
        object.__setattr__(self, "_of_epoch", cached)

    def epochs(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return for each position how often the set was passed through before."""
        return self._checked(positions) // self.count

    def ids(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the examples at some running positions.

        Args:
            positions: whole numbers >= 0 of any shape and in any order; they may lie in several epochs.

        Returns:
            int64 of the same shape, each in 0 .. count - 1.

        Raises:
            ValueError: if a position is negative.
            TypeError: if positions are not whole numbers.
        """
        running = self._checked(positions)
        epochs, inside = np.divmod(running, self.count)
        if not self.shuffle:
            return inside
        found = np.empty_like(inside)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._of_epoch(int(epoch))[inside[here]]
        return found

    def _checked(self, positions: ArrayLike) -> NDArray[np.int64]:
        running = np.asarray(positions)
        if running.size and running.dtype.kind not in "iu":
            raise TypeError(f"positions must be whole numbers, but have dtype {running.dtype}")
        if running.size and running.min() < 0:
            raise ValueError(f"positions count from 0 at the start of the run, but one is {running.min()}")
        return running.astype(np.int64)
