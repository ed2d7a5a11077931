"""``unfog evaluate``, and the report that ends a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from unfog.checkpoint import JSON, write_atomically
from unfog.cli import classifier
from unfog.cli.console import duration, number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling, refuse_sampling
from unfog.cli.score import features_named
from unfog.cli.sources import open_run, run_settings, weights_of
from unfog.cli.together import together
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.evaluation.adherence import Adherence, adherence_of, readable
from unfog.evaluation.extractors import Extractor, Features, published
from unfog.evaluation.features import FeatureCard
from unfog.evaluation.measure import Measured, assist, measure, requested
from unfog.evaluation.report import ReportInputs, write_report
from unfog.evaluation.scores import Missing
from unfog.evaluation.tables import adherence as rows_of_adherence
from unfog.evaluation.tables import missing
from unfog.evaluation.weights import feature_folder
from unfog.machine import machine
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.recipe.build import build_pipeline, build_task
from unfog.recipe.data import Data
from unfog.recipe.export import origin_of
from unfog.recipe.plain import encode
from unfog.recipe.run import Run, default_device
from unfog.recipe.schema import EvaluationConfig, Recipe
from unfog.training.parallel import World

REPORT, NUMBERS = "report.html", "evaluation.json"


class Judged(NamedTuple):
    """In which features samples are compared.

    Attributes:
        features: by the names of ``extractors.Features``; own ones unless given.
        weights: of published features, instead of those in the cache.
    """

    features: str | None = None
    weights: Path | None = None

    def extractor(self) -> Extractor | None:
        """Return the published features, or None for the run's own.

        Raises:
            CommandError: if there are none, or their weights are missing.
        """
        which = features_named(self.features or Features.OWN.value)
        if which is Features.OWN:
            if self.weights is not None:
                raise CommandError("--weights goes with published features; own features are trained on the run's data")
            return None
        with refusing():
            return published(which, self.weights, device=default_device())


def run(
    folder: Path,
    sampling: Sampling,
    judged: Judged | None = None,
    *,
    samples: int | None,
    seed: int | None,
    batch_size: int | None,
) -> int:
    """Measure a run; see ``commands.measuring.evaluate``."""
    with together() as world:
        _run(world, folder, sampling, judged or Judged(), samples=samples, seed=seed, batch_size=batch_size)
    return 0


def _run(
    world: World,
    folder: Path,
    sampling: Sampling,
    judged: Judged,
    *,
    samples: int | None,
    seed: int | None,
    batch_size: int | None,
) -> None:
    opened = open_run(folder)
    if isinstance(opened.recipe.network, EncoderConfig):
        others = {"samples": samples, **judged._asdict()}
        refuse_sampling(sampling, others, f"{folder} is a classifier, of which no samples are drawn")
    config = opened.recipe.evaluation
    with refusing():
        config = EvaluationConfig(
            samples=config.samples if samples is None else samples,
            guidance=config.guidance,
            seed=config.seed if seed is None else seed,
            batch_size=config.batch_size if batch_size is None else batch_size,
        )
        with world.in_turn():
            data = opened.data()
    report_on(opened, data, sampling, config, world, judged.extractor() if world.leads else None)


def report_on(
    run: Run,
    data: Data,
    sampling: Sampling,
    config: EvaluationConfig | None = None,
    world: World | None = None,
    features: Extractor | None = None,
) -> None:
    """Measure a run, write ``evaluation.json`` and ``report.html`` into its folder, and print the scores.

    Args:
        run: trained.
        data: what it learned from, and what it did not.
        sampling: how to sample, where it differs from the recipe.
        config: how much to measure; as the recipe has it unless given.
        world: the processes that draw the samples together; process 0 does the rest.
        features: to compare samples in; own ones unless given.

    Raises:
        CommandError: if it cannot be measured; says why.
    """
    world = world or World.alone()
    recipe, config = run.recipe, config or run.recipe.evaluation
    with refusing():
        weights = run.weights(weights_of(sampling.average))
        if isinstance(recipe.network, EncoderConfig):
            if world.leads:
                classifier.report(run, data.test, weights, seed=config.seed, batch_size=config.batch_size)
            return
        settings = run_settings(sampling, recipe.sample.with_guidance(config.guidance), run, weights)
    progress().print(f"drawing {config.samples} samples and measuring them", markup=False)
    with refusing():
        network = run.network(weights).to(default_device())
        card = run.manifest.data
        pipeline = build_pipeline(replace(recipe, sample=settings), network, card)
        task = build_task(recipe, network)
    try:
        with refusing():
            if not world.leads:
                assist(
                    pipeline,
                    data.test,
                    samples=config.samples,
                    guidance=settings.guidance,
                    seed=config.seed,
                    batch_size=config.batch_size,
                    world=world,
                )
                return
            measured = measure(
                pipeline,
                task,
                data.train,
                data.test,
                samples=config.samples,
                guidance=settings.guidance,
                seed=config.seed,
                batch_size=config.batch_size,
                cache=feature_folder(),
                features=features,
                world=world,
            )
            adherence = _adherence(pipeline, measured, data, config)
            numbers = {"origin": origin_of(run, weights), "machine": machine(), **measured.to_dict()}
            if adherence is not None:
                numbers["adherence"] = adherence.to_dict()
            write_atomically(run.folder / NUMBERS, json.dumps(numbers, indent=1).encode())
            inputs = ReportInputs(
                title=f"{recipe.name}: {recipe.description}",
                command=run.manifest.command,
                settings=_settings(recipe),
                log=run.log(),
                pipeline=pipeline,
                task=task,
                train=data.train,
                test=data.test,
                measured=measured,
                adherence=adherence,
                seconds=_seconds(run, measured),
                machine=_machines(run),
                memory=_memory(),
                seed=config.seed,
            )
            write_report(run.folder / REPORT, inputs)
    except FloatingPointError as error:
        raise CommandError(str(error), status=1) from error
    _print(measured)
    if adherence is not None:
        _print_adherence(adherence)
    output().print(str(run.folder / REPORT), markup=False, soft_wrap=True)


def _machines(run: Run) -> dict[str, str]:
    """Return the machine that a run was started on, and what of it was different when the run was measured."""
    here = machine()
    trained = run.manifest.machine or here
    return {**trained, **{f"{name}, measuring": here[name] for name in here if here[name] != trained.get(name)}}


def _adherence(pipeline: Pipeline, measured: Measured, data: Data, config: EvaluationConfig) -> Adherence | None:
    """Return how far the samples show the attributes that were asked for, where these can be read from a picture."""
    settings = pipeline.settings.with_guidance(measured.guidance)
    request, _ = requested(pipeline, data.test, settings, measured.samples, config.seed, config.batch_size)
    if measured.images is None or request.attributes is None or not readable(pipeline.attributes):
        return None
    return adherence_of(measured.images, torch.tensor(request.attributes), data.test, seed=config.seed)


def _print_adherence(found: Adherence) -> None:
    listing = table("what was asked for", "shown", "by chance", "examples>")
    for name, score, chance in rows_of_adherence(found):
        listing.add_row(name, _shown(score), "" if chance is None else _shown(chance), str(score.count))
    show(f"attributes read from {found.samples} samples", listing)
    errors = "; ".join(f"{name}: {_shown(error)}" for name, error in found.reading_error.items())
    progress().print(f"share of real examples that are read wrongly: {errors}", markup=False, soft_wrap=True)


def _settings(recipe: Recipe) -> dict[str, JSON]:
    settings = encode(recipe, Recipe)
    assert isinstance(settings, dict)
    return settings


def _seconds(run: Run, measured: Measured) -> dict[str, float]:
    """Return how long the parts took; of training, the logged steps stand for all."""
    steps = [float(seconds) for record in run.log() if isinstance(seconds := record.get("seconds"), int | float)]
    training = sum(steps) / len(steps) * run.recipe.train.steps if steps else 0.0
    return {
        "training": training,
        "sampling for the metrics": measured.sampling_seconds,
        "measuring": measured.measuring_seconds,
    }


def _memory() -> dict[str, int]:
    resident = {"memory of the process": psutil.Process().memory_info().rss}
    if not torch.cuda.is_available():
        return resident
    return {**resident, "memory of the accelerator at its peak": torch.cuda.max_memory_allocated()}


def _print(measured: Measured) -> None:
    scores = measured.scores
    listing = table("score", "samples>", "real images>", "examples>")
    whose = "own features" if isinstance(scores.features, FeatureCard | Missing) else scores.features.title
    rows: list[tuple[str, Score | Missing | None, Score | Missing | None]] = [
        (f"Fréchet distance ({whose})", scores.samples.frechet, scores.floor.frechet),
        ("the same at infinite counts", scores.samples.limit, scores.floor.limit),
        ("kernel distance", scores.samples.kernel, scores.floor.kernel),
        ("precision", scores.samples.precision, scores.floor.precision),
        ("recall", scores.samples.recall, scores.floor.recall),
        ("density", scores.samples.density, scores.floor.density),
        ("coverage", scores.samples.coverage, scores.floor.coverage),
        ("Inception Score", scores.samples.inception, scores.floor.inception),
        ("copying (0.5 is none)", scores.copying, None),
    ]
    if not isinstance(scores.accuracy, Missing):
        rows.append(("classification accuracy score", scores.accuracy.score, scores.accuracy.yardstick))
    rows.append(("loss on held-out examples", measured.loss_test.network, None))
    for name, score, real in rows:
        if isinstance(score, Score):
            listing.add_row(name, _shown(score), _shown(real) if isinstance(real, Score) else "", str(score.count))
    show(f"{measured.samples} samples, {measured.settings}", listing)
    for sentence in missing(scores):
        progress().print(f"left out: {sentence}", markup=False, soft_wrap=True)
    progress().print(
        f"sampling {duration(measured.sampling_seconds)}, measuring {duration(measured.measuring_seconds)}",
        markup=False,
    )


def _shown(score: Score) -> str:
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
