"""``unfog inspect``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from unfog.checkpoint import JSON, list_checkpoints
from unfog.cli.console import number, output, show, table
from unfog.cli.costs import layers_of
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling
from unfog.cli.sources import find_recipe, find_value, open_run, settings_of
from unfog.diffusion.learned import Learned
from unfog.diffusion.schedule import Cosine, Schedule
from unfog.evaluation.schedules import plot_schedules
from unfog.recipe.build import schedule_of
from unfog.recipe.load import dump
from unfog.recipe.plain import encode
from unfog.recipes import RECIPES
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import TimeGrid, Trailing
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import Sampler, TableSampler
from unfog.sampling.table import Row
from unfog.training.ema import Average


def schedule(
    which: str, settings: Sequence[str], points: int, *, beside: Sequence[str] = (), plot: Path | None = None
) -> int:
    """Show schedules; see ``commands.looking.schedule``."""
    if points < 2:
        raise CommandError(f"--points: expected at least 2, got {points}")
    found = [_schedule(which, settings), *(_schedule(other, ()) for other in beside)]
    if plot is not None:
        with refusing():
            plot_schedules(_told_apart([" ".join([which, *settings]), *beside]), found, plot)
    for one in found:
        _show_schedule(one, points)
    if plot is not None:
        output().print(str(plot), markup=False, soft_wrap=True)
    return 0


def _schedule(which: str, settings: Sequence[str]) -> Schedule:
    """Return the schedule of a name, a recipe, or a run, of which it may have been learned."""
    if not _is_recipe(which):
        value: Schedule = find_value(Schedule, which, settings, "schedule")
        return value
    _refuse(settings)
    found = find_recipe(which)
    if found.run is None or not isinstance(found.recipe.schedule, Learned):
        return found.recipe.schedule
    with refusing():
        return schedule_of(found.recipe, found.run.network())


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return names of which none occurs twice: of two that are alike the later one is numbered."""
    return [f"{name} ({names[: k + 1].count(name)})" if name in names[:k] else name for k, name in enumerate(names)]


def _show_schedule(shown: Schedule, points: int) -> None:
    t = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
    columns = (t, shown.alpha(t), shown.sigma(t), shown.log_snr(t), shown.network_time(t))
    listing = table("t>", "alpha>", "sigma>", "log-SNR>", "network time>")
    for values in zip(*(column.tolist() for column in columns), strict=True):
        listing.add_row(*map(number, values))
    show(_named(Schedule, shown), listing)


def sampler(which: str, settings: Sequence[str], *, schedule: str | None, grid: str | None, steps: int | None) -> int:
    """Show a sampler; see ``commands.looking.sampler``."""
    if _is_recipe(which):
        _refuse(settings)
        default, curve = find_recipe(which).recipe.sample, _schedule(which, ())
    else:
        default = SampleSettings(DDIM(), Trailing(), steps=10)
        default = SampleSettings(find_value(Sampler, which, settings, "sampler"), default.grid, default.steps)
        curve = Cosine()
    if schedule is not None:
        curve = find_value(Schedule, schedule, (), "--schedule")
    chosen = settings_of(Sampling(grid=grid, steps=steps), default)
    if not isinstance(chosen.sampler, TableSampler):
        raise CommandError(f"{type(chosen.sampler).__name__} is no table of numbers, but an algorithm of its own")
    with refusing():
        rows = chosen.sampler.table(curve, chosen.grid.times(curve, chosen.steps))
    where = f"{_named(Schedule, curve)}, {_named(TimeGrid, chosen.grid)}, {chosen.steps} steps"
    listing = table("evaluation>", "t>", "x>", "x0, newest first", "noise>", "leads to t>")
    for index, row in enumerate(rows):
        _add(listing, index, row)
    show(f"{_named(Sampler, chosen.sampler)} on {where}", listing)
    return 0


def _add(listing: Table, index: int, row: Row) -> None:
    for place, move in enumerate(row.all_moves):
        weights = ", ".join(map(number, move.x0))
        first = (str(index), number(row.t)) if place == 0 else ("", "")
        goal = number(row.s) if move.commits else f"{number(row.s)} (looks ahead)"
        if move is row.before:
            goal = f"{number(row.t)} (before the evaluation)"
        listing.add_row(*first, number(move.x), weights, number(move.noise), goal)


