"""Renders docs/benchmarks.md from the records: each section from the newest record that holds it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.bench.measure import Comparison, Median, Profile, Quantity, Section, Share, Unit, median, verdict
from benchmarks.bench.record import Record

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
COMMAND = "python -m benchmarks.bench"
TITLES = {
    "machine": "The machine's own rates",
    "training": "Training DDPM's network",
    "sampling": "Sampling from DDPM's network",
    "laptop-training": "Training the small recipes",
    "laptop-sampling": "Sampling from the small recipes' networks",
    "curves": "Loss after as many examples",
    "precision": "float32 and bfloat16",
    "host": "Host time",
    "memory": "Memory",
    "kept": "Memory that is kept",
    "import": "Import",
    "profile": "Where the time goes",
}
"""Sections in the order of the page."""

SHOWN: dict[Unit, tuple[str, Callable[[float], str]]] = {
    Unit.SECONDS_A_SAMPLE: ("samples/s", lambda cost: f"{1 / cost:.3g}"),
    Unit.MICROSECONDS_A_STEP: ("µs a step", lambda cost: f"{cost:.0f}"),
    Unit.NANOSECONDS_A_NUMBER: ("ns a number", lambda cost: f"{cost:.1f}"),
    Unit.SECONDS: ("s", lambda cost: f"{cost:.3g}"),
    Unit.MEBIBYTES: ("MiB", lambda cost: f"{cost:.0f}"),
    Unit.ERROR: ("error of the noise", lambda cost: f"{cost:.4f}"),
}
"""How the costs of a unit are shown: name and format."""


def spread(found: Median, digits: int = 2) -> str:
    """Write a median with its interval."""
    if found.count == 1:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def percent(found: Median) -> str:
    """Write a share with its interval."""
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def comparisons_table(rows: Iterable[Comparison]) -> list[str]:
    """Return a table of comparisons."""
    lines = ["| what | ours | beside | ours | theirs | times better |", "|---|---|---|---|---|---|"]
    for row in rows:
        name, write = SHOWN[row.unit]
        ours, theirs = (write(median(values).value) for values in (row.ours_values, row.other_values))
        lines.append(
            f"| {row.what} | {row.ours} | {row.other} | {ours} {name} | {theirs} {name} | **{spread(row.gain)}** |"
        )
    return lines


def shares_table(rows: Iterable[Share]) -> list[str]:
    """Return a table of shares of the machine's rate."""
    lines = ["| what | GFLOP/s | matrix product, GFLOP/s | share |", "|---|---|---|---|"]
    for row in rows:
        reached, machine = median(row.rates).value, median(row.machine).value
        lines.append(f"| {row.what} | {reached:.0f} | {machine:.0f} | **{percent(row.share)}** |")
    return lines


def quantities_table(rows: Iterable[Quantity]) -> list[str]:
    """Return a table of numbers that stand alone."""
    lines = ["| what | median and interval |", "|---|---|"]
    return lines + [f"| {row.what} | {spread(median(row.values), 1)} {row.unit} |" for row in rows]


def profile_table(profile: Profile) -> list[str]:
    """Return the operators of a profile."""
    lines = [
        f"{profile.what}: {profile.milliseconds:.0f} ms.",
        "",
        "| operator | calls | ms of its own | share |",
        "|---|---|---|---|",
    ]
    return lines + [
        f"| `{row.name}` | {row.calls} | {row.milliseconds:.1f} | {row.milliseconds / profile.milliseconds:.1%} |"
        for row in profile.operators
    ]


def section_lines(title: str, section: Section, record: Record) -> list[str]:
    """Return the lines of one section."""
    parts: list[list[str]] = []
    if section.notes:
        parts.append([" ".join(section.notes)])
    if section.comparisons:
        parts.append(comparisons_table(section.comparisons))
    if section.shares:
        parts.append(shares_table(section.shares))
    if section.quantities:
        parts.append(quantities_table(section.quantities))
    parts += [profile_table(profile) for profile in section.profiles]
    return [f"### {title}", "", f"Measured {record.began}.", "", *_joined(parts)]


def goals_table(sections: Iterable[Section]) -> list[str]:
    """Return the goals and how they stand."""
    lines = ["| goal | found | |", "|---|---|---|"]
    for section in sections:
        for row in section.comparisons:
            if row.goal is not None:
                said = verdict(row.gain, row.goal).value
                lines.append(
                    f"| {row.what}: {row.ours} at least {row.goal:g} times as good as {row.other} | "
                    f"{spread(row.gain)} | {said} |"
                )
        for share in section.shares:
            if share.goal is not None:
                said = verdict(share.share, share.goal).value
                lines.append(
                    f"| {share.what}: at least {share.goal:.0%} of the machine | {percent(share.share)} | {said} |"
                )
    return lines


def render(records: Sequence[Record]) -> list[str]:
    """Return the lines of the page, each section from the newest record that holds it.

    Raises:
        ValueError: if there is no record.
    """
    if not records:
        raise ValueError("expected at least one record; run python -m benchmarks.bench without --quick")
    newest = {name: record for record in records for name in record.sections}
    shown = {name: newest[name] for name in TITLES if name in newest}
    sections = {name: record.sections[name] for name, record in shown.items()}
    levels = {row.gain.level for section in sections.values() for row in section.comparisons if row.gain.count > 1}
    lines = [
        "### Goals",
        "",
        *goals_table(sections.values()),
        "",
        "Medians of paired ratios of neighbours in time, with intervals of order statistics that hold the true median "
        f"with at least {min(levels, default=0.0):.0%}. A share is of the machine's own matrix product in the same "
        "repeat.",
        "",
    ]
    for name, record in shown.items():
        lines += [*section_lines(TITLES[name], record.sections[name], record), ""]
    return [*lines, *machine_lines(records[-1])]


def machine_lines(record: Record) -> list[str]:
    """Return what the newest record says of the machine and of itself."""
    lines = ["### Machine and versions of the newest record", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in record.machine.items()]
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record.seconds.items())
    return [
        *lines,
        "",
        f"{record.repeats} repeats. Time taken: {took}; {sum(record.seconds.values()) / 60:.1f} minutes together.",
    ]


def _joined(parts: Sequence[Sequence[str]]) -> list[str]:
    return [line for k, part in enumerate(parts) for line in ([""] if k else []) + list(part)]
