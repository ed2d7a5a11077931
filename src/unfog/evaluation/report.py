"""The report that ends a run: one HTML file with everything inside, for whoever wants to see what was learned.

The page loads nothing: images are data URIs, charts are SVG, the style is in the file. Everything in it is a function
of the inputs, so the same inputs give the same page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unfog.checkpoint import write_atomically
from unfog.data.dataset import Dataset, to_uint8
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation import gallery, plots, tables
from unfog.evaluation.adherence import Adherence
from unfog.evaluation.gallery import Gallery, Subjects, class_name
from unfog.evaluation.loss import evaluating
from unfog.evaluation.measure import Measured, describe, worded
from unfog.evaluation.plots import Record
from unfog.evaluation.svg import Chart
from unfog.evaluation.template import filled
from unfog.pipeline import Pipeline
from unfog.sampling.sampler import TableSampler
from unfog.tasks.denoising import Denoising

SECTIONS = {
    "results": "Results",
    "run": "What was run",
    "loss": "Loss",
    "noising": "An image being noised",
    "denoising": "Samples being denoised",
    "samples": "Samples",
    "guidance": "Guidance",
    "schedule": "Schedule and sampler",
    "metrics": "Metrics",
    "neighbours": "Nearest training examples",
    "cost": "Time and memory",
}
"""Sections of the page in their order: identifier and title."""

_NEIGHBOURS = 6


@dataclass(frozen=True)
class ReportInputs:
    """What a report tells of.

    Attributes:
        title: of the page.
        command: that started the run, as it was typed.
        settings: of the run, nested by name; leaves are numbers, texts, None or lists.
        log: lines of ``log.jsonl``; may be empty.
        pipeline: draws the pictures.
        task: gives the density of the times, the weight of the loss and what the network predicts.
        train: the examples that were trained on.
        test: the examples that were not.
        measured: the numbers; None if nothing was measured.
        adherence: how far the samples show what was asked for; None where that cannot be read from a picture.
        seconds: wall time of the parts of the run, by name.
        machine: processor, accelerator, threads, versions, date; by name.
        memory: bytes, by name.
        seed: of the pictures.
    """

    title: str
    command: str
    settings: Mapping[str, Any]
    log: Sequence[Record]
    pipeline: Pipeline
    task: Denoising
    train: Dataset
    test: Dataset
    measured: Measured | None = None
    adherence: Adherence | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Draw the pictures and write the page, whole or not at all.

    Args:
        path: the file; one of that name is replaced.
        inputs: what it tells of.

    Raises:
        ValueError: if what is diffused are no images, or the model cannot draw.
        FloatingPointError: if a sample is not finite.
    """
    write_atomically(path, render(inputs).encode())


def render(inputs: ReportInputs) -> str:
    """Return the page.

    Args:
        inputs: what it tells of.

    Raises:
        ValueError: if what is diffused are no images, or the model cannot draw.
        FloatingPointError: if a sample is not finite.
    """
    shape = inputs.pipeline.shape
    require(len(shape) == 3, f"a model of images (C, H, W) to report on, got examples of shape {shape}")
    with evaluating(inputs.pipeline.denoiser):
        context = {
            "inputs": inputs,
            "sections": SECTIONS,
            "facts": _facts(inputs),
            "headlines": tables.headlines(inputs.measured),
            "groups": tables.setting_groups(inputs.settings),
            "loss": _loss(inputs),
            "pictures": _pictures(inputs),
            "schedule": _schedule(inputs),
            "metrics": tables.metrics(inputs.measured),
            "adherence": _adherence(inputs.adherence),
            "neighbours": _neighbours(inputs),
            "cost": _cost(inputs),
            "counted": tables.counted,
        }
    return filled("report.html.j2", context)


def _facts(inputs: ReportInputs) -> dict[str, str]:
    """Return what is said under the title."""
    denoiser, info = inputs.pipeline.denoiser, inputs.train.info
    pixels = " × ".join(str(n) for n in info.fields["x0"].shape)
    network = getattr(denoiser, "network", denoiser)
    steps = [record["step"] for record in inputs.log]
    return {
        "Data": f"{info.name}, {tables.counted(info.count, 'training example')} of {pixels}",
        "Network": f"{type(network).__name__}, {sum(p.numel() for p in denoiser.parameters()):,} parameters",
        **({"Training": f"{steps[-1]:,} steps"} if steps else {}),
        "Sampler": describe(inputs.pipeline.settings),
    }


