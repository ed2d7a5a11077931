"""The command line."""

import sys
from collections.abc import Sequence

from unfog.memory import keep_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``unfog`` and return its exit status: 0, 2 for what the user can mend, 128 + n after signal n.

    Args:
        arguments: what follows ``unfog``; those of the process unless given.
    """
    if arguments is None:
        # The process is ours; one that calls this with arguments is somebody else's.
        keep_memory()
    from unfog.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
