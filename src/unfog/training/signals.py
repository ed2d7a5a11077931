"""Requests to stop, looked at between two steps.

``SIGTERM`` (a scheduler, ``kill``) and ``SIGINT`` (Ctrl-C) ask a run to finish its step, save and leave. A second
``SIGINT`` raises ``KeyboardInterrupt`` at once, for whoever does not want to wait.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether a stop was asked for, and by what.

    Attributes:
        signal: the signal that asked; None if none did or ``request`` was called without one.
        requested: whether to stop.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.requested = False

    def request(self, number: signal.Signals | None = None) -> None:
        """Ask for a stop; the first one that asks is remembered."""
        if not self.requested:
            self.signal = number
            self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a request while the context lasts, then restore what was there before.

    Raises:
        RuntimeError: outside the main thread, where Python delivers no signals; make a ``Stop`` and call its
            ``request`` there.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals reach the main thread only; make a Stop() and call request() on it instead")
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.request(signal.Signals(number))

    caught = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # A handler that was not set from Python reads as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
