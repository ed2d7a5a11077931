"""One job, in the process that was started for it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.campaign.jobs import (
    Bits,
    Check,
    Classifier,
    Effort,
    Equal,
    FamilyRace,
    FitSampler,
    Floor,
    Job,
    Measure,
    Scored,
    Trained,
)
from benchmarks.campaign.record import Places, Start, circumstances, read_record, write_record
from unfog.cli import main as unfog
from unfog.memory import keep_memory


def run_job(job: Job, effort: Effort, places: Places) -> None:
    """Do a job and write its record."""
    start = Start.now()
    folder = places.folder(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    content = _content(job, effort, places, folder)
    write_record(places.record(job.id), job.id, f"make campaign ONLY={job.id}", {**circumstances(start), **content})


def _content(job: Job, effort: Effort, places: Places, folder: Path) -> dict[str, Any]:
    if isinstance(job, Trained):
        train_recipe(job, folder / "run")
        return {"seed": job.seed, "measured": evaluation_of(folder / "run"), "adopted": False}
    if isinstance(job, Classifier):
        from unfog.cli.classifier import NUMBERS

        train_recipe(job, folder / "run")
        return {"seed": job.seed, "measured": evaluation_of(folder / "run", NUMBERS)}
    if isinstance(job, Bits):
        return {"seed": job.seed, "measured": measure_bits(trained_run(job, places), job.measure, effort)}
    if isinstance(job, FitSampler):
        from benchmarks.campaign.fitted import run_fitted

        return {"seed": job.seed, "measured": run_fitted(job, effort, places)}
    if isinstance(job, FamilyRace):
        places.record(job.id).parent.mkdir(parents=True, exist_ok=True)
        return {"seed": job.seed, "measured": run_race(job, effort, places.record(job.id).with_suffix(".png"))}
    from benchmarks.campaign import equal

    before = places.folder(job.needs[0]) if job.needs else folder
    if isinstance(job, Floor):
        return {"measured": equal.run_floor(job, effort)}
    if isinstance(job, Equal):
        measured = equal.run_equal(job, effort, folder)
    elif isinstance(job, Check):
        measured = equal.run_check(job, effort, folder, before)
    else:
        assert isinstance(job, Scored)
        places.record(job.id).parent.mkdir(parents=True, exist_ok=True)
        measured = equal.run_scored(job, effort, folder, before, places.record(job.id).with_suffix(""))
    from benchmarks.campaign.systems import version_of

    return {"system": job.system.value, "version": version_of(job.system), "seed": job.seed, "measured": measured}


def train_recipe(job: Trained | Classifier, folder: Path) -> None:
    """Train and evaluate a recipe by the command line, from where it was stopped.

    Raises:
        RuntimeError: if it did not come to its end.
    """
    begun = (folder / "manifest.json").exists()
    if folder.exists() and not begun:
        shutil.rmtree(folder)  # killed before it was a run
    settings = [] if begun else [f"train.seed={job.seed}", f"evaluation.seed={job.seed}"]
    more = ["--resume"] if begun else []
    arguments = ["train", job.recipe, *settings, "--out", str(folder), *more]
    keep_memory()  # as the command does
    # In this process: a child of its own would outlive a job that is killed, and go on holding the run.
    status = unfog(arguments)
    if status:
        raise RuntimeError(f"unfog {' '.join(arguments)} ended with status {status}")


def run_race(job: FamilyRace, effort: Effort, picture: Path) -> dict[str, Any]:
    """Train and measure a model of a family as ``unfog families`` does, and keep a picture of its first samples."""
    from unfog.cli.families import Race, keep_samples
    from unfog.evaluation.families import Family
    from unfog.evaluation.race import RaceEffort

    course = Race.of(job.data, ())
    spent = RaceEffort(
        seconds=effort.family_seconds,
        samples=effort.samples,
        curve_samples=min(effort.samples, RaceEffort.curve_samples),
        likelihood_examples=effort.likelihood_examples,
        resamples=effort.resamples,
    )
    raced = course.run(Family(job.family), job.seed, course.features(), spent)
    keep_samples(raced, picture)
    return raced.record


def trained_run(job: Bits | FitSampler, places: Places) -> Path:
    """Return the folder of the run that a job measures: the campaign's own, or the one that was adopted.

    Raises:
        FileNotFoundError: if it is not there any more.
    """
    (needed,) = job.needs
    created = read_record(places.record(needed))["measured"]["run_created"]
    candidates = (places.folder(needed) / "run", places.work.parent / job.recipe)
    for folder in candidates:
        manifest = folder / "manifest.json"
        if manifest.is_file() and json.loads(manifest.read_text())["created"] == created:
            return folder
    raise FileNotFoundError(
        f"the run of {needed}, begun {created}, is neither {candidates[0]} nor {candidates[1]}; bring it back, or "
        f"remove its record and make campaign ONLY={needed}"
    )


def measure_bits(folder: Path, measure: Measure, effort: Effort) -> dict[str, Any]:
    """Return the bits per dimension of a run's test images, as ``unfog evaluate --bound`` or ``--likelihood`` does."""
    from unfog.cli.bound import measured, measured_exactly
    from unfog.evaluation.bound import Effort as BoundEffort
    from unfog.evaluation.likelihood import Effort as ODEEffort
    from unfog.recipe.run import Run

    run = Run.open(folder)
    seed, began = run.recipe.evaluation.seed, time.perf_counter()
    if measure is Measure.BOUND:
        wanted = BoundEffort(effort.likelihood_examples, effort.likelihood_draws, seed=seed)
        _, numbers = measured(run, run.weights(), run.data().test, wanted)
    else:
        exact = ODEEffort(effort.likelihood_examples, seed=seed)
        _, numbers = measured_exactly(run, run.weights(), run.data().test, exact)
    return {**numbers, "seconds": time.perf_counter() - began}