class LossSection(NamedTuple):
    """Charts and numbers of the loss; ``levels`` and what follows are empty where nothing was measured.

    ``examples`` are held out, on ``trained`` was trained.
    """

    charts: tuple[Chart, ...]
    levels: tuple[Chart, ...]
    rows: tuple[tuple[str, ...], ...]
    expected: Mapping[str, str]
    examples: int
    trained: int
    skipped: int


def _loss(inputs: ReportInputs) -> LossSection:
    measured, log = inputs.measured, inputs.log
    charts = [chart for chart in (plots.loss_chart(log), plots.gradient_chart(log)) if chart is not None]
    skipped = sum(record.get("applied") is False for record in log)
    if measured is None:
        return LossSection(tuple(charts), (), (), {}, 0, 0, skipped)
    train, test = measured.levels_train, measured.levels_test
    schedule = inputs.pipeline.denoiser.process.schedule
    levels = (plots.level_chart(train, test, inputs.task.times, schedule), plots.x0_chart(train, test))
    errors = (test.weight, train.prediction.values, test.prediction.values, test.zero.values)
    numbers = zip(test.times, test.log_snr, *errors, plots.grey_levels(test.x0.values), strict=True)
    rows = tuple((f"{t:.4f}", f"{snr:.2f}", *(f"{value:.4g}" for value in rest)) for t, snr, *rest in numbers)
    expected = {
        "training examples": tables.spoken(measured.loss_train.network),
        "held-out examples": tables.spoken(measured.loss_test.network),
        "predicting 0 on held-out examples": tables.spoken(measured.loss_test.zero),
    }
    return LossSection(tuple(charts), levels, rows, expected, test.count, train.count, skipped)


class Pictures(NamedTuple):
    """What the model draws; ``guidance`` is None where there is nothing to be guided by."""

    noising: Gallery
    denoising: Gallery
    samples: Gallery
    guidance: Gallery | None
    subjects: Subjects
    all_classes: bool
    settings: str
    first: tuple[gallery.Picture, ...]


def _pictures(inputs: ReportInputs) -> Pictures:
    pipeline, seed = inputs.pipeline, inputs.seed
    subjects = Subjects.of(pipeline, inputs.test)
    shown = gallery.shown_classes(pipeline)
    columns = gallery.columns_for(pipeline.shape)
    samples = gallery.samples(pipeline, subjects, columns, seed)
    drawn = [row.pictures[-columns:] for row in samples.rows]
    return Pictures(
        noising=gallery.noising(pipeline.denoiser, inputs.test, columns + 1, seed),
        denoising=gallery.denoising(pipeline, subjects, columns + 1, seed),
        samples=samples,
        guidance=gallery.by_guidance(pipeline, subjects, seed),
        subjects=subjects,
        all_classes=not shown or len(shown) == shown[-1] + 1,
        settings=describe(pipeline.settings if subjects.names else gallery.unguided(pipeline.settings)),
        first=tuple(pictures[0] for pictures in drawn) if len(subjects.names) > 2 else drawn[0],
    )


class ScheduleSection(NamedTuple):
    """The noise schedule, what is trained on it, and where the sampler evaluates."""

    charts: tuple[Chart, ...]
    facts: Mapping[str, str]


