"""``unfog guidance``."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unfog.asking import asked_like
from unfog.checkpoint import JSON, write_atomically
from unfog.cli.console import number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.lists import items_of
from unfog.cli.options import Sampling
from unfog.cli.sources import open_run, run_settings, weights_of
from unfog.data.cache import cache_folder
from unfog.diffusion.checks import require
from unfog.evaluation.features import feature_extractor
from unfog.evaluation.guidance_curve import CurveJudge, GuidanceCurve, GuidancePoint, draw_curve, measure_scale
from unfog.evaluation.measure import describe
from unfog.evaluation.scores import Comparison, Missing
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.recipe.export import origin_of
from unfog.recipe.plain import encode
from unfog.sampling.request import SampleRequest, SampleSettings
from unfog.training.parallel import World

NUMBERS, PICTURE, VECTORS = "guidance.json", "guidance.png", "guidance.svg"


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        scales: of guidance, with commas between.
        samples: of each scale.
        seed: of the samples and of all resamples.
        batch_size: samples at a time.
    """

    scales: str
    samples: int
    seed: int
    batch_size: int


def run(folder: Path, asked: Asked, sampling: Sampling, *, out: Path | None) -> int:
    """Measure what guidance trades; see ``commands.measuring.guidance``."""
    if World.of_environment().size > 1:
        raise CommandError("unfog guidance runs in one process; start it without torchrun")
    if sampling.guidance is not None or sampling.guidance_w is not None:
        raise CommandError("give the scales of guidance with --scales")
    scales = _scales(asked.scales)
    opened = open_run(folder)
    with refusing():
        weights = opened.weights(weights_of(sampling.average))
        # A scale that guides: an interval or a rescale would be refused without one.
        base = run_settings(replace(sampling, guidance=max(scales)), opened.recipe.sample, opened, weights)
        settings = [base.with_guidance(scale) for scale in scales]
        pipeline = opened.pipeline(weights)
        data = opened.data()
        require(asked.samples >= 10, f"--samples: at least 10, got {asked.samples}")
        request = asked_like(
            pipeline.conditioner, data.train, asked.samples, settings=base, seed=asked.seed, batch_size=asked.batch_size
        )
        for one in settings:
            pipeline.check(replace(request, settings=one))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        extractor = feature_extractor(data.train, cache_folder() / "features", device=device)
        judge = CurveJudge.of(extractor, data.train, data.test, asked.samples, seed=asked.seed)
        target = folder / "guidance" if out is None else out
        target.mkdir(parents=True, exist_ok=True)
        about: dict[str, JSON] = {
            "origin": origin_of(opened, weights),
            "data": data.train.info.fingerprint,
            "features": extractor.card.name,
            "samples": asked.samples,
            "seed": asked.seed,
        }
        known = _known(target / NUMBERS, about)
    points: list[GuidancePoint] = []
    for one in settings:
        told = json.dumps(encode(one, SampleSettings), sort_keys=True)
        if told not in known:
            known[told] = _measured(pipeline, judge, request, one)
            stored = {name: asdict(point) for name, point in known.items()}
            write_atomically(target / NUMBERS, json.dumps({**about, "points": stored}, indent=1).encode())
        points.append(known[told])
        progress().print(f"scale {one.guidance:g}: {_told(known[told])}", markup=False, soft_wrap=True)
    name = extractor.card.name
    curve = GuidanceCurve(
        name, asked.samples, asked.seed, describe(base), tuple(points), judge.floor, judge.real_accuracy
    )
    _listing(curve)
    written = [target / NUMBERS]
    if len(points) > 1:
        with refusing():
            for picture in (target / PICTURE, target / VECTORS):
                draw_curve(curve, picture)
                written.append(picture)
    output().print("\n".join(map(str, written)), markup=False, soft_wrap=True)
    return 0


def _scales(text: str) -> list[float]:
    """Return the scales in ascending order, each once."""
    items = items_of(text, "--scales")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise CommandError(f"--scales: expected numbers such as 1,1.5,2,3, got {item!r}")
    return sorted({float(item) for item in items})


def _known(path: Path, about: dict[str, JSON]) -> dict[str, GuidancePoint]:
    """Return what was measured before with the same weights, data and counts; nothing if it was with others."""
    if not path.exists():
        return {}
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {name: stored.get(name) for name in about} != about:
            return {}
        return {told: GuidancePoint.from_dict(point) for told, point in stored["points"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is not what this command writes ({error}); delete it, or give --out") from error


def _measured(pipeline: Pipeline, judge: CurveJudge, request: SampleRequest, one: SampleSettings) -> GuidancePoint:
    try:
        return measure_scale(pipeline, judge, request, one)
    except FloatingPointError as error:
        raise CommandError(str(error), status=1) from error


def _told(point: GuidancePoint) -> str:
    quality = point.quality
    scores = {"precision": quality.precision, "recall": quality.recall, "as asked for": point.accuracy}
    scores |= {"of one object": point.one_object or Missing(""), "binding": point.binding or Missing("")}
    return ", ".join(f"{name} {number(s.value)}" for name, s in scores.items() if isinstance(s, Score))


def _listing(curve: GuidanceCurve) -> None:
    """Print the table of the curve."""
    columns = ("Fréchet distance>", "precision>", "recall>", "coverage>", "as asked for>", "spread>")
    listing = table("scale>", *columns)
    for point in curve.points:
        listing.add_row(f"{point.scale:g}", *_cells(point.quality, point.accuracy, point.spread))
    listing.add_row("real", *_cells(curve.floor, curve.real_accuracy, Missing("it is the measure")))
    show(f"{curve.samples} samples a scale, seed {curve.seed}, in {curve.features}", listing)
    best = curve.best
    if isinstance(best, GuidancePoint):
        output().print(f"smallest Fréchet distance at scale {best.scale:g}", markup=False)


def _cells(quality: Comparison, accuracy: Score | Missing, spread: Score | Missing) -> list[str]:
    scores = (quality.frechet, quality.precision, quality.recall, quality.coverage, accuracy, spread)
    return [number(score.value) if isinstance(score, Score) else "–" for score in scores]
