"""A sampler fitted to a model: the times and weights with which N evaluations come nearest to its own solution.

The accurate solutions of a few hundred noises are computed once, with many evaluations. The fixed tables are compared
on them, and from the best one the numbers of ``sampling.fitted`` are improved (``tuning``): with so few of them (13 for
4 evaluations, 64 for 10) the derivative of the result by every one is affordable, and some ten steps do what gradient
descent takes hundreds for, without a rate to tune.

Steps are made from some noises and chosen on twice as many, about. Others, which say whether the table is better than
the best fixed one, take no part in the fit.

Sources:
    Tong et al. 2024 (arXiv 2405.15506), Frankel et al. 2025 (2502.17423), Shaul et al. 2024 (2403.01329): matching the
    result of an accurate solver, by gradient descent.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.asking import in_turn
from unfog.data.dataset import Dataset
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.sweep import distances
from unfog.evaluation.tuning import Numbers, Trajectories, distances_of, improved, mean_distance
from unfog.metrics.interval import Score, mean
from unfog.pipeline import Pipeline
from unfog.sampling.fitted import Fitted
from unfog.sampling.grid import LogSNRUniform
from unfog.sampling.guidance.bounds import Bounded, Bounds
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.table import Row

ACCURATE = SampleSettings(DPMSolverPP2M(), LogSNRUniform(), steps=48)
"""How the solutions that are matched are computed; ``unfog sweep`` tells how accurate such settings are on a model."""

TOLD_FIRST = (-3.0, -2.2, -1.7, -1.2)
"""Half log-SNRs that are tried for what the denoiser is told at first."""

_STEPS = 8  # that there should be at least
_GAIN = 0.002  # share of the distance; a step that gains less has failed
_TRIED = 3  # lengths of a step, about


@dataclass(frozen=True)
class FitEffort:
    """How much is spent on a fit.

    Attributes:
        noises: trajectories that steps are made from, some batches for each.
        choosing: others, which choose the steps together with those.
        held_out: others, which only judge.
        evaluations: of the network, one trajectory at a time, after which no further step is made: what a fit costs,
            whatever the machine.
        first_look: trajectories on which all fixed tables are compared.
        second_look: how many of them are compared on all ``noises``.
        batch_size: trajectories at a time.
        accurate: how the solutions are computed.
    """

    noises: int = 144
    choosing: int = 96
    held_out: int = 128
    evaluations: int = 100_000
    first_look: int = 8
    second_look: int = 6
    batch_size: int = 48
    accurate: SampleSettings = ACCURATE

    def __post_init__(self) -> None:
        for name in ("noises", "choosing", "evaluations", "first_look", "second_look", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} of at least 1, got {getattr(self, name)}")
        require(self.held_out >= 2, f"held_out of at least 2, got {self.held_out}")


@dataclass(frozen=True)
class Fit:
    """What a fit came to.

    Attributes:
        sampler: the table.
        distance: its root mean square difference from the accurate solution, mean over the held-out noises.
        fixed: the best fixed table.
        fixed_distance: the same of it.
        iterations: steps that were taken.
        seconds: wall time of all.
    """

    sampler: Fitted
    distance: Score
    fixed: SampleSettings
    fixed_distance: Score
    iterations: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the fitted table is nearer to the solution than the best fixed one, on the held-out noises."""
        return self.distance.value < self.fixed_distance.value

    @property
    def ratio(self) -> float:
        """The distance over that of the best fixed table."""
        return self.distance.value / self.fixed_distance.value

    @property
    def settings(self) -> SampleSettings:
        """How to sample: with the fitted table if it is kept, else with the best fixed one."""
        if not self.kept:
            return self.fixed
        return replace(self.fixed, sampler=self.sampler, grid=self.sampler.grid, steps=len(self.sampler.stages))


class Conditions(NamedTuple):
    """How a model is used: the scale of guidance, the bounds of its estimates, and whose attributes are asked for."""

    guidance: float = 1.0
    bounds: Bounds | None = None
    examples: Dataset | None = None


class FitStep(NamedTuple):
    """Where a fit is.

    Attributes:
        told: what was done, in words.
        fit: the result, at the last step.
    """

    told: str
    fit: Fit | None = None


