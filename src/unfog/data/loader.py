"""Batches of a data set, shuffled and flipped as a pure function of the position, and prepared ahead of time."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch

from unfog.data.batch import Batch, Batches
from unfog.data.dataset import Dataset
from unfog.data.order import Order
from unfog.diffusion.random import Purpose, Rng

_PICTURES = ("x0", "pixels")


class ShuffledBatches:
    """The examples of a data set in a new order each epoch, optionally mirrored left to right.

    Args:
        dataset: the examples.
        seed: decides the order and the flips, 0 <= seed < 2**63.
        shuffle: False gives each epoch in the order of the data set.
        flip: mirror each picture with probability 1/2, drawn anew for each example in each epoch.
        fields: names of the fields to deliver; None delivers all.

    Raises:
        ValueError: if the data set is empty or lacks a field, or a flip is asked without a picture to flip.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        *,
        shuffle: bool = True,
        flip: bool = False,
        fields: Sequence[str] | None = None,
    ) -> None:
        known = dataset.info.fields
        chosen = tuple(known if fields is None else fields)
        if missing := [name for name in chosen if name not in known]:
            raise ValueError(f"{dataset.info.name} has no field {missing[0]!r}; its fields are {', '.join(known)}")
        pictures = tuple(name for name in chosen if name in _PICTURES and len(known[name].shape) == 3)
        if flip and not pictures:
            raise ValueError(f"flip=True, but none of the fields {chosen} holds pictures (C, H, W)")
        self.dataset = dataset
        self.order = Order(len(dataset), seed, shuffle)
        self.fields = chosen
        self._flipped = pictures if flip else ()

    def take(self, start: int, count: int) -> Batch:
        """Return the examples at positions ``start`` to ``start + count - 1``; the same answer each time.

        Raises:
            ValueError: if ``start`` is negative or ``count`` not positive.
        """
        if start < 0 or count < 1:
            raise ValueError(f"expected start >= 0 and count >= 1, but start is {start} and count is {count}")
        running = np.arange(start, start + count, dtype=np.int64)
        chosen = self.order.ids(running)
        gathered = self.dataset.gather(chosen)
        ids, epochs = torch.from_numpy(chosen), torch.from_numpy(self.order.epochs(running))
        values = {name: gathered[name] for name in self.fields}
        if self._flipped:
            mirrored = Rng.of(self.order.seed, ids, epochs).uniform((), Purpose.AUGMENT) < 0.5  # (B,)
            for name in self._flipped:
                values[name] = torch.where(mirrored.view(-1, 1, 1, 1), values[name].flip(-1), values[name])
        return Batch(values, ids, epochs, torch.from_numpy(running))


@dataclass(frozen=True)
class _Guess:
    start: int
    count: int
    batch: Future[Batch]


class Prefetched:
    """Batches prepared by a thread while the last one is being worked on.

    After ``take(start, count)`` it is guessed that ``take(start + stride, count)`` follows, and so on ``depth`` times.
    A wrong guess costs only time: the batch is then made on the spot. What goes wrong in a guess is raised by the
    ``take`` that asks for it. For one consumer at a time.

    Args:
        batches: where the batches come from; its ``take`` must allow two threads at once.
        depth: how many batches to keep ready, at least 1.
        stride: positions from one take to the next; ``count`` unless given. One of several processes that share each
            batch passes over the parts of the others.

    Attributes:
        waited: seconds that ``take`` has spent waiting so far, prepared or not.

    Raises:
        ValueError: if ``depth`` is below 1.
    """

    def __init__(self, batches: Batches, depth: int = 2, *, stride: int | None = None) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, but is {depth}; use the batches themselves to prepare nothing")
        self.waited = 0.0
        self._batches = batches
        self._depth = depth
        self._stride = stride
        self._ready: deque[_Guess] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._closed = False

    def take(self, start: int, count: int) -> Batch:
        """Return the same as the wrapped batches' ``take``.

        Raises:
            RuntimeError: after ``close``.
            Exception: whatever the wrapped ``take`` raises.
        """
        if self._closed:
            raise RuntimeError("these batches are closed: make a new Prefetched")
        began = time.perf_counter()
        try:
            batch = self._take(start, count)
        finally:
            self.waited += time.perf_counter() - began
        while len(self._ready) < self._depth:
            ahead = start + (len(self._ready) + 1) * (self._stride or count)
            self._ready.append(_Guess(ahead, count, self._worker.submit(self._batches.take, ahead, count)))
        return batch

    def _take(self, start: int, count: int) -> Batch:
        if self._ready and (self._ready[0].start, self._ready[0].count) == (start, count):
            return self._ready.popleft().batch.result()
        self._forget()
        return self._batches.take(start, count)

    def _forget(self) -> None:
        while self._ready:
            self._ready.pop().batch.cancel()

    def close(self) -> None:
        """Stop the thread, waiting for the batch that it may be at; further calls do nothing."""
        self._closed = True
        self._forget()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
