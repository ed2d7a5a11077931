"""``unfog train``."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from unfog.checkpoint import SaveError, list_checkpoints, read_checkpoint
from unfog.cli.console import output, progress
from unfog.cli.costs import cost_of, count
from unfog.cli.errors import CommandError, refusing
from unfog.cli.evaluate import report_on
from unfog.cli.options import Sampling
from unfog.cli.progress import TrainProgress
from unfog.cli.sources import find_recipe
from unfog.cli.together import said_once, together
from unfog.data.dataset import DataInfo
from unfog.recipe.build import fit_to_data, notices
from unfog.recipe.card import DataCard
from unfog.recipe.data import Data, open_data
from unfog.recipe.load import dump
from unfog.recipe.run import MANIFEST, Run
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train
from unfog.training.optim import learning_rate
from unfog.training.parallel import World
from unfog.training.signals import Stop, stop_on_signals
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError


def run(which: str, settings: Sequence[str], out: Path | None, *, resume: bool, dry_run: bool, report: bool) -> int:
    """Train; see ``commands.running.train``."""
    with together() as world:
        return _run(world, which, settings, out, resume=resume, dry_run=dry_run, report=report)


def _run(
    world: World, which: str, settings: Sequence[str], out: Path | None, *, resume: bool, dry_run: bool, report: bool
) -> int:
    found = find_recipe(which, () if resume else settings)
    folder = out or (found.run.folder if found.run is not None and resume else Path("runs") / found.recipe.name)
    again = shlex.join(["unfog", "train", which, "--out", str(folder), "--resume"])
    # Processes that are started again after a failure are started with the same words as at first.
    resume = resume or (world.restarts and world.led(lambda: (folder / MANIFEST).exists()))
    with refusing():
        before = _to_resume(found.recipe, folder) if resume else None
        opened = before.changed(settings) if before else None
        with world.in_turn():
            data = opened.data() if opened else _opened(found.recipe)
        recipe = opened.recipe if opened else _fitted(found.recipe, data.train.info)
    if dry_run:
        _show(recipe, data)
        return 0
    with refusing():
        command = shlex.join(["unfog", "train", which, *settings, "--out", str(folder)])
        started = opened or world.led(lambda: _created(folder, recipe, data, command))
    _tell(started, data)
    if before:
        _tell_rate(before, started)
    _train(world, started, data, again)
    if report:
        try:
            report_on(started, data, Sampling(), world=world)
        except CommandError as error:
            note = f"{folder} is trained and saved, but could not be measured"
            raise CommandError(f"{note}: {error}", error.status) from error
    return 0


def _opened(recipe: Recipe) -> Data:
    return open_data(recipe.data, labelled=recipe.condition.classes)


def _to_resume(recipe: Recipe, folder: Path) -> Run:
    if not (folder / MANIFEST).exists():
        raise CommandError(f"there is no run in {folder} to resume; leave out --resume to start it, or give its --out")
    run = Run.open(folder)
    if run.recipe.name != recipe.name:
        raise CommandError(f"the run in {folder} is of the recipe {run.recipe.name!r}, not {recipe.name!r}")
    return run


def _created(folder: Path, recipe: Recipe, data: Data, command: str) -> Run:
    try:
        return Run.create(folder, recipe, data.train.info, command=command)
    except FileExistsError as error:
        raise CommandError(f"{error}: continue a run with --resume, or give another folder with --out") from error


def _fitted(recipe: Recipe, info: DataInfo) -> Recipe:
    card = DataCard.of(info)
    return fit_to_data(recipe, card)


def _show(recipe: Recipe, data: Data) -> None:
    """Print the recipe with what it costs as comments, so that the output is a recipe."""
    info = data.train.info
    cost = cost_of(recipe, *info.size)
    total = 3 * cost.flops * recipe.train.total_examples
    out = output()
    for line in (
        f"# data: {info.name}, {info.count} examples of {'x'.join(map(str, info.fields['x0'].shape))}",
        f"# network: {count(cost.parameters)} parameters, {count(cost.flops)}FLOP an image",
        f"# training: about {total:.2g} FLOP in all; one sample: {recipe.sample.cost}",
    ):
        out.print(line, soft_wrap=True, markup=False)
    out.print(dump(recipe), soft_wrap=True, markup=False, end="")


def _tell(run: Run, data: Data) -> None:
    console, info = progress(), data.train.info
    console.print(f"{run.recipe.name}: {run.recipe.train.steps} steps on {info.name}, in {run.folder}", markup=False)
    for notice in (*info.notices, *notices(run.recipe)):
        console.print(notice, markup=False, soft_wrap=True)
    if info.report.skipped:
        console.print(str(info.report), markup=False, soft_wrap=True)


def _tell_rate(before: Run, run: Run) -> None:
    """Say how another number of steps changes the learning rate at the step where the run goes on."""
    old, new = before.recipe.train, run.recipe.train
    if old.steps == new.steps or not list_checkpoints(run.folder):
        return
    with refusing():
        step = read_checkpoint(run.folder, ()).step
    middle = step * new.batch_size + new.batch_size / 2
    was = learning_rate(old.optimizer, min(middle, old.total_examples - new.batch_size / 2), old.total_examples)
    now = learning_rate(new.optimizer, middle, new.total_examples)
    if step < new.steps:
        progress().print(
            f"{new.steps} steps instead of {old.steps}: from step {step + 1} on the learning rate is that of a run of "
            f"{new.steps}, and goes from {was:.3g} to {now:.3g} there",
            markup=False,
            soft_wrap=True,
        )


def _train(world: World, run: Run, data: Data, again: str) -> None:
    """Take all steps, or leave with a message that says how to go on."""
    config, console = run.recipe.train, progress()
    last: TrainStep | None = None
    try:
        with stop_on_signals() as stop, TrainProgress(config.steps, config.batch_size, console) as shown:
            for last in _steps(world, run, data, stop):
                shown.show(last)
                for failure in last.failures:
                    console.print(f"unfog: warning: not applied: {failure}", markup=False, soft_wrap=True)
    except NonFiniteError as error:
        raise said_once(world, str(error), status=1) from error
    except SaveError as error:
        raise said_once(world, f"{error} Then go on from the last checkpoint with: {again}", status=1) from error
    except KeyboardInterrupt:
        raise CommandError(f"interrupted; go on from the last checkpoint with: {again}", status=130) from None
    if stop.signal is not None:
        where = "" if last is None else f" after step {last.index} of {config.steps}"
        raise said_once(world, f"{stop.signal.name}: saved{where}; go on with: {again}", status=128 + stop.signal)


def _steps(world: World, run: Run, data: Data, stop: Stop) -> Iterator[TrainStep]:
    with refusing():
        steps = train(run, data.train, stop=stop, world=world)
        world.led(run.save_recipe)  # now that the folder is locked, and everything accepted
        return steps