def _schedule(inputs: ReportInputs) -> ScheduleSection:
    denoiser, settings, task = inputs.pipeline.denoiser, inputs.pipeline.settings, inputs.task
    schedule = denoiser.process.schedule
    times = settings.grid.times(schedule, settings.steps)
    evaluated = times[:-1].tolist()
    if isinstance(settings.sampler, TableSampler):
        evaluated = [row.t for row in settings.sampler.table(schedule, times)]
    times_asked = "" if settings.sampler.adaptive else f", at {len(evaluated)} times"
    clean, noisy = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    facts = {
        "schedule": worded(schedule),
        "log-SNR": f"{gallery.short(clean)} at t = 0, {gallery.short(noisy)} at t = 1",
        "the network predicts": worded(task.denoiser.parameterization),
        "training times": worded(task.times),
        "weight of the loss": worded(task.weight),
        "evaluations for a sample": f"{settings.cost} of the network" + times_asked,
    }
    return ScheduleSection((plots.scales_chart(schedule, evaluated), plots.log_snr_chart(schedule, evaluated)), facts)


class AdherenceSection(NamedTuple):
    """How far samples show what was asked for: cells of the table, and the reading's own error by what was done."""

    rows: tuple[tuple[str, str, str, str], ...]
    errors: Mapping[str, str]
    samples: int


def _adherence(found: Adherence | None) -> AdherenceSection | None:
    if found is None:
        return None
    rows = tuple(
        (
            name,
            tables.spoken(score, percent=True),
            "–" if chance is None else tables.spoken(chance, percent=True),
            f"{score.count:,}",
        )
        for name, score, chance in tables.adherence(found)
    )
    errors = {name: tables.spoken(error, percent=True) for name, error in found.reading_error.items()}
    return AdherenceSection(rows, errors, found.samples)


class NeighbourSection(NamedTuple):
    """Samples beside training examples; ``closest`` is None where no features were measured."""

    some: Sequence[Gallery]
    closest: Gallery | None
    which: str


def _neighbours(inputs: ReportInputs) -> NeighbourSection:
    measured, pipeline, train = inputs.measured, inputs.pipeline, inputs.train
    if measured is None:
        subjects = Subjects.of(pipeline, inputs.test)
        rows = [k % (len(subjects.names) or _NEIGHBOURS) for k in range(_NEIGHBOURS)]
        names = [subjects.names[row] if subjects.names else f"no. {row}" for row in rows]
        images = to_uint8(pipeline.sample(subjects.asked(pipeline, rows, inputs.seed)).x).cpu()
        return NeighbourSection(gallery.neighbours(images, names, train), None, f"the first of seed {inputs.seed}")
    order = permutation(measured.samples, seed_of("shown neighbours", measured.seed), 0)
    numbers = sorted(order[:_NEIGHBOURS].tolist())
    names = [f"{class_name(pipeline, measured.label_of(k))} no. {k}".strip() for k in numbers]
    some = gallery.neighbours(measured.drawn(pipeline, numbers), names, train)
    nearest = measured.scores.nearest[: gallery.columns_for(pipeline.shape)]
    if not nearest:
        return NeighbourSection(some, None, "a random choice of those that were measured")
    closest = gallery.pairs(
        measured.drawn(pipeline, [pair.sample for pair in nearest]),
        train,
        [pair.training for pair in nearest],
        [pair.distance for pair in nearest],
    )
    return NeighbourSection(some, closest, "a random choice of those that were measured")


class CostSection(NamedTuple):
    """What the run took."""

    charts: tuple[Chart, ...]
    rows: tuple[tuple[str, str], ...]


def _cost(inputs: ReportInputs) -> CostSection:
    log, measured = inputs.log, inputs.measured
    rows = [(name, tables.duration(seconds)) for name, seconds in inputs.seconds.items()]
    if measured is not None:
        rows.append(
            (f"sampling an image ({measured.evaluations} evaluations)", tables.duration(measured.seconds_per_image))
        )
    spent = sum(record.get("seconds") or 0.0 for record in log)
    if spent > 0:
        waited = sum(record.get("waited") or 0.0 for record in log)
        rows.append(("share of training spent waiting for data", f"{100 * waited / spent:.1f} %"))
        steps = [record["seconds"] for record in log if record.get("seconds")]
        rows.append(("a training step (median)", tables.duration(sorted(steps)[len(steps) // 2])))
    rows += [(name, tables.size(count)) for name, count in inputs.memory.items()]
    charts = [chart for chart in (plots.speed_chart(log), plots.rate_chart(log)) if chart is not None]
    return CostSection(tuple(charts), tuple(rows))
