"""Commands that several processes carry out together, started by ``torchrun -m unfog ...``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from unfog.cli.errors import CommandError, refusing
from unfog.training.parallel import LeaderError, World, joined


@contextmanager
def together() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for one command.

    Raises:
        CommandError: if they cannot be joined; without words in the processes that end because process 0 does, which
            says why.
    """
    with ExitStack() as opened:
        with refusing():
            world = opened.enter_context(joined())
        try:
            yield world
        except LeaderError as error:
            raise CommandError("", status=1) from error


def said_once(world: World, message: str, status: int) -> CommandError:
    """Return the error of what all processes came upon alike, which process 0 alone puts in words."""
    return CommandError(message if world.leads else "", status)
