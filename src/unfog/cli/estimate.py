"""``unfog estimate``: what a run will need, before it starts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from unfog.cli.console import duration, output, progress, show, table
from unfog.cli.costs import cost_of, count
from unfog.cli.errors import CommandError, refusing
from unfog.cli.sources import Found, find_recipe
from unfog.data.dataset import ArrayDataset, Dataset
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.recipe.build import fit_to_data, notices
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.estimate import (
    Activations,
    Disk,
    Memory,
    Part,
    Spread,
    disk_of,
    memory_of,
    parts_of,
    shapes_of,
    stand_ins,
    training_flops,
    training_seconds,
)
from unfog.recipe.networks import classes_of
from unfog.recipe.probe import activations, available_memory, matrix_rate, time_sampling, time_steps
from unfog.recipe.run import default_device
from unfog.recipe.schema import Recipe
from unfog.recipe.watch import preview_count

PICTURES = 64
"""How many pictures the time of sampling is told for."""

_OVERHEAD = {"cpu": 2.0, "cuda": 1.1}
"""Memory of the process over that of its tensors: measured 1.2 to 1.8 on the CPU, where the C library keeps freed
blocks of many sizes; on CUDA torch's allocator rounds and keeps blocks as well, but less."""

_KEPT_FREE = 0.1
"""Share of the memory that is left to others."""

_EXAMPLES = 512
"""Of the stand-in for data that cannot be opened."""

MEASURED = ("activations", "time", "sampling_seconds", "matrix_flops", "waited", "available", "largest_micro_batch")
COMPUTED = ("parameters", "parts", "memory", "forward_flops", "training_flops", "disk")


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        batch: examples of a measured step.
        steps: how many steps were measured.
        step: seconds of one.
        waited: share of that spent on waiting for data.
        matrix_flops: best rate of a matrix product in the precision of the training, FLOP a second.
        share: of that rate that training reaches.
        time: seconds of the whole training.
        sampling_seconds: for 64 pictures; None where nothing is sampled.
        activations: memory that comes and goes, by micro-batch.
        micro_batches: at which that was measured.
        available: memory that can be had.
        largest_micro_batch: that fits into it.
    """

    batch: int
    steps: int
    step: Spread
    waited: float
    matrix_flops: float
    share: float
    time: Spread
    sampling_seconds: float | None
    activations: Activations
    micro_batches: tuple[int, int]
    available: int
    largest_micro_batch: int


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        recipe: its name.
        data: what it was fitted to.
        device: where it was measured.
        parameters: of the network.
        parts: parameters by module.
        memory: bytes held all the time.
        forward_flops: multiply-adds x 2 of a forward pass for one example.
        training_flops: the same, forward and backward.
        disk: bytes on disk.
        probe: what was measured; None if nothing was.
        micro_batches: bytes for a micro-batch, all in all; empty if nothing was measured.
        notes: what a reader should know.
    """

    recipe: str
    data: str
    device: str
    parameters: int
    parts: list[Part]
    memory: Memory
    forward_flops: int
    training_flops: int
    disk: Disk
    probe: Probe | None
    micro_batches: dict[int, int]
    notes: list[str]


class _Material(NamedTuple):
    recipe: Recipe
    dataset: Dataset
    notes: list[str]


def run(which: str, settings: Sequence[str], *, batches: Sequence[int], seconds: float, as_json: bool) -> int:
    """Estimate; see ``commands.running.estimate``."""
    if seconds < 0:
        raise CommandError(f"--probe: expected seconds, or 0 to measure nothing, got {seconds}")
    if wrong := [size for size in batches if size < 1]:
        raise CommandError(f"--batch: expected at least 1, got {wrong[0]}")
    if batches and not seconds:
        raise CommandError("--batch needs a measurement of the activations: leave out --probe 0")
    material = _material(find_recipe(which, settings))
    estimate = _estimate(material, batches, seconds)
    if as_json:
        told = {**asdict(estimate), "measured": list(MEASURED), "computed": list(COMPUTED)}
        output().print(json.dumps(told, indent=1), markup=False, soft_wrap=True)
    else:
        _show(material.recipe, estimate)
    return 0