def network(which: str, settings: Sequence[str], *, depth: int, size: int | None) -> int:
    """Show a network; see ``commands.looking.network``."""
    found = find_recipe(which, settings)
    height, width = _size(found.recipe.data.size, size, found.run.manifest.data.shape if found.run else None)
    with refusing():
        layers = layers_of(found.recipe, height, width, depth)
    channels = found.recipe.network.in_channels
    listing = table("layer", "kind", "output", "parameters>", "FLOP>")
    for layer in layers:
        shape = "x".join(map(str, layer.shape[1:]))
        listing.add_row(layer.name or "(itself)", layer.kind, shape, f"{layer.parameters:,}", f"{layer.flops:,}")
    totals = sum(layer.parameters for layer in layers), sum(layer.flops for layer in layers)
    listing.add_section()
    listing.add_row("all", "", "", *(f"{total:,}" for total in totals))
    show(f"{which}, on {height}x{width}x{channels}", listing)
    return 0


def run(folder: Path) -> int:
    """Show a run; see ``commands.looking.inspect_run``."""
    opened = open_run(folder)
    with refusing():
        log = opened.log()
    card, kept = opened.manifest.data, opened.recipe.train.averages
    saved = list_checkpoints(folder)
    step = max((int(path.name.split("-")[1]) for path in saved), default=0)
    facts = table("", "")
    classes = f"{len(card.classes)} classes" if card.classes else "no classes"
    for name, value in (
        ("recipe", f"{opened.recipe.name}: {opened.recipe.description}"),
        ("data", f"{card.name}, {card.count} examples of {'x'.join(map(str, card.shape))}, {classes}"),
        ("fingerprint", card.fingerprint),
        ("steps", f"{step} of {opened.recipe.train.steps} saved"),
        ("checkpoints", ", ".join(path.name for path in saved) or "none yet"),
        ("averages", ", ".join(_described(average, opened.recipe.train.steps) for average in kept) or "none"),
        ("created", f"{opened.manifest.created} by Unfog {opened.manifest.unfog}, torch {opened.manifest.torch}"),
    ):
        facts.add_row(name, value)
    show(str(folder), facts)
    losses = table("step>", "examples>", "loss>", "gradient norm>", "rate>", "seconds a step>")
    for record in log[-10:]:
        columns = ("step", "examples", "loss", "grad_norm", "lr", "seconds")
        losses.add_row(*(_cell(record.get(name)) for name in columns))
    show("last lines of the log", losses)
    output().print(dump(opened.recipe), markup=False, soft_wrap=True, end="")
    return 0


def _described(average: Average, steps: int) -> str:
    return f"{average.name} ({100 * average.relative_length(steps):.2g} % of the run)"


def _cell(value: JSON) -> str:
    if isinstance(value, float):
        return number(value)
    return "not finite" if value is None else json.dumps(value)


def _is_recipe(which: str) -> bool:
    """Tell whether a recipe or run is meant, and not the name of a value."""
    return which in RECIPES or Path(which).exists() or Path(which).suffix in (".yaml", ".yml")


def _refuse(settings: Sequence[str]) -> None:
    if settings:
        raise CommandError(f"{settings[0]}: a recipe's own settings are shown; settings go with a name alone")


def _size(of_data: int | None, given: int | None, shape: tuple[int, ...] | None) -> tuple[int, int]:
    if given is not None:
        return given, given
    if shape is not None:
        return shape[1], shape[2]
    if of_data is None:
        raise CommandError("the recipe does not say how large its pictures are: give --size")
    return of_data, of_data


def _named(kind_of: Any, value: object) -> str:
    """Return what a value is called in recipes, with its settings."""
    node = encode(value, kind_of)
    assert isinstance(node, dict)
    kind = node.pop("kind")
    told = ", ".join(f"{name}={_shown(item)}" for name, item in node.items())
    return f"{kind}({told})" if told else str(kind)


def _shown(item: JSON) -> str:
    if isinstance(item, dict):
        return str(item.get("kind"))
    return f"{len(item)} numbers" if isinstance(item, list) else str(item)
