"""Samplers fitted to a run, stored with it, and the fixed tables that a fit begins from.

::

    samplers/fitted-6.json               for 6 evaluations without guidance
    samplers/fitted-6-guidance-2.json    the same under guidance of scale 2

A file holds the table, the weights that it was fitted to, by their SHA-256, and what it gained on noises that took no
part in the fit. It is refused once the run has other weights.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from unfog.checkpoint import write_atomically
from unfog.diffusion.checks import require
from unfog.metrics.interval import Score
from unfog.recipe.kinds import KINDS, SHORTHANDS
from unfog.recipe.plain import decode, encode, fields_of
from unfog.recipe.run import Run, RunError, StoredWeights
from unfog.sampling.fitted import Fitted
from unfog.sampling.grid import Karras, LogSNRUniform, TimeGrid
from unfog.sampling.guidance.bounds import Bounds
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import Sampler, TableSampler

FOLDER = "samplers"
"""Where the samplers of a run lie."""

FITTED = "fitted"
"""What a sampler fitted to a run is called on the command line."""

ORDERS = (1, 2, 3, 4)
"""Values that are tried for a setting called ``order``."""

COARSE: tuple[TimeGrid, ...] = (
    LogSNRUniform(0.02, 80.0),
    LogSNRUniform(0.1, 20.0),
    Karras(7.0, 0.02),
    Karras(3.0, 0.1),
)
"""Grids for few steps, which are tried beside those of the library's defaults."""


@dataclass(frozen=True)
class Gain:
    """What a fit gained, on held-out noises.

    Attributes:
        distance: root mean square difference from the accurate solution, mean over the noises.
        fixed_distance: the same of the best fixed table.
        fixed: that table, in words.
        noises: how many there were.
        seed: of all noises of the fit.
        seconds: that the fit took.
    """

    distance: float
    fixed_distance: float
    fixed: str
    noises: int
    seed: int
    seconds: float

    @staticmethod
    def of(distance: Score, fixed_distance: Score, fixed: str, seed: int, seconds: float) -> "Gain":
        """Return what was gained, from both distances over the same noises."""
        return Gain(distance.value, fixed_distance.value, fixed, distance.count, seed, round(seconds, 1))


@dataclass(frozen=True)
class FittedCard:
    """A sampler fitted to a run.

    Attributes:
        sampler: the table.
        guidance: scale that it was fitted under.
        bounds: of the estimates that it was fitted with.
        weights: name of the weights that it was fitted to.
        step: of their checkpoint.
        sha256: of their values.
        gain: on held-out noises.
    """

    sampler: Fitted
    guidance: float
    bounds: Bounds | None
    weights: str
    step: int
    sha256: str
    gain: Gain

    @staticmethod
    def of(settings: SampleSettings, weights: StoredWeights, gain: Gain) -> "FittedCard":
        """Return the card of a sampler that was fitted to some weights, by how it samples."""
        sampler, guidance, bounds = settings.sampler, settings.guidance, settings.bounds
        assert isinstance(sampler, Fitted)
        return FittedCard(sampler, guidance, bounds, weights.group, weights.step, weights.sha256, gain)

    @property
    def settings(self) -> SampleSettings:
        """How to sample with it."""
        return SampleSettings(self.sampler, self.sampler.grid, len(self.sampler.stages), self.guidance, self.bounds)


def fitted_path(run: Run, steps: int, guidance: float) -> Path:
    """Return the file of the sampler for some evaluations under some guidance."""
    under = "" if guidance == 1 else f"-guidance-{guidance:g}"
    return run.folder / FOLDER / f"{FITTED}-{steps}{under}.json"


def store_fitted(run: Run, card: FittedCard) -> Path:
    """Write a sampler into the folder of its run, in place of one for the same evaluations and guidance.

    Raises:
        SaveError: if it cannot be written.
    """
    path = fitted_path(run, card.settings.steps, card.guidance)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(encode(card, FittedCard), indent=1) + "\n").encode())
    return path


