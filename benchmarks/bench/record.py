"""Records of the benchmark: one JSON file a run, from which the page is rendered."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.bench.measure import Section
from unfog.checkpoint import write_atomically

RECORDS = Path(__file__).parents[1] / "records"
QUICK = "bench-quick.json"
"""A quick run shows that everything works; its figures say nothing, so it is overwritten and never rendered."""


@dataclass(frozen=True)
class Record:
    """What one run of the benchmark found.

    Attributes:
        began: ISO 8601, UTC.
        quick: whether it did only as much as shows that it works.
        repeats: rounds asked for.
        machine: what it ran on, by name.
        seconds: what each section took, by its name.
        sections: what was found, by name.
    """

    began: str
    quick: bool
    repeats: int
    machine: dict[str, str]
    seconds: dict[str, float]
    sections: dict[str, Section]


_RECORD = TypeAdapter(Record)


def save(record: Record, folder: Path = RECORDS) -> Path:
    """Write a record and return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = re.sub(r"[^0-9T]", "", record.began.partition("+")[0])
    path = folder / (QUICK if record.quick else f"bench-{stamp}.json")
    write_atomically(path, _RECORD.dump_json(record, indent=1) + b"\n")
    return path


def load_all(folder: Path = RECORDS) -> list[Record]:
    """Return the records that count, oldest first.

    Raises:
        ValueError: if one is damaged.
    """
    paths = sorted(path for path in folder.glob("bench-*.json") if path.name != QUICK)
    return sorted((_RECORD.validate_json(path.read_bytes()) for path in paths), key=lambda record: record.began)
