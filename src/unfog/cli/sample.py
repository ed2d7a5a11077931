"""``unfog sample``."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress

from unfog.checkpoint import JSON
from unfog.cli.conditions import Known, attributes_of, condition_of, label_number
from unfog.cli.console import output, progress
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling
from unfog.cli.sources import open_run, run_settings, weights_of
from unfog.cli.together import together
from unfog.pipeline import Pipeline, Samples
from unfog.recipe.build import build_classifier
from unfog.recipe.export import GRID, Record, file_names, origin_of, read_record, save_images
from unfog.recipe.run import Run, StoredWeights, Weights, default_device
from unfog.sampling.request import SampleRequest
from unfog.training.parallel import World


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where nothing was said."""

    count: int | None
    labels: tuple[str, ...]
    seed: int | None
    first: int | None
    sampling: Sampling
    attributes: tuple[str, ...] = ()
    negative: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guides:
    """Runs of the models that guide; None where there is none."""

    classifier: Path | None = None
    weak: Path | None = None


def run(folder: Path, wanted: Wanted, guides: Guides, *, batch_size: int, again: Path | None, out: Path | None) -> int:
    """Draw samples; see ``commands.running.sample``."""
    with together() as world:
        return _run(world, folder, wanted, guides, batch_size, again, out)


def _run(
    world: World,
    folder: Path,
    wanted: Wanted,
    guides: Guides,
    batch_size: int,
    again: Path | None,
    out: Path | None,
) -> int:
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
        if record is None:
            _require_scales(guides, request)
        pipeline, origins = _guided(opened.pipeline(weights), guides)
        if record is not None and again is not None:
            _require_same_guides(record, origins, again)
        target = world.led(lambda: _folder(opened, request, out))
    began = time.perf_counter()
    samples = _draw(pipeline, request, world)
    if samples is None:
        return 0
    seconds = time.perf_counter() - began
    paths = save_images(samples, target, classes=pipeline.classes, origin={**origin_of(opened, weights), **origins})
    progress().print(
        f"{request.count} sample{'s' if request.count > 1 else ''} in {seconds:.1f} s "
        f"({request.cost(samples.settings)} each), from step {weights.step} "
        f"({weights.group})",
        markup=False,
    )
    if samples.latent:
        progress().print(
            f"a sample is a code of a picture: a NumPy array {tuple(samples.x[0].shape)} of float32, to be decoded by "
            "the autoencoder that the model was trained with, and a JSON file that tells how it was made",
            markup=False,
            soft_wrap=True,
        )
    elif paths[0].suffix == ".npy":
        progress().print(
            f"a sample of {len(samples.x[0])} channels is a NumPy array (C, H, W) of uint8, with a JSON file that "
            f"tells how it was made; {GRID} has a row for each sample and a column for each channel",
            markup=False,
            soft_wrap=True,
        )
    output().print(str(paths[0] if again else target), markup=False, soft_wrap=True)
    return 0


def _guided(pipeline: Pipeline, guides: Guides) -> tuple[Pipeline, dict[str, JSON]]:
    """Return a pipeline with the models that guide, and which ones they are."""
    origins: dict[str, JSON] = {}
    if guides.classifier is not None:
        opened = open_run(guides.classifier)
        weights = opened.weights()
        network = opened.network(weights).to(default_device())
        read = build_classifier(opened.recipe, network)
        shape, classes = opened.manifest.data.shape, opened.manifest.data.classes
        if shape != pipeline.shape or len(classes) != len(pipeline.classes):
            raise CommandError(
                f"--classifier: {guides.classifier} has other examples or classes than the run that it is to guide"
            )
        pipeline = pipeline.guided(classifier=read)
        origins["classifier"] = origin_of(opened, weights)
    if guides.weak is not None:
        opened = open_run(guides.weak)
        weights = opened.weights()
        weaker = opened.pipeline(weights)
        if _known_to(weaker) != _known_to(pipeline):
            raise CommandError(
                f"--weak: {guides.weak} has other examples or conditions than the run that it is to guide"
            )
        pipeline = pipeline.guided(weak=weaker.denoiser)
        origins["weak"] = origin_of(opened, weights)
    return pipeline, origins


def _known_to(pipeline: Pipeline) -> tuple[object, ...]:
    """Return the shape of what a model draws, and how many values each of its conditions has."""
    null = pipeline.conditioner.null(1)
    return pipeline.shape, {name: value.tolist() for name, value in null.items()}


def _require_scales(guides: Guides, request: SampleRequest) -> None:
    """Refuse a model to guide by without a scale, which would do nothing."""
    settings = request.settings
    assert settings is not None
    if guides.classifier is not None and settings.classifier == 0:
        raise CommandError("--classifier does nothing without a scale: give --classifier-scale, such as 2")
    if guides.weak is not None and settings.weak == 1:
        raise CommandError("--weak does nothing without a scale: give --weak-scale, such as 2")


def _require_same_guides(record: Record, origins: Mapping[str, JSON], path: Path) -> None:
    """Refuse to make a sample again with other models to guide it, or without them."""
    for name in ("classifier", "weak"):
        made, given = record.origin.get(name), origins.get(name)
        if made is None and given is not None:
            raise CommandError(f"--{name}: {path} was made without one; leave it out")
        if isinstance(made, dict) and made.get("sha256") != (given.get("sha256") if isinstance(given, dict) else None):
            which = f"{made.get('weights')} of step {made.get('step')} of the run {made.get('run')!r}"
            raise CommandError(f"{path} was guided by {which}: give that run as --{name}")


def _request(run: Run, wanted: Wanted, weights: StoredWeights) -> SampleRequest:
    count = 64 if wanted.count is None else wanted.count
    settings = run_settings(wanted.sampling, run.recipe.sample, run, weights)
    data = run.manifest.data
    known = Known(
        data.classes if run.recipe.condition.classes else (), data.attributes if run.recipe.condition.attributes else ()
    )
    with refusing():
        return SampleRequest(
            count,
            labels_for(run, wanted.labels, max(count, 0)),
            wanted.seed or 0,
            wanted.first or 0,
            settings,
            attributes=attributes_of(wanted.attributes, known),
            negative=None if wanted.negative is None else condition_of(wanted.negative, known, "--negative"),
            also=tuple(condition_of(text, known, "--also") for text in wanted.also),
        )


def labels_for(run: Run, given: Sequence[str], count: int) -> list[int] | None:
    """Return a class for each sample: those given, in turn.

    Raises:
        CommandError: if there is no such class, or there are more classes than samples.
    """
    classes = run.manifest.data.classes if run.recipe.condition.classes else ()
    if given == ("none",) or (not given and not classes):
        return None
    if not classes:
        raise CommandError(f"--label: {run.folder} was trained without classes; leave it out")
    if not given or given == ("all",):
        return [k % len(classes) for k in range(count)]
    numbers = [label_number(label, classes, "--label") for label in given]
    if len(numbers) > count:
        what = f"{count} sample{'' if count == 1 else 's'}"
        raise CommandError(f"--label: {len(numbers)} classes are given for {what}: ask for more with --count")
    return [numbers[k % len(numbers)] for k in range(count)]


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
    latent = run.manifest.data.latent
    names = [*([] if latent else [GRID]), *file_names(run.manifest.data.shape[0], request, latent=latent)]
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
    return None if drawn is None else Samples(drawn, request, request.settings or pipeline.settings, pipeline.latent)
