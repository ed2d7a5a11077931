"""What the records of families of models say, as Markdown and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign.jobs import FAMILIES, RACED_ON, SEEDS, FamilyRace
from unfog.evaluation.families_table import COLUMNS, draw_curves, notes, rows

Record = Mapping[str, Any]


def overview(records: Mapping[str, Record], pictures: Path, shown_in: Path) -> list[str]:
    """Return a table for each data set, a row a family, what the columns mean, and curves against time.

    Args:
        records: by the names of their jobs.
        pictures: folder of the pictures that are drawn.
        shown_in: its path, as the page names it.

    Raises:
        ValueError: if records of one data set were not made alike.
    """
    lines: list[str] = []
    for data in RACED_ON:
        if found := _of(data, records):
            lines += _section(data, found, pictures, shown_in)
    return lines


def _section(data: str, found: Sequence[Record], pictures: Path, shown_in: Path) -> list[str]:
    measured = [record["measured"] for record in found]
    picture = f"families-{data}.png"
    draw_curves(measured, pictures / picture)
    machines = {
        f"{m['processor']}, {len(m['pinned_to'])} of {m['cores']} cores, {m['threads']} threads, accelerator: "
        f"{m['accelerator']}, torch {record['versions']['torch']}, {record['started'][:10]}"
        for record in found
        for m in [record["machine"]]
    }
    return [
        f"### {data}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in rows(measured)),
        "",
        *(f"- {sentence}" for sentence in notes(measured)),
        f"- {'; '.join(sorted(machines))}.",
        "",
        f"![Distance, precision and recall against training time on {data}]({shown_in / picture})",
        "",
        f"*A line is a run, a colour a family. The pictures of samples lie beside the records, "
        f"`benchmarks/records/family/{data}`.*",
        "",
    ]


def _of(data: str, records: Mapping[str, Record]) -> list[Record]:
    """Return the records of a data set, family by family."""
    names = [FamilyRace(data, family, seed).id for family in FAMILIES for seed in SEEDS]
    return [records[name] for name in names if name in records]
