"""The progress of training: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from unfog.cli.console import duration
from unfog.training.step import TrainStep

_SMOOTHING = 0.98
_SECONDS_BETWEEN_LINES = 10.0


class _Smooth:
    """A running mean that forgets; from the first value on without bias."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = _SMOOTHING * self._sum + value
        self._weight = _SMOOTHING * self._weight + 1.0

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else float("nan")


class TrainProgress:
    """Shows steps as they are taken, while its context lasts.

    Args:
        steps: of the whole run.
        batch_size: examples a step.
        console: where to.
    """

    def __init__(self, steps: int, batch_size: int, console: Console) -> None:
        self._steps, self._batch_size, self._console = steps, batch_size, console
        self._loss, self._pace = _Smooth(), _Smooth()
        self._seconds = self._waited = 0.0
        self._last = time.perf_counter()
        self._told = float("-inf")
        columns = TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=steps)

    def show(self, step: TrainStep) -> None:
        """Take a step into account, and show where training is."""
        now = time.perf_counter()
        self._pace.add(now - self._last)
        self._last = now
        if step.applied:
            self._loss.add(step.loss)
        self._seconds += step.seconds
        self._waited += step.waited
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step.index, description=self._text(step))
        elif now - self._told >= _SECONDS_BETWEEN_LINES or step.index == self._steps:
            self._told = now
            self._console.print(f"step {step.index}/{self._steps}  {self._text(step)}", markup=False, soft_wrap=True)

    def _text(self, step: TrainStep) -> str:
        left = (self._steps - step.index) * self._pace.value
        waiting = self._waited / self._seconds if self._seconds else 0.0
        return (
            f"loss {self._loss.value:.4f}  {self._batch_size / self._pace.value:.0f} samples/s  "
            f"{duration(left)} left  {_memory()}  {waiting:.0%} waiting for data"
        )

    def __enter__(self) -> Self:
        self._last = time.perf_counter()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _memory() -> str:
    """Return how much memory is used: of the CUDA device at its peak, or of this process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of CUDA memory"
    return f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB of memory"
