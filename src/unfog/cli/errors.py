"""What the command line says when something goes wrong, without a traceback; and which process says anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """An error that one message says all about.

    Args:
        message: what came, what was expected and how to mend it.
        status: exit status; 2 for what the user can mend.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def speaks() -> bool:
    """Tell whether this process prints: the only one does, and the first of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def refusing() -> Iterator[None]:
    """Turn the errors by which the library refuses what it is given into a message.

    Only around what checks and opens: an error of the same type elsewhere is a fault of the library, and keeps its
    traceback.
    """
    from unfog.checkpoint import DamagedCheckpointError

    try:
        yield
    except (ValueError, OSError, ImportError, DamagedCheckpointError) as error:
        raise CommandError(str(error)) from error
