"""Finding what a command is to work on: recipes, runs and values of recipes by their names."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling
from unfog.recipe.errors import RecipeError
from unfog.recipe.fitted import FITTED, find_fitted
from unfog.recipe.load import load, override, parse
from unfog.recipe.plain import decode, expand
from unfog.recipe.run import MANIFEST, Run, StoredWeights, Weights
from unfog.recipe.schema import Recipe
from unfog.recipes import RECIPES, named
from unfog.sampling.grid import TimeGrid
from unfog.sampling.guidance.bounds import Bounds
from unfog.sampling.guidance.classifier_free import scale_from_w
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import Sampler
from unfog.training.ema import Average


class Found(NamedTuple):
    """A recipe, and the run that it was read from."""

    recipe: Recipe
    run: Run | None = None


def find_recipe(which: str, settings: Sequence[str] = ()) -> Found:
    """Return a named recipe, that of a YAML file or that of a run folder, with settings of its own.

    Raises:
        CommandError: if there is none, or a setting is refused.
    """
    with refusing():
        found = _find(which)
        return Found(override(found.recipe, settings), found.run)


def _find(which: str) -> Found:
    path = Path(which)
    if which in RECIPES:
        return Found(named(which))
    if (path / MANIFEST).exists():
        run = Run.open(path)
        return Found(run.recipe, run)
    if path.is_file():
        try:
            return Found(load(path.read_text(encoding="utf-8")))
        except (RecipeError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} is not a recipe: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        raise CommandError(f"there is no file {path}; a recipe is a file such as recipe.yaml, or {', '.join(RECIPES)}")
    return Found(named(which))


def find_value(kind_of: Any, which: str, settings: Sequence[str], option: str) -> Any:
    """Return a value of a type that recipes leave open, from its name and settings.

    Args:
        kind_of: a key of ``kinds.KINDS``.
        which: a name, or a mapping in YAML.
        settings: each ``name=value``.
        option: what is being set, for errors.

    Raises:
        CommandError: if there is no such value.
    """
    with refusing():
        node = expand(kind_of, parse(which, option), option)
        for setting in settings:
            name, separator, text = setting.partition("=")
            if not separator:
                raise CommandError(f"expected name=value, got {setting!r}")
            node[name] = parse(text, name)
        return decode(kind_of, node, option)


def settings_of(given: Sampling, default: SampleSettings) -> SampleSettings:
    """Return how to sample: what was given, and the rest as it is by default.

    Raises:
        CommandError: if an option is refused, or two contradict each other.
    """
    if given.guidance is not None and given.guidance_w is not None:
        raise CommandError("--guidance and --guidance-w say the same thing in two conventions: give one of them")
    guidance = default.guidance if given.guidance is None else given.guidance
    if given.guidance_w is not None:
        guidance = scale_from_w(given.guidance_w)
    sampler = default.sampler if given.sampler is None else find_value(Sampler, given.sampler, (), "--sampler")
    if given.eta is not None:
        sampler = _with_eta(sampler, given.eta)
    grid = default.grid if given.grid is None else find_value(TimeGrid, given.grid, (), "--grid")
    bounds = default.bounds if given.bounds is None else _bounds(given.bounds)
    steps = default.steps if given.steps is None else given.steps
    with refusing():
        guided = default.with_guidance(guidance)
        return replace(
            guided,
            sampler=sampler,
            grid=grid,
            steps=steps,
            bounds=bounds,
            interval=guided.interval if given.interval is None else _interval(given.interval),
            rescale=guided.rescale if given.rescale is None else given.rescale,
            classifier=guided.classifier if given.classifier_scale is None else given.classifier_scale,
            weak=guided.weak if given.weak_scale is None else given.weak_scale,
        )


def run_settings(given: Sampling, default: SampleSettings, run: Run, weights: StoredWeights) -> SampleSettings:
    """Return how to sample from a run, which may have samplers of its own: ``--sampler fitted``.

    Args:
        given: what was given.
        default: the rest.
        run: that is sampled from.
        weights: of it that are sampled from.

    Raises:
        CommandError: if an option is refused, two contradict each other, or there is no such sampler.
    """
    if given.sampler is None or given.sampler.strip().lower() != FITTED:
        return settings_of(given, default)
    for name, value in (("--grid", given.grid), ("--eta", given.eta)):
        if value is not None:
            raise CommandError(f"{name}={value} means nothing to a fitted sampler: its times and weights are its own")
    wanted = settings_of(replace(given, sampler=None), default)
    with refusing():
        return find_fitted(run, wanted, weights).settings


def _interval(given: str) -> tuple[float, float] | None:
    if given.strip().lower() == "none":
        return None
    try:
        low, high = (float(part) for part in given.split(","))
    except ValueError as error:
        raise CommandError(f"--interval: expected lowest,highest such as 0.2,3, or none; got {given!r}") from error
    return low, high


def _bounds(which: str) -> Bounds | None:
    if which.strip().lower() == "none":
        return None
    bounds: Bounds = find_value(Bounds, which, (), "--bounds")
    return bounds


def _with_eta(sampler: Any, eta: float) -> Any:
    if not any(field.name == "eta" for field in fields(sampler)):
        raise CommandError(f"--eta={eta} means nothing to {type(sampler).__name__}; ddim and dpmpp have an eta")
    with refusing():
        return replace(sampler, eta=eta)


def weights_of(average: str | None) -> Weights | float | Average:
    """Return which weights ``--average`` means.

    Raises:
        CommandError: if it is neither ``last`` nor an average.
    """
    if average is None:
        return Weights.OF_RECIPE
    if average == "last":
        return Weights.OF_LAST_STEP
    try:
        which: float | Average = decode(float | Average, parse(average, "--average"), "--average")
    except RecipeError as error:
        raise CommandError(f"--average: expected 'last', or as in train.ema: {error.problem}") from error
    return which


def open_run(folder: Path) -> Run:
    """Open a run.

    Raises:
        CommandError: if the folder is none.
    """
    with refusing():
        return Run.open(folder)
