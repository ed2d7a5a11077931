"""``unfog data``."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unfog.cli.console import number, output, progress, table
from unfog.cli.errors import CommandError, refusing
from unfog.data.check import Examination, Examiner, examiners
from unfog.data.dataset import printable
from unfog.data.gate import MAX_BAD
from unfog.data.image import Range
from unfog.data.sources import DataSpec

_ROWS = 12
"""Of a table of counts; --json has them all."""


def wanted(
    path: str,
    size: int | None,
    channels: int | None,
    background: str,
    value_range: str | None,
    max_bad: float | None,
) -> DataSpec:
    """Return how training would read the data, from the options of ``commands.looking.check``.

    Raises:
        CommandError: if one of them is refused.
    """
    with refusing():
        return DataSpec(
            path=path,
            size=size,
            channels=channels,
            background=background,
            value_range=_range_of(value_range),
            max_bad=MAX_BAD if max_bad is None else max_bad,
        )


def _range_of(text: str | None) -> Range | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise CommandError(f"--value-range: expected two numbers such as 0,1 or -1,1, got {text!r}") from None
    return low, high


def check(spec: DataSpec, split: str | None, *, as_json: bool) -> int:
    """Check data; see ``commands.looking.check``."""
    with refusing():
        found = [_examined(examiner) for examiner in examiners(spec, split)]
    if as_json:
        print(json.dumps({"splits": [_plain(one) for one in found], "path": spec.path}, indent=1))
    else:
        for one in found:
            _show(one)
    refusals = [refusal for one in found for refusal in one.refusals]
    if refusals:
        raise CommandError("training would not begin: " + "\n".join(refusals))
    return 0


def _examined(examiner: Examiner) -> Examination:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = progress()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{printable(examiner.source.name)}/{examiner.split}", total=examiner.source.count)
        for done in examiner:
            bar.update(task, completed=done)
    return examiner.result()


def _show(one: Examination) -> None:
    console = output()
    title = f"{printable(one.name)}/{one.split}: {one.report.found} pictures"
    console.print(title, markup=False, soft_wrap=True)
    console.print(_counts(one))
    _show_balance(one)
    for notice in one.notices:
        console.print(f"notice: {printable(notice)}", markup=False, soft_wrap=True)
    for group in one.duplicates[:_ROWS]:
        console.print(f"same pixels: {', '.join(map(printable, group))}", markup=False, soft_wrap=True)
    if len(one.duplicates) > _ROWS:
        console.print(f"same pixels: {len(one.duplicates) - _ROWS} more groups (--json lists them)", markup=False)
    for skipped in one.report.skipped:
        console.print(f"bad: {skipped}", markup=False, soft_wrap=True)
    share = f" ({100 * one.report.share:.3g} %)" if one.report.skipped else ""
    console.print(f"{len(one.report.skipped)} of {one.report.found} pictures are bad{share}", markup=False)


def _counts(one: Examination) -> Table:
    listing = table("of the readable", "", "pictures>", "share>")
    sizes = {f"{height}x{width}": count for (height, width), count in one.sizes.items()}
    for name, counts in (
        ("height x width", sizes),
        ("width / height", one.aspects),
        ("mode", one.modes),
        ("kind", one.kinds),
        ("class", one.classes),
        ("caption", one.captions and one.captions.by_state),
    ):
        if counts:
            _add(listing, name, counts, one.report.found - len(one.report.skipped))
    return listing


def _add(listing: Table, name: str, counts: Mapping[str, int], total: int) -> None:
    """Add a section with the most frequent of something."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    rows = [(printable(key), count) for key, count in ordered[:_ROWS]]
    if len(ordered) > _ROWS:
        rows.append((f"{len(ordered) - _ROWS} more", sum(count for _, count in ordered[_ROWS:])))
    for place, (key, count) in enumerate(rows):
        shown = f"{count:,}", f"{100 * count / max(1, total):.1f} %"
        listing.add_row(name if place == 0 else "", Text(key), *shown)
    listing.add_section()


def _show_balance(one: Examination) -> None:
    console = output()
    if one.classes:
        least, most = min(one.classes.values()), max(one.classes.values())
        ratio = f"{number(most / least)} times the smallest" if least else "and some have none"
        text = f"{len(one.classes)} classes; the largest has {most:,} pictures, {ratio}"
        console.print(text, markup=False, soft_wrap=True)
    if one.captions is not None:
        facts = one.captions
        lengths = f"{facts.shortest} to {facts.longest} characters, {number(facts.median)} in the middle"
        console.print(f"captions of {lengths}; {facts.repeated:,} repeat another", markup=False, soft_wrap=True)


def _plain(one: Examination) -> dict[str, object]:
    """Return an examination as JSON has it."""
    return {
        "name": one.name,
        "split": one.split,
        "found": one.report.found,
        "bad": [skipped._asdict() for skipped in one.report.skipped],
        "bad_share": one.report.share,
        "sizes": {f"{height}x{width}": count for (height, width), count in one.sizes.items()},
        "aspects": dict(one.aspects),
        "modes": dict(one.modes),
        "kinds": dict(one.kinds),
        "classes": one.classes and dict(one.classes),
        "captions": one.captions and asdict(one.captions),
        "duplicates": one.duplicates,
        "notices": one.notices,
        "refusals": one.refusals,
    }