@torch.inference_mode()
def fit_steps(
    pipeline: Pipeline,
    fixed: Sequence[SampleSettings],
    evaluations: int,
    *,
    guidance: float = 1.0,
    bounds: Bounds | None = None,
    examples: Dataset | None = None,
    seed: int = 0,
    effort: FitEffort | None = None,
) -> Iterator[FitStep]:
    """Fit a sampler to a model, step by step; the condition of noise k is that of ``asking.in_turn``.

    Args:
        pipeline: the model.
        fixed: the tables to begin from and to be compared with, such as ``recipe.fitted.fixed_tables`` lists; what
            injects noise or refuses its grid is passed over.
        evaluations: of the network for one sample, without those of guidance.
        guidance: scale that the sampler is for.
        bounds: within which it is for that estimates are kept.
        examples: whose attributes are asked for, of a model that is told any.
        seed: of the noises.
        effort: how much is spent.

    Raises:
        ValueError: if the model cannot be guided, or no table has so many evaluations.
        FloatingPointError: if an accurate solution is not finite.
    """
    effort, began = effort or FitEffort(), time.perf_counter()
    making, choosing, judging, look = _sets(pipeline, Conditions(guidance, bounds, examples), seed, effort)
    yield FitStep(f"solved {effort.noises + effort.choosing + effort.held_out} trajectories accurately")
    tables = _tables(fixed, pipeline.denoiser.process.schedule, evaluations)
    tables = sorted(tables, key=lambda table: _mean_distance(table.settings, look))
    best = min((table.settings for table in tables[: effort.second_look]), key=lambda s: _mean_distance(s, making))
    numbers = _beginning(tables, look, choosing, effort)
    yield FitStep(f"compared {len(tables)} fixed tables")
    iterations = 0
    for better, distance in _improvements(numbers, making, choosing, effort):
        numbers, iterations = better, iterations + 1
        yield FitStep(f"step {iterations}: distance {distance:.4f}")
    yield FitStep(
        "done",
        Fit(
            sampler=numbers.table,
            distance=mean(distances_of(numbers, judging), note="distance to the accurate solution"),
            fixed=replace(best, guidance=guidance, bounds=bounds),
            fixed_distance=mean(fixed_distances(best, judging), note="distance to the accurate solution"),
            iterations=iterations,
            seconds=time.perf_counter() - began,
        ),
    )


def _sets(pipeline: Pipeline, how: Conditions, seed: int, effort: FitEffort) -> list[list[Trajectories]]:
    """Return the trajectories that steps are made from, are chosen on, that judge, and those of the first look."""
    sets, first = [], 0
    for count in (effort.noises, effort.choosing, effort.held_out, effort.first_look):
        sets.append(solved(pipeline, how, seed_of("fit", seed), range(first, first + count), effort))
        first += count
    return sets


