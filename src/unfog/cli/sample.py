"""``unfog sample``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress

from unfog.cli.console import output, progress
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling
from unfog.cli.sources import open_run, run_settings, weights_of
from unfog.cli.together import together
from unfog.pipeline import Pipeline, SampleRequest, Samples
from unfog.recipe.errors import did_you_mean
from unfog.recipe.export import GRID, Record, file_names, origin_of, read_record, save_images
from unfog.recipe.run import Run, StoredWeights, Weights
from unfog.training.parallel import World


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where nothing was said."""

    count: int | None
    labels: tuple[str, ...]
    seed: int | None
    first: int | None
    sampling: Sampling


def run(folder: Path, wanted: Wanted, *, batch_size: int, again: Path | None, out: Path | None) -> int:
    """Draw samples; see ``app.sample``."""
    with together() as world:
        return _run(world, folder, wanted, batch_size, again, out)


def _run(world: World, folder: Path, wanted: Wanted, batch_size: int, again: Path | None, out: Path | None) -> int:
    opened = open_run(folder)
    record = None if again is None else _recorded(again, wanted)
    with refusing():
        if record is None or again is None:
            weights = opened.weights(weights_of(wanted.sampling.average))
            request = _request(opened, wanted, weights)
        else:
            weights = _same_weights(opened, record, again)
            request = record.request
        request = replace(request, batch_size=batch_size)
        pipeline = opened.pipeline(weights)
        target = world.led(lambda: _folder(opened, request, out))
    began = time.perf_counter()
    samples = _draw(pipeline, request, world)
    if samples is None:
        return 0
    seconds = time.perf_counter() - began
    paths = save_images(samples, target, classes=pipeline.classes, origin=origin_of(opened, weights))
    progress().print(
        f"{request.count} sample{'s' if request.count > 1 else ''} in {seconds:.1f} s "
        f"({samples.settings.cost} each), from step {weights.step} "
        f"({weights.group})",
        markup=False,
    )
    if paths[0].suffix == ".npy":
        progress().print(
            f"a sample of {len(samples.x[0])} channels is a NumPy array (C, H, W) of uint8, with a JSON file that "
            f"tells how it was made; {GRID} has a row for each sample and a column for each channel",
            markup=False,
            soft_wrap=True,
        )
    output().print(str(paths[0] if again else target), markup=False, soft_wrap=True)
    return 0


def _request(run: Run, wanted: Wanted, weights: StoredWeights) -> SampleRequest:
    count = 64 if wanted.count is None else wanted.count
    settings = run_settings(wanted.sampling, run.recipe.sample, run, weights)
    with refusing():
        return SampleRequest(
            count, labels_for(run, wanted.labels, max(count, 0)), wanted.seed or 0, wanted.first or 0, settings
        )


def labels_for(run: Run, given: Sequence[str], count: int) -> list[int] | None:
    """Return a class for each sample: those given, in turn.

    Raises:
        CommandError: if there is no such class.
    """
    classes = run.manifest.data.classes if run.recipe.condition.classes else ()
    if given == ("none",) or (not given and not classes):
        return None
    if not classes:
        raise CommandError(f"--label: {run.folder} was trained without classes; leave it out")
    if not given or given == ("all",):
        return [k % len(classes) for k in range(count)]
    numbers = [_number(label, classes) for label in given]
    return [numbers[k % len(numbers)] for k in range(count)]


def _number(label: str, classes: Sequence[str]) -> int:
    """Return the number of a class; a name goes before a number."""
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    listed = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    hint = did_you_mean(label, classes)
    raise CommandError(
        f"--label: expected a number from 0 to {len(classes) - 1}, one of {listed}, or alone 'all' or 'none'; "
        f"got {label!r}{hint}"
    )


def _recorded(path: Path, wanted: Wanted) -> Record:
    """Return what a file says of its making, which leaves nothing else to be asked for."""
    if wanted != Wanted(None, (), None, None, Sampling()):
        raise CommandError("--from takes every setting from the file; give --out and --batch-size beside it only")
    with refusing():
        return read_record(path)


def _same_weights(run: Run, record: Record, path: Path) -> StoredWeights:
    made, group = record.origin, str(record.origin.get("weights"))
    kept = {average.name: average for average in run.recipe.train.averages}
    weights = run.weights(kept.get(group, Weights.OF_LAST_STEP))
    if made.get("sha256") != weights.sha256:
        raise CommandError(
            f"{path} was made with other weights: {group} of step {made.get('step')} of the run {made.get('run')!r}; "
            f"{run.folder} is at step {weights.step}"
        )
    return weights


def _folder(run: Run, request: SampleRequest, out: Path | None) -> Path:
    """Return where to write: a new folder, or one in which no file would be replaced."""
    if out is None:
        home = run.folder / "samples"
        numbers = [int(path.name) for path in home.iterdir() if path.name.isdecimal()] if home.is_dir() else []
        return home / f"{max(numbers, default=0) + 1:04d}"
    names = [GRID, *file_names(run.manifest.data.shape[0], request)]
    there = [name for name in names if (out / name).exists()]
    if there:
        raise CommandError(f"{out / there[0]} exists already: give another folder with --out")
    return out


def _draw(pipeline: Pipeline, request: SampleRequest, world: World) -> Samples | None:
    """Answer a request, showing the progress on a terminal; of several processes each draws a part for process 0."""
    with refusing():
        pipeline.check(request)
    start, stop = world.part(request.count)
    finished = []
    try:
        with Progress(console=progress(), disable=not progress().is_terminal) as bar:
            task = bar.add_task("sampling", total=1.0)
            for preview in pipeline.stream(request.part(start, stop)) if start < stop else ():
                bar.update(task, completed=preview.progress)
                if preview.finished:
                    finished.append(preview.step.x.cpu())
    except FloatingPointError as error:
        raise CommandError(str(error), status=1) from error
    drawn = world.gathered(torch.cat(finished) if finished else None, request.count)
    return None if drawn is None else Samples(drawn, request, request.settings or pipeline.settings)