def _material(found: Found) -> _Material:
    """Return a recipe that is fitted to its data, and the data; or noise of their shape where they are not there."""
    recipe = found.recipe
    try:
        dataset = open_data(recipe.data).train
        notes = list(dataset.info.notices)
    except (ValueError, OSError, ImportError) as error:
        shape = found.run.manifest.data.shape if found.run else _shape(recipe)
        if shape is None:
            raise CommandError(f"the data cannot be opened, and the recipe does not say their size: {error}") from error
        dataset = _noise(recipe, shape)
        notes = [f"the data cannot be opened, so noise of their shape stands in for them: {error}"]
    card = DataCard.of(dataset.info)
    with refusing():
        fitted = fit_to_data(recipe, card)
        return _Material(fitted, dataset, [*notes, *notices(fitted)])


def _shape(recipe: Recipe) -> tuple[int, ...] | None:
    size = recipe.data.size
    return None if size is None else (recipe.data.channels or recipe.network.in_channels, size, size)


def _noise(recipe: Recipe, shape: tuple[int, ...]) -> Dataset:
    classes = (classes_of(recipe.network) or 1) if recipe.condition.classes else None
    pixels = np.random.default_rng(0).integers(0, 256, (_EXAMPLES, *shape), dtype=np.uint8)
    labels = None if classes is None else np.arange(_EXAMPLES) % classes
    names = None if classes is None else [str(k) for k in range(classes)]
    return ArrayDataset(pixels, labels, name="noise", classes=names)


def _estimate(material: _Material, batches: Sequence[int], seconds: float) -> Estimate:
    recipe, dataset, notes = material
    network = shapes_of(recipe)
    height, width = dataset.info.size
    x, level, cond = stand_ins(recipe, height, width)
    memory, cost = memory_of(recipe, network), cost_of(recipe, height, width)
    learning = training_flops(network, x, level, cond)
    train, shape = recipe.train, "x".join(map(str, DataCard.of(dataset.info).shape))
    if train.compile and seconds:
        notes = [*notes, "train.compile: measured without; compiling takes minutes at the start and saves some later"]
    if isinstance(recipe.network, EncoderConfig):
        notes = [*notes, "nothing is sampled: a classifier of noisy data guides another model"]
    probe = _probe(recipe, dataset, memory, learning, seconds) if seconds else None
    wanted = tuple(batches) or (train.micro_batch or train.batch_size,)
    return Estimate(
        recipe=recipe.name,
        data=f"{dataset.info.name}, {dataset.info.count} examples of {shape}",
        device=_device(),
        parameters=cost.parameters,
        parts=parts_of(network),
        memory=memory,
        forward_flops=cost.flops,
        training_flops=learning,
        disk=disk_of(recipe, network),
        probe=probe,
        micro_batches={} if probe is None else {n: memory.total + round(probe.activations.at(n)) for n in wanted},
        notes=notes,
    )


def _probe(recipe: Recipe, dataset: Dataset, memory: Memory, flops: int, seconds: float) -> Probe:
    progress().print(f"measuring for about {seconds:.0f} s", markup=False)
    kind = default_device().type
    available = available_memory()
    line = activations(recipe, dataset)
    steps = time_steps(recipe, dataset, 0.6 * seconds)
    draws = not isinstance(recipe.network, EncoderConfig)
    sampling = time_sampling(recipe, dataset, PICTURES, 0.2 * seconds) if draws else None
    rate = matrix_rate(recipe.train.precision, min(1.0, 0.1 * seconds))
    step = Spread.of(steps.seconds)
    shown = preview_count(classes_of(recipe.network) or 0)
    preview = 0.0 if sampling is None else sampling * shown / PICTURES
    room = available * (1 - _KEPT_FREE) / _OVERHEAD[kind] - memory.total
    return Probe(
        batch=steps.batch,
        steps=len(steps.seconds),
        step=step,
        waited=steps.waited,
        matrix_flops=rate,
        share=flops * steps.batch / step.median / rate,
        time=training_seconds(recipe, step, steps.batch, preview),
        sampling_seconds=sampling,
        activations=line.activations,
        micro_batches=line.sizes,
        available=available,
        largest_micro_batch=line.activations.largest(room),
    )