def find_fitted(run: Run, wanted: SampleSettings, weights: StoredWeights) -> FittedCard:
    """Return the sampler of a run.

    Args:
        run: that is sampled from.
        wanted: for how many steps, and under which guidance and bounds; its sampler and grid do not matter.
        weights: of the run, that are sampled from.

    Raises:
        RunError: if there is none, it was fitted to other weights or bounds, or its file is damaged.
        ValueError: if guidance of a kind is wanted that samplers are not fitted for.
    """
    _require_plain(wanted, "sample with a fitted sampler")
    steps, guidance = wanted.steps, wanted.guidance
    path = fitted_path(run, steps, guidance)
    again = f"unfog fit-sampler {run.folder} --steps {steps}" + ("" if guidance == 1 else f" --guidance {guidance:g}")
    if not path.exists():
        there = ", ".join(sorted(other.name for other in path.parent.glob(f"{FITTED}-*.json")))
        raise RunError(
            f"{run.folder} has no sampler fitted for {steps} steps at guidance {guidance:g}"
            f"{f', only {there}' if there else ''}; '{again}' makes one"
        )
    try:
        card = decode(FittedCard, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}; '{again}' makes it anew") from error
    assert isinstance(card, FittedCard)
    if card.sha256 != weights.sha256:
        raise RunError(
            f"{path} was fitted to other weights, {card.weights} of step {card.step}; these are {weights.group} of "
            f"step {weights.step}: '{again}' fits it to them"
        )
    if card.bounds != wanted.bounds:
        raise RunError(f"{path} was fitted with the bounds {card.bounds}, not {wanted.bounds}; sample with those")
    return card


def fixed_tables(default: SampleSettings, evaluations: int) -> list[SampleSettings]:
    """Return every sampler of the library that is a table, on every grid, with at most some evaluations.

    A sampler is taken with each value of a choice among its settings, and each order that it has; a grid as it is by
    default. The settings of a recipe and some grids for few steps are tried as well.

    Args:
        default: of the recipe.
        evaluations: of the denoiser, at most; as many steps are taken as stay within.

    Raises:
        ValueError: if the recipe samples with guidance of a kind that samplers are not fitted for.
    """
    _require_plain(default, "fit a sampler")
    samplers = [default.sampler, *_every(Sampler), *(decode(Sampler, name) for name in SHORTHANDS[Sampler])]
    grids = [default.grid, *_every(TimeGrid), *COARSE]
    found: dict[SampleSettings, None] = {}
    for sampler in samplers:
        if not isinstance(sampler, TableSampler):
            continue
        steps = max((n for n in range(1, evaluations + 1) if sampler.evaluations(n) <= evaluations), default=0)
        if steps:
            found.update(dict.fromkeys(SampleSettings(sampler, grid, steps, default.guidance) for grid in grids))
    return list(found)


def _require_plain(settings: SampleSettings, purpose: str) -> None:
    """Refuse guidance other than plain classifier-free one."""
    usual = (("interval", None), ("rescale", 0.0), ("classifier", 0.0), ("weak", 1.0))
    given = [f"{name} {getattr(settings, name)}" for name, value in usual if getattr(settings, name) != value]
    require(not given, f"classifier-free guidance alone to {purpose}, got also {', '.join(given)}")


def _every(kind_of: Any) -> Iterator[Any]:
    """Yield the values of an open type that need no settings, with each choice among those that they have."""
    for cls in KINDS[kind_of].values():
        free = [field for field in fields(cls) if field.init]
        if any(field.default is MISSING and field.default_factory is MISSING for field in free):
            continue
        choices = {field.name: _choices(fields_of(cls)[field.name], field.name) for field in free}
        choices = {name: values for name, values in choices.items() if values}
        for values in itertools.product(*choices.values()):
            try:
                yield replace(cls(), **dict(zip(choices, values, strict=True)))
            except ValueError:
                continue  # an order that it does not have


def _choices(declared: Any, name: str) -> tuple[Any, ...]:
    if declared is bool:
        return (False, True)
    if declared is int and name == "order":
        return ORDERS
    return tuple(declared) if isinstance(declared, type) and issubclass(declared, Enum) else ()
