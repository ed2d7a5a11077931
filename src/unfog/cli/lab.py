"""``unfog lab``."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from unfog.cli.console import number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.lists import counts_of, name_of, values_of
from unfog.cli.options import Experiment
from unfog.cli.sources import find_value
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.lab.field import Field
from unfog.evaluation.lab.measure import Laboratory, Reading, Result, Setup
from unfog.evaluation.lab.mixture import PRESETS, Mixture
from unfog.evaluation.lab.page import PageInputs, told_order, write_page
from unfog.recipe.errors import did_you_mean
from unfog.recipe.load import parse
from unfog.recipe.plain import decode
from unfog.sampling.grid import TimeGrid
from unfog.sampling.sampler import Sampler

_PRECISIONS: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def run(asked: Experiment, out: Path) -> int:
    """Run samplers where everything is exact; see ``commands.measuring.lab``."""
    samplers = {name: sampler for sampler, name in values_of(Sampler, asked.samplers, "--samplers")}
    steps = counts_of(asked.steps, "--steps")
    order_steps = [] if asked.order_steps == "none" else counts_of(asked.order_steps, "--order-steps")
    if asked.shown is not None and asked.shown < 1:
        raise CommandError(f"--shown: expected at least 1 step, got {asked.shown}")
    if out.is_dir():
        raise CommandError(f"--out: expected a file such as lab.html, got the folder {out}")
    laboratory = Laboratory(_setup(asked))
    with refusing():
        # A grid or schedule that goes with no number of steps is refused before anything runs.
        laboratory.times(steps[0])
    results = []
    for name, sampler in samplers.items():
        with refusing():
            results.append(laboratory.result(name, sampler, steps, order_steps))
        progress().print(f"{name}: {_summary(results[-1])}", markup=False, soft_wrap=True)
    facts = _facts(asked, laboratory.setup)
    shown = asked.shown or min(steps, key=lambda count: abs(count - 10))
    with refusing():
        write_page(
            out, PageInputs("Samplers on " + facts["Data"], _command(asked, out), facts, laboratory, results, shown)
        )
    _print(facts, results)
    output().print(str(out), markup=False, soft_wrap=True)
    return 0 if any(result.readings for result in results) else 1


def _command(asked: Experiment, out: Path) -> str:
    """Return the command that makes the page again; what is as it is by default is left out."""
    given = [
        (field.name, getattr(asked, field.name))
        for field in fields(asked)
        if getattr(asked, field.name) != field.default
    ]
    options = [text for name, value in given for text in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["unfog", "lab", *options, "--out", str(out)])


def _setup(asked: Experiment) -> Setup:
    if asked.precision not in _PRECISIONS:
        hint = did_you_mean(asked.precision, _PRECISIONS)
        raise CommandError(f"--precision: expected one of {', '.join(_PRECISIONS)}, got {asked.precision!r}{hint}")
    with refusing():
        return Setup(
            Field(_mixture(asked.data), asked.guidance),
            find_value(Schedule, asked.schedule, (), "--schedule"),
            find_value(TimeGrid, asked.grid, (), "--grid"),
            find_value(Parameterization, asked.parameterization, (), "--parameterization"),
            _PRECISIONS[asked.precision],
            asked.samples,
            asked.seed,
        )


def _mixture(text: str) -> Mixture:
    """Return the mixture of a name, or of components in YAML."""
    name = text.strip().replace("_", "-").lower()
    if name in PRESETS:
        return PRESETS[name]
    plain = parse(text, "--data")
    if not isinstance(plain, list):
        known = f"{', '.join(PRESETS)}, or components such as [{{mean: [-1, 0]}}, {{mean: [1, 0], weight: 2}}]"
        raise CommandError(f"--data: expected {known}, got {text!r}{did_you_mean(name, PRESETS)}")
    mixture: Mixture = decode(Mixture, {"components": plain}, "--data")
    return mixture


def _facts(asked: Experiment, setup: Setup) -> dict[str, str]:
    data = next((name for name, mixture in PRESETS.items() if mixture == setup.field.mixture), None)
    count = len(setup.field.mixture.components)
    return {
        "Data": data or f"{count} component{'s' if count > 1 else ''}",
        "Schedule": name_of(setup.schedule, Schedule),
        "Grid": name_of(setup.grid, TimeGrid),
        "Parameterization": f"{name_of(setup.parameterization, Parameterization)}, output in {asked.precision}",
        "Guidance": "none" if setup.field.guidance is None else f"{setup.field.guidance:g}",
        "Samples": f"{setup.samples:,}, seed {setup.seed}",
    }


def _summary(result: Result) -> str:
    told = [f"{len(result.readings)} of {len(result.readings) + len(result.refusals)} numbers of steps"]
    if result.order is not None and result.order.slope is not None:
        told.append(f"order {result.order.slope:.2f}")
    return ", ".join(told)


def _print(facts: Mapping[str, str], results: Sequence[Result]) -> None:
    listing = table(
        "sampler",
        "steps>",
        "evaluations>",
        "path error>",
        "of the last jump>",
        "law error>",
        "claimed order>",
        "measured order>",
    )
    for result in results:
        order = result.order
        orders = ("–", "–")
        if order is not None:
            measured = "–" if order.slope is None else told_order(order)
            orders = ("–" if order.claimed is None else str(order.claimed), measured)
        for place, reading in enumerate(result.readings):
            listing.add_row(result.name if place == 0 else "", *_cells(reading), *(orders if place == 0 else ("", "")))
        for refusal in result.refusals:
            listing.add_row(result.name, str(refusal.steps), f"refused: {refusal.reason}")
    show(", ".join(f"{name.lower()} {value}" for name, value in facts.items()), listing)


def _cells(reading: Reading) -> tuple[str, ...]:
    path = "–" if reading.path is None else number(reading.path.value)
    jump = "–" if reading.jump is None else number(reading.jump)
    return str(reading.steps), str(reading.evaluations), path, jump, number(reading.law.value)
