"""What data are to a trainer: batches that are a pure function of a running position.

The examples of a run are numbered from its start: position ``n`` lies in epoch ``n // N`` of a set of ``N`` examples.
Because a batch is looked up by position, a resumed run, another batch size and another number of processes
see the same examples in the same order.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """Some examples, with the numbers that identify them.

    Attributes:
        values: the fields by name. ``x0`` is ``(B, C, ...)`` float32 in [-1, 1]; ``label`` is ``(B,)`` int64.
        ids: ``(B,)`` int64, which example of the data set.
        epochs: ``(B,)`` int64, how often the set was passed through before.
        positions: ``(B,)`` int64, running number of the example since the start of the run.
    """

    values: dict[str, Tensor]
    ids: Tensor
    epochs: Tensor
    positions: Tensor


class Batches(Protocol):
    """A source of batches by running position."""

    def take(self, start: int, count: int) -> Batch:
        """Return the examples at positions ``start`` to ``start + count - 1``; the same answer each time."""
        ...