def _device() -> str:
    if default_device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _show(recipe: Recipe, estimate: Estimate) -> None:
    memory, probe, disk = estimate.memory, estimate.probe, estimate.disk
    out = output()
    parameters = table("module", "parameters>", "share>")
    for part in estimate.parts:
        parameters.add_row(part.name, f"{part.parameters:,}", f"{part.parameters / estimate.parameters:.1%}")
    parameters.add_section()
    parameters.add_row("all", f"{estimate.parameters:,}", "")
    show(f"{estimate.recipe}, on {estimate.data}", parameters)
    held = table("memory of training", "bytes>", "")
    rows = [("weights", memory.weights), ("gradients", memory.gradients), ("optimiser state", memory.optimizer)]
    rows += list(memory.averages.items())
    rows += [("buffers of the averages", memory.copied)] if memory.copied else []
    for name, value in rows:
        held.add_row(name, _bytes(value), "computed")
    if probe is not None:
        where = f"measured at {' and '.join(map(str, probe.micro_batches))}, extrapolated"
        for size, total in estimate.micro_batches.items():
            held.add_row(f"activations, micro-batch {size}", _bytes(total - memory.total), where)
            held.add_row(f"all, micro-batch {size}", _bytes(total), "")
    show("", held)
    facts = table("", "", "")
    for row in _facts(recipe, estimate, disk, probe):
        facts.add_row(*row)
    show("", facts)
    for note in estimate.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)


def _facts(recipe: Recipe, estimate: Estimate, disk: Disk, probe: Probe | None) -> list[tuple[str, str, str]]:
    rows = [
        (
            "arithmetic an image",
            f"{count(estimate.forward_flops)}FLOP forward, {count(estimate.training_flops)}FLOP in training",
            "computed",
        ),
        ("checkpoint on disk", _bytes(disk.checkpoint), "computed"),
        ("run folder at the end", f"{_bytes(disk.finished)}; at most {_bytes(disk.most)} on the way", "computed"),
    ]
    if probe is None:
        return rows
    scaled = "" if probe.batch == recipe.train.batch_size else f", scaled from {probe.batch} examples"
    time, step = probe.time, probe.step * (recipe.train.batch_size / probe.batch)
    kind, most = default_device().type, "at most " if recipe.sample.sampler.adaptive else ""
    sampling = []
    if probe.sampling_seconds is not None:
        made = f"measured: one evaluation, times {most}{recipe.sample.evaluations}"
        sampling = [(f"sampling {PICTURES} pictures", _long(probe.sampling_seconds), made)]
    return [
        *rows,
        (
            "a step",
            f"{step.median:.3g} s [{step.low:.3g}, {step.high:.3g}], {probe.waited:.0%} waiting for data",
            f"measured: median and quartiles of {probe.steps} steps{scaled}",
        ),
        (
            "training",
            f"{_long(time.median)} [{_long(time.low)}, {_long(time.high)}]",
            f"{recipe.train.steps} such steps, without checkpoints and report",
        ),
        (
            "share of the matrix rate",
            f"{probe.share:.0%} of {count(probe.matrix_flops)}FLOP/s",
            f"measured: best {recipe.train.precision.value} product",
        ),
        *sampling,
        (
            "largest micro-batch",
            str(probe.largest_micro_batch),
            f"of {_bytes(probe.available)} free on {estimate.device}: a tenth left free, and "
            f"{_OVERHEAD[kind]:g} times the memory of the tensors taken for the process",
        ),
    ]


def _long(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return duration(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:.3g} days"


def _bytes(value: float) -> str:
    return f"{count(value)}B"