def _improvements(
    numbers: Numbers, making: Sequence[Trajectories], choosing: Sequence[Trajectories], effort: FitEffort
) -> Iterator[tuple[Numbers, float]]:
    """Yield ever better numbers and their distance, until no batch gains more by a step or enough is spent."""
    everything = [*making, *choosing]
    spent, failed, distance = 0, 0, mean_distance(numbers, everything)
    # Of few evaluations a step costs little and all batches make it; of many each makes one in its turn.
    share = effort.evaluations // _STEPS
    together = min(len(making), max(1, share // (numbers.cost * effort.batch_size)))
    batches = itertools.cycle(making)
    while failed * together < len(making) and spent < effort.evaluations:
        parts = list(itertools.islice(batches, together))
        better = improved(numbers, distance, parts, everything)
        spent += numbers.cost * sum(map(len, parts)) + _TRIED * numbers.count * (effort.noises + effort.choosing)
        failed += 1
        if better is not None:
            failed = 0 if better[1] < (1 - _GAIN) * distance else failed
            numbers, distance = better
            yield better


def solved(pipeline: Pipeline, how: Conditions, seed: int, noises: range, effort: FitEffort) -> list[Trajectories]:
    """Return trajectories with their accurate solutions, in batches.

    Args:
        pipeline: the model.
        how: the model is used.
        seed: of the noises.
        noises: their numbers.
        effort: says how they are solved.

    Raises:
        ValueError: if the model cannot be guided.
        FloatingPointError: if a solution is not finite.
    """
    pipeline.denoiser.eval()
    device = next(pipeline.denoiser.parameters(), torch.empty(0)).device
    found = []
    for start in range(0, len(noises), effort.batch_size):
        index = torch.tensor(noises[start : start + effort.batch_size], device=device)
        rng = Rng.of(seed, index, device=device)
        denoiser, cond = _conditioned(pipeline, how, index)
        noise = denoiser.process.prior(pipeline.shape, rng=rng, device=device)
        times = effort.accurate.grid.times(denoiser.process.schedule, effort.accurate.steps)
        solution = sample(denoiser, effort.accurate.sampler, times, noise, cond, rng=rng)
        found.append(Trajectories(denoiser, cond, noise, solution))
    return found


def _conditioned(pipeline: Pipeline, how: Conditions, index: Tensor) -> tuple[Denoiser, dict[str, Tensor]]:
    """Return the denoiser as it is used, and the conditions of some noises."""
    denoiser, null = pipeline.denoiser, pipeline.conditioner.null(len(index), index.device)
    if how.guidance != 1:
        guided = bool(null) and pipeline.conditioner.dropout > 0
        require(guided, f"a guidance scale of 1 for a model that cannot be guided, got {how.guidance}")
        denoiser = ClassifierFree(denoiser, how.guidance, null)
    asked = in_turn(pipeline.conditioner, how.examples, index.tolist())
    cond = pipeline.told(asked, len(index), index.device)
    return denoiser if how.bounds is None else Bounded(denoiser, how.bounds), cond


class Table(NamedTuple):
    """A fixed sampler on its grid, and its form as a fitted one, where it has one of all evaluations."""

    settings: SampleSettings
    form: Fitted | None


def _tables(fixed: Sequence[SampleSettings], schedule: Schedule, evaluations: int) -> list[Table]:
    """Return the different deterministic tables of at most some evaluations."""
    tables: dict[tuple[Row, ...], SampleSettings] = {}
    for settings in fixed:
        rows = _rows(settings, schedule)
        if 0 < len(rows) <= evaluations and not any(move.noise for row in rows for move in row.all_moves):
            tables.setdefault(rows, settings)  # many a table goes by several names
    found = [Table(settings, _form(settings, schedule, evaluations)) for settings in tables.values()]
    known = any(table.form is not None for table in found)
    require(known, f"a fixed table of {evaluations} evaluations to begin from, got none; try another number")
    return found


def _beginning(
    tables: Sequence[Table], look: Sequence[Trajectories], choosing: Sequence[Trajectories], effort: FitEffort
) -> Numbers:
    """Return the numbers of the most promising table, the denoiser being told at first what suits it best.

    Pure noise says nothing of the data, and a table that spends an evaluation on it can look worse than one that is
    worse otherwise. The derivative by what is told vanishes there, so it has to be chosen beforehand: for the best
    tables, and for the sampler of the accurate solutions on every grid.

    Args:
        tables: the best at the first look first.
        look: trajectories of the first look.
        choosing: trajectories that choose among the best.
        effort: says how many these are.
    """
    formed = [table for table in tables if table.form is not None]
    own = [table for table in formed[effort.second_look :] if table.settings.sampler == effort.accurate.sampler]
    begun = [Numbers.of(table.form) for table in (*formed[: effort.second_look], *own) if table.form is not None]
    told = [*begun, *(numbers.telling(half) for numbers in begun for half in TOLD_FIRST)]
    told = sorted(told, key=lambda numbers: mean_distance(numbers, look))
    return min(told[: effort.second_look], key=lambda numbers: mean_distance(numbers, choosing))


def _rows(settings: SampleSettings, schedule: Schedule) -> tuple[Row, ...]:
    """Return a table; nothing where a sampler is none, or refuses the grid, or the grid the steps."""
    if not isinstance(settings.sampler, TableSampler):
        return ()
    try:
        return tuple(settings.sampler.table(schedule, settings.grid.times(schedule, settings.steps)))
    except ValueError:
        return ()


def _form(settings: SampleSettings, schedule: Schedule, evaluations: int) -> Fitted | None:
    """Return a table in the form of a fitted one; None where it has another number of evaluations, or another form."""
    assert isinstance(settings.sampler, TableSampler)
    try:
        form = Fitted.like(settings.sampler, schedule, settings.grid.times(schedule, settings.steps))
    except ValueError:
        return None
    return form if len(form.stages) == evaluations else None


def _mean_distance(settings: SampleSettings, parts: Sequence[Trajectories]) -> float:
    try:
        return fixed_distances(settings, parts).mean().item()
    except FloatingPointError:
        return math.inf


def fixed_distances(settings: SampleSettings, parts: Sequence[Trajectories]) -> Tensor:
    """Return how far a deterministic sampler ends from each solution, ``(N,)`` float64; raises as ``ends`` does."""
    return distances(ends(settings, parts), torch.cat([part.solution for part in parts])).cpu()


def ends(settings: SampleSettings, parts: Sequence[Trajectories]) -> Tensor:
    """Return where a deterministic sampler ends, ``(N, ...)``.

    Args:
        settings: its sampler, grid and steps; guidance and bounds are those of the trajectories.
        parts: where it begins.

    Raises:
        FloatingPointError: if a sample is not finite.
    """
    times = settings.grid.times(parts[0].denoiser.process.schedule, settings.steps)
    keys = [Rng.of(0, len(part), device=part.noise.device) for part in parts]  # none is drawn from
    found = [
        sample(part.denoiser, settings.sampler, times, part.noise, part.cond, rng=rng)
        for part, rng in zip(parts, keys, strict=True)
    ]
    return torch.cat(found)
