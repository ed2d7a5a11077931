"""Fitting a sampler to a small model, and measuring it on noises that no fit has seen.

The accurate solutions are computed with twice the steps of the library's own, and with half of those again, which tells
how far they are to be trusted. Both tables of a number of evaluations are drawn from the same noises and labels.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.campaign.jobs import Effort, FitSampler
from benchmarks.campaign.record import Places
from benchmarks.campaign.run import trained_run
from unfog.data.cache import cache_folder
from unfog.data.dataset import to_uint8
from unfog.diffusion.random import seed_of
from unfog.evaluation.features import FeatureExtractor, feature_extractor
from unfog.evaluation.fit import ACCURATE, Conditions, Fit, FitEffort, ends, fit_steps, solved
from unfog.evaluation.measure import describe
from unfog.evaluation.sweep import distances
from unfog.evaluation.tuning import Trajectories
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.interval import Score, bootstrap, mean
from unfog.pipeline import Pipeline
from unfog.recipe.fitted import fixed_tables
from unfog.recipe.plain import encode
from unfog.recipe.run import Run
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import Sampler

BATCH = 250
FINE = replace(ACCURATE, steps=2 * ACCURATE.steps)


@dataclass(frozen=True)
class Truth:
    """Held-out noises, their accurate solutions, and the features of these."""

    parts: list[Trajectories]
    x: Tensor
    error: Score
    extractor: FeatureExtractor
    moments: Moments


def run_fitted(job: FitSampler, effort: Effort, places: Places) -> dict[str, Any]:
    """Fit a sampler for a number of evaluations, measure it and the best fixed one, and return what was measured."""
    run = Run.open(trained_run(job, places))
    weights = run.weights()
    pipeline = run.pipeline(weights)
    fit, seconds = _fitted(pipeline, run.recipe.sample, job.evaluations)
    extractor = feature_extractor(run.data().train, cache_folder() / "features")
    with torch.inference_mode():
        truth = _truth(pipeline, extractor, effort)
        row = _row(fit, seconds, truth, effort)
    return {
        "run": {"step": weights.step, "weights": weights.group, "sha256": weights.sha256},
        "samples": effort.samples,
        "accurate": {"settings": describe(FINE), "error": truth.error.to_dict()},
        "features": extractor.card.name,
        "row": row,
    }


def _fitted(pipeline: Pipeline, default: SampleSettings, steps: int) -> tuple[Fit, float]:
    """Return a fit and the processor time that it took."""
    began = time.process_time()
    found = None
    for step in fit_steps(pipeline, fixed_tables(default, steps), steps):
        found = step.fit
        print(f"{steps} evaluations: {step.told}", flush=True)
    assert found is not None
    return found, time.process_time() - began


def _truth(pipeline: Pipeline, extractor: FeatureExtractor, effort: Effort) -> Truth:
    seed, noises = seed_of("campaign", "fit"), range(effort.samples)
    parts, coarse = (
        solved(pipeline, Conditions(), seed, noises, FitEffort(batch_size=BATCH, accurate=accurate))
        for accurate in (FINE, ACCURATE)
    )
    x = torch.cat([part.solution for part in parts])
    error = mean(distances(torch.cat([part.solution for part in coarse]), x), note=f"{ACCURATE.steps} steps")
    return Truth(parts, x, error, extractor, Moments.of(extractor(to_uint8(x))))


def _row(fit: Fit, seconds: float, truth: Truth, effort: Effort) -> dict[str, Any]:
    own = replace(fit.fixed, sampler=fit.sampler, grid=fit.sampler.grid, steps=len(fit.sampler.stages))
    fitted, fixed = (ends(settings, truth.parts) for settings in (own, fit.fixed))
    near, far = distances(fitted, truth.x), distances(fixed, truth.x)
    ratio = bootstrap(
        lambda ids: (near[ids[0]].mean() / far[ids[0]].mean()).item(),
        (len(near),),
        seed=seed_of("campaign", "fit", "ratio"),
        resamples=effort.resamples,
        note="the same noises for both",
    )
    return {
        "evaluations": len(fit.sampler.stages),
        "kept": fit.kept,
        "fixed": describe(fit.fixed),
        "table": encode(fit.sampler, Sampler),
        "iterations": fit.iterations,
        "seconds": fit.seconds,
        "cpu_seconds": seconds,
        "distance": mean(near).to_dict(),
        "fixed_distance": mean(far).to_dict(),
        "ratio": ratio.to_dict(),
        "frechet": _frechet(fitted, truth),
        "fixed_frechet": _frechet(fixed, truth),
    }


def _frechet(x: Tensor, truth: Truth) -> float:
    """Return the squared Fréchet distance of samples to the accurate ones."""
    return frechet_distance(Moments.of(truth.extractor(to_uint8(x))), truth.moments)
