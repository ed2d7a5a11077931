"""Renders docs/mathematics/orders.md from the record."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.orders.record import LIBRARIES, Entry, Found, Record, Row

PAGE = Path(__file__).parents[2] / "docs" / "mathematics" / "orders.md"
COMMAND = "make orders"
TOLERANCE = 0.2
"""What a measured order may lack of the claimed one."""


def render(record: Record) -> Iterator[str]:
    """Yield the lines of the figures."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield f"Measured with {versions}."
    yield ""
    solved, noisy = ([row for row in record.rows if row.noisy is kind] for kind in (False, True))
    yield from _orders(record, solved)
    yield from _noisy(record, noisy)
    yield from _jumps(record)
    yield from _errors(record, solved)


def below(entry: Entry) -> bool:
    """Tell whether a measured order lacks more than the tolerance of the claimed one, on any case."""
    return bool(entry.orders) and entry.orders[0] < entry.claimed - TOLERANCE


def _orders(record: Record, rows: Sequence[Row]) -> Iterator[str]:
    yield "## Claimed and measured order"
    yield ""
    yield "| method | claimed | " + " | ".join(LIBRARIES) + " |"
    yield "|---|---|" + "---|" * len(LIBRARIES)
    for row in rows:
        entries = {entry.library: entry for entry in row.entries}
        claimed = entries["Unfog"].claimed if "Unfog" in entries else row.entries[0].claimed
        cells = [_order(entries.get(library), claimed) for library in LIBRARIES]
        yield f"| {row.name} | {claimed} | " + " | ".join(cells) + " |"
    yield ""
    lacking = [(row, entry) for row in rows for entry in row.entries if below(entry)]
    ours = [row.name for row, entry in lacking if entry.library == "Unfog"]
    many, least = len(rows), f"{TOLERANCE:g}"
    own = sum(any(entry.library == "Unfog" for entry in row.entries) for row in rows)
    yield (
        f"The lowest and the highest of the six cases, by least squares over grids of {_listed(record.refined)} steps. "
        f"**Bold**: more than {least} below the claim on some case. "
        + (f"Of Unfog's {own} these fall short: {', '.join(ours)}." if ours else f"None of Unfog's {own} falls short.")
    )
    if theirs := [(row, entry) for row, entry in lacking if entry.library != "Unfog"]:
        yield ""
        yield f"Of the others, among {many} methods:"
        yield ""
        for row, entry in theirs:
            yield f"- {entry.library} `{entry.name}` ({row.name}): claimed {entry.claimed}, {_span(entry)}"
    yield ""


def _order(entry: Entry | None, claimed: int) -> str:
    if entry is None:
        return "–"
    if not entry.orders:
        return "exact"
    told = _span(entry)
    if entry.claimed != claimed:
        told += f" (claims {entry.claimed})"
    return f"**{told}**" if below(entry) else told


def _span(entry: Entry) -> str:
    low, high = (f"{order:.2f}" for order in (entry.orders[0], entry.orders[-1]))
    return low if low == high else f"{low} to {high}"


def _noisy(record: Record, rows: Sequence[Row]) -> Iterator[str]:
    yield "## Samplers that inject noise"
    yield ""
    yield (
        "Their samples have no exact solution to be compared with, but a law: the error is that of the variance at the "
        "end of the interval, for Gaussian data with the mean and the variance of the mixture's first coordinate, "
        "propagated through the sampler's table in closed form. So there is no sampling error in it."
    )
    for mixture in record.rows[0].entries[0].found:
        yield ""
        yield f"**{mixture}**"
        yield ""
        yield "| method | schedule | claimed | measured | " + _budget_columns(record) + " |"
        yield "|---|---|---|---|" + "---|" * len(record.budgets)
        for row in rows:
            (entry,) = row.entries
            for where, found in entry.found[mixture].items():
                order = "exact" if found.order is None else f"{found.order:.2f}"
                lacking = found.order is not None and found.order < entry.claimed - TOLERANCE
                cells = " | ".join(_told(found, k, record, best=False) for k in range(len(record.budgets)))
                told = f"**{order}**" if lacking else order
                yield f"| {row.name} | {where} | {entry.claimed} | {told} | {cells} |"
    yield ""


def _jumps(record: Record) -> Iterator[str]:
    yield "## The last jump, apart"
    yield ""
    yield (
        "The step to clean data takes the mean of all data that fit the state before it, whatever the sampler. This is "
        "its error from an exact state: from the end of the interval, and from the last time but one of whole grids "
        "down to t = 0 with the times that are usual there."
    )
    yield ""
    yield "| data | schedule | from the interval's end | " + " | ".join(f"{n} steps" for n in record.budgets) + " |"
    yield "|---|---|---|" + "---|" * len(record.budgets)
    for jump in record.jumps:
        cells = " | ".join(f"{error:.2g}" for error in jump.errors)
        yield f"| {jump.mixture} | {jump.where} | {jump.interval:.2g} | {cells} |"
    yield ""


def _errors(record: Record, rows: Sequence[Row]) -> Iterator[str]:
    yield "## Errors at a few evaluations"
    yield ""
    yield (
        "Mean distance to the exact solution at the end of the interval. A number in brackets says how many "
        "evaluations were made where the budget cannot be met exactly; **bold** is the smallest of a column."
    )
    first = record.rows[0].entries[0].found
    for mixture, cases in first.items():
        for where in cases:
            yield ""
            yield f"### {mixture}, {where}"
            yield ""
            yield "| method | library | " + _budget_columns(record) + " |"
            yield "|---|---|" + "---|" * len(record.budgets)
            column = [
                [e.found[mixture][where].errors[k] for r in rows for e in r.entries] for k in range(len(record.budgets))
            ]
            least = [min((error for error in errors if error is not None), default=None) for errors in column]
            for row in rows:
                for place, entry in enumerate(row.entries):
                    found = entry.found[mixture][where]
                    cells = [_told(found, k, record, best=found.errors[k] == least[k]) for k in range(len(least))]
                    yield f"| {row.name if place == 0 else ''} | {entry.library} | " + " | ".join(cells) + " |"
    yield ""


def _budget_columns(record: Record) -> str:
    return " | ".join(str(budget) for budget in record.budgets)


def _told(found: Found, k: int, record: Record, *, best: bool) -> str:
    error, asked = found.errors[k], found.asked[k]
    if error is None:
        return "–"
    told = f"**{error:.2g}**" if best else f"{error:.2g}"
    return told if asked == record.budgets[k] else f"{told} ({asked})"


def _listed(numbers: Sequence[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} and {last}"
