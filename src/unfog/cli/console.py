"""Where text goes: results to standard output, progress to standard error; of several processes, the first one's."""

import sys

from rich.console import Console
from rich.table import Table

from unfog.cli.errors import speaks

_WIDTH = 140
"""Of tables that go to a file or another program."""


def output() -> Console:
    """Return the console of results."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, quiet=not speaks())


def progress() -> Console:
    """Return the console of progress."""
    return Console(stderr=True, highlight=False, quiet=not speaks())


def table(*columns: str) -> Table:
    """Return an empty table; columns whose name ends in ``>`` are set right."""
    made = Table()
    for column in columns:
        made.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left")
    return made


def show(title: str, listing: Table) -> None:
    """Print a table under its title, which is never wrapped."""
    console = output()
    console.print(title, markup=False, soft_wrap=True)
    console.print(listing)


def number(value: float) -> str:
    """Return a number for people, in four digits; negative zero is zero."""
    return f"{value + 0.0:.4g}"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
