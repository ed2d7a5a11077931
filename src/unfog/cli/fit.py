"""``unfog fit-sampler``."""

from collections.abc import Iterator
from pathlib import Path

from unfog.asking import needs_examples
from unfog.cli.console import duration, number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.sources import open_run, weights_of
from unfog.evaluation.fit import Fit, FitEffort, FitStep, fit_steps
from unfog.evaluation.measure import describe
from unfog.recipe.fitted import FITTED, FittedCard, Gain, fixed_tables, store_fitted


def run(
    folder: Path, *, steps: int, guidance: float | None, average: str | None, seed: int, noises: int, batch_size: int
) -> int:
    """Fit a sampler to a run; see ``commands.measuring.fit_sampler``."""
    opened = open_run(folder)
    default = opened.recipe.sample
    scale = default.guidance if guidance is None else guidance
    if steps < 1:
        raise CommandError(f"--steps: expected at least 1, got {steps}")
    with refusing():
        effort = FitEffort(noises=noises, batch_size=batch_size)
        weights = opened.weights(weights_of(average))
        pipeline = opened.pipeline(weights)
        steps_of_fit = fit_steps(
            pipeline,
            fixed_tables(default, steps),
            steps,
            guidance=scale,
            bounds=default.bounds,
            examples=opened.data().test if needs_examples(pipeline.conditioner) else None,
            seed=seed,
            effort=effort,
        )
        fit = _followed(steps_of_fit)
    _tell(fit)
    if not fit.kept:
        told = f"nothing is stored: the best fixed table is as near, so sample with {describe(fit.fixed)}"
        progress().print(told, markup=False, soft_wrap=True)
        return 0
    gain = Gain.of(fit.distance, fit.fixed_distance, describe(fit.fixed), seed, fit.seconds)
    with refusing():
        path = store_fitted(opened, FittedCard.of(fit.settings, weights, gain))
    output().print(str(path), markup=False, soft_wrap=True)
    under = "" if scale == default.guidance else f" --guidance {scale:g}"
    use = f"to use it: unfog sample {folder} --sampler {FITTED} --steps {steps}{under}"
    progress().print(use, markup=False, soft_wrap=True)
    return 0


def _followed(steps: Iterator[FitStep]) -> Fit:
    """Say what a fit does until it is done."""
    fit = None
    try:
        for step in steps:
            progress().print(step.told, markup=False, soft_wrap=True)
            fit = step.fit
    except FloatingPointError as error:
        raise CommandError(str(error), status=1) from error
    assert fit is not None
    return fit


def _tell(fit: Fit) -> None:
    listing = table("", "distance>", "95 % interval")
    for name, score in (("best fixed table", fit.fixed_distance), ("fitted", fit.distance)):
        listing.add_row(name, number(score.value), f"[{number(score.low)}, {number(score.high)}]")
    show(f"distance to the accurate solution, {fit.distance.count} held-out noises", listing)
    nearer = f"{fit.ratio:.2f} of the distance of {describe(fit.fixed)}" if fit.kept else "no nearer"
    told = f"{nearer}; {fit.iterations} steps of the fit, {duration(fit.seconds)}"
    output().print(told, markup=False, soft_wrap=True)
