"""The page of an audit: near-copies beside the training examples that they resemble, and shares beside the data's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unfog.checkpoint import write_atomically
from unfog.data.dataset import Dataset, to_uint8
from unfog.evaluation import tables
from unfog.evaluation.audit import AttributeAudit, Audit, ValueAudit
from unfog.evaluation.gallery import Gallery, Picture, Row, columns_for, gallery, png_uri
from unfog.evaluation.memorisation import Memorisation, View
from unfog.evaluation.scores import Missing
from unfog.evaluation.svg import FIRST, GRID, SECOND, Chart, finish, panel
from unfog.evaluation.template import filled
from unfog.metrics.interval import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTIONS = {
    "run": "What was audited",
    "copies": "Near-copies of training examples",
    "shares": "Classes and attributes",
    "method": "How it was measured",
}
"""Sections of the page in their order: identifier and title."""

SHOWN = 48
"""Most suspects that are shown of a view."""

_CHARTED = 40


@dataclass(frozen=True)
class AuditInputs:
    """What a page tells of.

    Attributes:
        title: of the page.
        command: that asked for it, as it was typed.
        facts: of the run and its samples, by name.
        samples: ``(N, C, H, W)`` uint8.
        train: the examples that the model was trained on.
        memorisation: what was found of near-copies, or why that was not looked for.
        audit: what was found of shares, likewise.
    """

    title: str
    command: str
    facts: Mapping[str, str]
    samples: Tensor
    train: Dataset
    memorisation: Memorisation | Missing
    audit: Audit | Missing


class ViewSection(NamedTuple):
    """One way of comparing pictures: what it found, in words, numbers and pictures."""

    view: View
    verdict: str
    facts: Mapping[str, str]
    galleries: tuple[Gallery, ...]
    left: int


class AttributeSection(NamedTuple):
    """One attribute: in words, as a chart and as rows of a table."""

    attribute: AttributeAudit
    verdict: str
    facts: Mapping[str, str]
    chart: Chart | None
    rows: tuple[tuple[str, ...], ...]
    corrected: bool


def write_audit(path: Path, inputs: AuditInputs) -> None:
    """Write the page, whole or not at all; a file of that name is replaced."""
    write_atomically(path, render(inputs).encode())


def render(inputs: AuditInputs) -> str:
    """Return the page."""
    copies, audit = inputs.memorisation, inputs.audit
    context = {
        "inputs": inputs,
        "sections": SECTIONS,
        "copies": copies,
        "views": () if isinstance(copies, Missing) else [_view(view, inputs) for view in copies.views],
        "audit": audit,
        "attributes": () if isinstance(audit, Missing) else [_attribute(a, k) for k, a in enumerate(audit.attributes)],
        "several": not isinstance(audit, Missing) and len(audit.attributes) > 1,
        "missing": {name: isinstance(one, Missing) for name, one in (("copies", copies), ("audit", audit))},
    }
    return filled("audit.html.j2", context)


def verdict_of_view(view: View) -> str:
    """Say in a sentence what the share of flagged samples means."""
    flagged, expected = (tables.spoken(one, percent=True) for one in (view.flagged, view.false_positives))
    number = len(view.suspects)
    of = f"{tables.counted(number, 'sample')} of {view.flagged.count:,} {'is' if number == 1 else 'are'} flagged"
    if view.beyond_chance:
        return f"{of}, {flagged}, where {expected} of new pictures would be: more than chance. Look at the first ones"
    return f"{of}, {flagged}, where {expected} of new pictures would be: no more than chance"


def verdict_of_attribute(attribute: AttributeAudit) -> str:
    """Say in a sentence whether the shares differ."""
    marked = [value.name for value in attribute.values if value.marked]
    told = f"p = {attribute.adjusted:.2g}"
    if attribute.adjusted > 0.05:
        return f"The shares do not differ from the data's by more than chance ({told})"
    if not marked:
        return f"The shares differ from the data's ({told}), though no single value by more than chance"
    return f"The shares differ from the data's ({told}): {tables.joined(marked)}"


def _view(view: View, inputs: AuditInputs) -> ViewSection:
    mine, real = ([f"{value:.3f}" for value in row] for row in view.quantiles)
    facts = {
        "Threshold": f"ratios below {view.threshold:.3f} are flagged",
        "Ratios of the samples": f"{mine[1]} at 1 %, {mine[2]} at 10 %, {mine[3]} in the middle",
        "Ratios of held-out examples": f"{real[1]} at 1 %, {real[2]} at 10 %, {real[3]} in the middle",
    }
    return ViewSection(view, verdict_of_view(view), facts, _suspects(view, inputs), max(0, len(view.suspects) - SHOWN))


def _suspects(view: View, inputs: AuditInputs) -> tuple[Gallery, ...]:
    """Show the first suspects above the training examples that they are nearest to."""
    columns = columns_for(inputs.samples.shape[1:])
    shown = view.suspects[:SHOWN]
    made = []
    for start in range(0, len(shown), columns):
        some = shown[start : start + columns]
        examples = to_uint8(inputs.train.gather(torch.tensor([one.training for one in some]))["x0"])
        above = [
            Picture(png_uri(inputs.samples[one.sample]), f"sample {one.sample}", (f"no. {one.sample}",)) for one in some
        ]
        below = [
            Picture(
                png_uri(image),
                f"training example {one.training}",
                (
                    f"no. {one.training}",
                    f"ratio {one.ratio:.3f}",
                    f"p {one.p_value:.2g}",
                    f"FDR {one.false_discovery:.2g}",
                ),
            )
            for image, one in zip(examples, some, strict=True)
        ]
        rows = [Row("sample", tuple(above)), Row("nearest", tuple(below))]
        made.append(gallery(rows, (), inputs.samples.shape[1:]))
    return tuple(made)


def _attribute(attribute: AttributeAudit, number: int) -> AttributeSection:
    facts = {
        "Total variation distance": (
            f"{tables.spoken(attribute.variation)}; {attribute.expected_variation:.3f} by chance"
        ),
        "Amplification": tables.spoken(attribute.amplification),
    }
    if isinstance(attribute.rare, Score):
        facts["Rare values that occur"] = (
            f"{tables.spoken(attribute.rare, percent=True)}; {100 * attribute.expected_rare:.1f} % expected"
        )
    if attribute.unseen:
        facts["In the data and never in the samples"] = ", ".join(attribute.unseen)
    if isinstance(attribute.agreement, Score):
        facts["Read as what they were asked for"] = tables.spoken(attribute.agreement, percent=True)
    if isinstance(attribute.real_agreement, Score):
        facts["Real examples read as what they are"] = tables.spoken(attribute.real_agreement, percent=True)
    corrected = any(isinstance(value.corrected, Score) for value in attribute.values)
    rows = tuple(_row(value, corrected=corrected) for value in attribute.values)
    return AttributeSection(
        attribute, verdict_of_attribute(attribute), facts, _chart(attribute, number), rows, corrected
    )


def _row(value: ValueAudit, *, corrected: bool) -> tuple[str, ...]:
    ratio = "–" if isinstance(value.ratio, Missing) else tables.spoken(value.ratio)
    cells = [_share(value.samples), _share(value.data), ratio + (" *" if value.marked else "")]
    return (value.name, *cells, *([_share(value.corrected), _share(value.truth)] if corrected else []))


def _share(score: Score | Missing) -> str:
    return "–" if isinstance(score, Missing) else tables.spoken(score, percent=True)


def _chart(attribute: AttributeAudit, number: int) -> Chart | None:
    """Draw the shares of samples and data with their intervals, a line for each value; None of very many."""
    values = attribute.values
    if len(values) > _CHARTED:
        return None
    figure, axes = panel("share in %", "", size=(7.2, 0.9 + 0.27 * len(values)))
    for offset, colour, label, scores in (
        (-0.13, FIRST, "samples", [value.samples for value in values]),
        (0.13, SECOND, "data", [value.data for value in values]),
    ):
        _points(axes, scores, offset, colour, label)
    axes.set_yticks(range(len(values)), [value.name + (" *" if value.marked else "") for value in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.6, color=GRID)
    return finish(figure, f"shares-{number}", f"Shares of {attribute.name} among samples and data")


def _points(axes: "Axes", scores: Sequence[Score], offset: float, colour: str, label: str) -> None:
    places = [k + offset for k in range(len(scores))]
    ends = [[100 * (s.value - s.low) for s in scores], [100 * (s.high - s.value) for s in scores]]
    axes.errorbar(
        [100 * s.value for s in scores],
        places,
        xerr=ends,
        fmt="o",
        color=colour,
        markersize=4,
        linewidth=1.4,
        label=label,
    )
