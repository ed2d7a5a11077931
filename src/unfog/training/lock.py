"""One trainer at a time in a run folder.

The lock is the operating system's: it ends with the process that holds it, however that ends, so a killed run never
keeps its folder locked. Beside it lies who holds it, for the message to whoever comes second.
"""

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from unfog.checkpoint import write_atomically

LOCK, HOLDER = ".lock", ".lock.json"


class RunInUseError(OSError):
    """Another process is training in the folder."""


class RunLock:
    """Keeps other processes from training in a folder, from its making until ``release`` or the end of the process.

    Args:
        folder: the run folder; it must exist.

    Raises:
        RunInUseError: if another trainer holds it, naming its process and machine.
    """

    def __init__(self, folder: Path) -> None:
        self._holder = folder / HOLDER
        self._lock = FileLock(folder / LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunInUseError(
                f"{folder} is being trained in already, by {_told(self._holder)}: wait for it or stop it, or train in "
                f"another folder"
            ) from None
        try:
            me = {"pid": os.getpid(), "host": socket.gethostname()}
            write_atomically(self._holder, json.dumps(me).encode())
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others train in the folder; further calls do nothing."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _told(holder: Path) -> str:
    try:
        found = json.loads(holder.read_bytes())
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is written a moment after the lock is taken
        return "another process"