def adopt(folder: Path, job: Trained, places: Places) -> None:
    """Make a record of a run that was trained and evaluated outside the campaign.

    Only what the run itself recorded is taken over; it does not know its commit, nor the load of the machine.

    Raises:
        ValueError: if the run is of another recipe or seed, or was not evaluated.
    """
    from unfog.recipe.run import Run

    run = Run.open(folder)
    found = (run.recipe.name, run.recipe.train.seed)
    if found != (job.recipe, job.seed):
        raise ValueError(f"expected a run of {job.recipe} with seed {job.seed}, {folder} is of {found[0]}, {found[1]}")
    if not (folder / "evaluation.json").exists():
        raise ValueError(f"expected {folder} with its evaluation.json; unfog evaluate {folder} makes it")
    measured = evaluation_of(folder)
    content = {
        "started": run.manifest.created,
        "machine": run.manifest.machine or measured["evaluation"]["machine"],
        "versions": {"unfog": run.manifest.unfog, "torch": run.manifest.torch},
        "seed": job.seed,
        "measured": measured,
        "adopted": True,
    }
    write_record(places.record(job.id), job.id, run.manifest.command, content)


def evaluation_of(folder: Path, numbers: str = "evaluation.json") -> dict[str, Any]:
    """Return what a finished run recorded of itself in a file, and the loss on the way."""
    from unfog.recipe.run import Run

    run = Run.open(folder)
    log = [record for record in run.log() if isinstance(record.get("seconds"), int | float)]
    seconds = [float(str(record["seconds"])) for record in log]
    card = run.manifest.data
    return {
        "evaluation": json.loads((folder / numbers).read_text()),
        "steps": run.recipe.train.steps,
        "batch_size": run.recipe.train.batch_size,
        # The logged steps stand for all.
        "training_seconds": sum(seconds) / len(seconds) * run.recipe.train.steps,
        "loss_curve": {
            "columns": ["step", "loss"],
            "points": [(record["step"], record["loss"]) for record in log[:: max(len(log) // 120, 1)]],
        },
        "data": {"name": card.name, "count": card.count, "fingerprint": card.fingerprint},
        "run_created": run.manifest.created,
        "run_command": run.manifest.command,
    }
