"""What a run of the orders found: one file, from which the page is rendered."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from unfog.checkpoint import write_atomically

PATH = Path(__file__).parents[1] / "records" / "orders.json"
LIBRARIES = ("Unfog", "diffusers", "k-diffusion")


@dataclass(frozen=True)
class Found:
    """What one library's form of a method does on one case.

    Attributes:
        errors: at each budget of evaluations; None where no grid has so few.
        asked: evaluations that were made at each budget.
        order: measured; None if its errors could not be told from those of the exact solution.
    """

    errors: tuple[float | None, ...]
    asked: tuple[int | None, ...]
    order: float | None


@dataclass(frozen=True)
class Entry:
    """One library's form of a method.

    Attributes:
        library: one of ``LIBRARIES``.
        name: what it is called there.
        claimed: its order.
        found: on each case, by mixture and schedule.
    """

    library: str
    name: str
    claimed: int
    found: dict[str, dict[str, Found]]

    @property
    def orders(self) -> list[float]:
        """Its measured orders, rising."""
        every = [found.order for cases in self.found.values() for found in cases.values()]
        return sorted(order for order in every if order is not None)


@dataclass(frozen=True)
class Row:
    """A method, whoever has it.

    Attributes:
        name: of it.
        noisy: whether it injects noise: then its errors are those of a variance.
        entries: one a library that has it.
    """

    name: str
    noisy: bool
    entries: list[Entry]


@dataclass(frozen=True)
class Jump:
    """How far the last step, to clean data, leads an exact state astray.

    Attributes:
        mixture: the data.
        where: the schedule, and its times down to t = 0.
        interval: from the end of the interval.
        errors: from the last time but one of a grid of as many steps as each budget.
    """

    mixture: str
    where: str
    interval: float
    errors: list[float]


@dataclass(frozen=True)
class Record:
    """Everything.

    Attributes:
        versions: of the libraries.
        budgets: of evaluations.
        refined: steps from which orders are regressed.
        rows: the methods.
        jumps: the last steps.
    """

    versions: dict[str, str]
    budgets: list[int]
    refined: list[int]
    rows: list[Row]
    jumps: list[Jump]


_RECORD = TypeAdapter(Record)


def save(record: Record) -> None:
    """Write the record."""
    write_atomically(PATH, _RECORD.dump_json(record, indent=1) + b"\n")


def load() -> Record:
    """Read the record.

    Raises:
        FileNotFoundError: if nothing was measured yet.
    """
    return _RECORD.validate_json(PATH.read_bytes())
