"""``unfog evaluate --bound`` and ``--likelihood``: bits per dimension."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from unfog.checkpoint import JSON, write_atomically
from unfog.cli.console import number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling, refuse_sampling
from unfog.cli.sources import open_run, weights_of
from unfog.cli.together import said_once, together
from unfog.data.dataset import Dataset
from unfog.evaluation import likelihood
from unfog.evaluation.bound import Bounds, Effort, measure_bounds
from unfog.machine import machine
from unfog.metrics.interval import Score
from unfog.recipe.build import build_task
from unfog.recipe.export import origin_of
from unfog.recipe.run import Run, StoredWeights, default_device


@dataclass(frozen=True)
class Asked:
    """What is measured: one of both counts of test examples, and how.

    Attributes:
        bound: examples whose likelihood is bounded.
        likelihood: examples whose likelihood is measured by the ODE.
        seed: that of the recipe's evaluation unless given.
        batch_size: examples at a time; the default of the measurement unless given.
    """

    bound: int | None
    likelihood: int | None
    seed: int | None
    batch_size: int | None

    @property
    def option(self) -> str:
        """The option that asks for it."""
        return "--bound" if self.likelihood is None else "--likelihood"


def run(folder: Path, asked: Asked, sampling: Sampling, others: Mapping[str, object]) -> int:
    """Measure the bits per dimension of a run; see ``commands.measuring.evaluate``.

    Args:
        folder: of the run.
        asked: what is measured.
        sampling: of which only the average means anything here.
        others: options that mean nothing here, None where nothing was given.
    """
    if asked.bound is not None and asked.likelihood is not None:
        raise CommandError("--bound and --likelihood are two measurements: ask for them one after the other")
    with together() as world:
        if world.size > 1:
            raise said_once(world, f"{asked.option} is measured by one process: start it without torchrun", 2)
    refuse_sampling(sampling, others, f"{asked.option} draws no samples")
    opened = open_run(folder)
    seed = opened.recipe.evaluation.seed if asked.seed is None else asked.seed
    size = Effort.batch_size if asked.batch_size is None else asked.batch_size
    count = asked.bound if asked.likelihood is None else asked.likelihood
    assert count is not None
    with refusing():
        effort = Effort(count, seed=seed, batch_size=size)
        exact = likelihood.Effort(count, seed=seed, batch_size=size)
        weights = opened.weights(weights_of(sampling.average))
        test = opened.data().test
    if asked.likelihood is None:
        progress().print(f"bounding the likelihood of {min(count, len(test))} test examples", markup=False)
        found, numbers = measured(opened, weights, test, effort)
        _print(found)
        return _store(folder / "bound.json", numbers)
    progress().print(f"the likelihood of {min(count, len(test))} test examples, by the ODE", markup=False)
    density, numbers = measured_exactly(opened, weights, test, exact)
    _print_density(density)
    return _store(folder / "likelihood.json", numbers)


def _store(path: Path, numbers: dict[str, JSON]) -> int:
    write_atomically(path, json.dumps(numbers, indent=1).encode())
    output().print(str(path), markup=False, soft_wrap=True)
    return 0


def measured(run: Run, weights: StoredWeights, test: Dataset, effort: Effort) -> tuple[Bounds, dict[str, JSON]]:
    """Measure the bound, and return it besides what is written of it.

    Args:
        run: trained.
        weights: which of the run's.
        test: what it did not learn from.
        effort: how much is measured.

    Raises:
        CommandError: if it cannot be measured; says why.
    """
    with refusing():
        task = build_task(run.recipe, run.network(weights).to(default_device()))
        found = measure_bounds(task.denoiser, task.conditioner, test, effort)
    numbers = {"origin": origin_of(run, weights), "machine": machine(), "effort": asdict(effort), **found.to_dict()}
    return found, numbers


def measured_exactly(
    run: Run, weights: StoredWeights, test: Dataset, effort: likelihood.Effort
) -> tuple[likelihood.Likelihood, dict[str, JSON]]:
    """Measure the likelihood by the ODE, and return it besides what is written of it; see ``measured``."""
    with refusing():
        task = build_task(run.recipe, run.network(weights).to(default_device()))
        found = likelihood.measure_likelihood(task.denoiser, task.conditioner, test, effort)
    return found, {"origin": origin_of(run, weights), "machine": machine(), **found.to_dict()}


def _print(found: Bounds) -> None:
    listing = table("bound", "steps>", "bits per dimension>", "prior>", "diffusion>", "reconstruction>", "nats>")
    for bound in found.bounds:
        steps = "infinitely many" if bound.steps is None else str(bound.steps)
        parts = (bound.prior, bound.diffusion, bound.reconstruction)
        listing.add_row(bound.method, steps, _shown(bound.total), *(number(p.value) for p in parts), _shown(bound.nats))
    given = f", given {', '.join(found.conditions)}" if found.conditions else ""
    show(
        f"{found.count} examples of {found.dataset}, {found.dimensions} dimensions{given}, {found.draws} times each, "
        f"seed {found.seed}",
        listing,
    )


def _print_density(found: likelihood.Likelihood) -> None:
    listing = table("likelihood", "bits per dimension>", "nats>", "evaluations an example>")
    listing.add_row("probability-flow ODE", _shown(found.bits), _shown(found.nats), number(found.evaluations))
    given = f", given {', '.join(found.conditions)}" if found.conditions else ""
    show(
        f"{found.count} examples of {found.dataset}, {found.dimensions} dimensions{given}, dequantised, "
        f"{found.effort.probes} probe of the trace each, down to sigma {found.sigma:.3g}, seed {found.effort.seed}",
        listing,
    )


def _shown(score: Score) -> str:
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
