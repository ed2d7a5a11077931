"""The calls that most people need, from training to pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unfog.evaluation.fit import Fit, fit_steps
from unfog.evaluation.measure import describe
from unfog.pipeline import Pipeline, Samples, SampleSettings
from unfog.recipe import export
from unfog.recipe.data import open_data
from unfog.recipe.fitted import FittedCard, Gain, find_fitted, fixed_tables, store_fitted
from unfog.recipe.load import override
from unfog.recipe.run import Run
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train as train_run
from unfog.recipes import named
from unfog.training.parallel import joined


def train(recipe: Recipe | str, out: str | Path, *, overrides: Sequence[str] = ()) -> Pipeline:
    """Train a model from its beginning and return what samples from it.

    In a program that ``torchrun`` starts, all processes call this and train together.

    Args:
        recipe: a recipe, or the name of one (``unfog.recipes``).
        out: the run folder; it must not hold anything yet.
        overrides: settings that differ from the recipe's, each ``path=value``.

    Raises:
        ValueError: if there is no such recipe, a setting is refused, or the data cannot be opened.
        FileExistsError: if the folder holds anything.
    """
    made = override(named(recipe) if isinstance(recipe, str) else recipe, overrides)
    with joined() as world:
        with world.in_turn():
            data = open_data(made.data, labelled=made.condition.classes)
        run = world.led(lambda: Run.create(Path(out), made, data.train.info))
        for _ in train_run(run, data.train, world=world):
            pass
        return run.pipeline()


def load(run: str | Path) -> Pipeline:
    """Return what samples from a run that was trained before, with the weights that its recipe samples from.

    Raises:
        ValueError: if the folder is no run, or a damaged one.
        FileNotFoundError: if the run has saved nothing yet.
    """
    return Run.open(Path(run)).pipeline()


def fit_sampler(run: str | Path, steps: int, *, guidance: float | None = None, seed: int = 0) -> Fit:
    """Fit a sampler to a run, and store it with the run if it is nearer to the accurate solution than any fixed one.

    Takes some minutes. ``fit.settings`` sample with what is best.

    Args:
        run: the run folder.
        steps: evaluations of the network for one sample, without those of guidance.
        guidance: scale that it is for; the recipe's own unless given.
        seed: of the noises that it is fitted on.

    Raises:
        ValueError: if the folder is no run, or the model cannot be guided.
        FileNotFoundError: if the run has saved nothing yet.
    """
    opened = Run.open(Path(run))
    default, weights = opened.recipe.sample, opened.weights()
    scale = default.guidance if guidance is None else guidance
    fitting = fit_steps(
        opened.pipeline(weights), fixed_tables(default, steps), steps, guidance=scale, bounds=default.bounds, seed=seed
    )
    *_, (_, fit) = fitting
    assert fit is not None
    if fit.kept:
        gain = Gain.of(fit.distance, fit.fixed_distance, describe(fit.fixed), seed, fit.seconds)
        store_fitted(opened, FittedCard.of(fit.settings, weights, gain))
    return fit


def fitted(run: str | Path, steps: int, *, guidance: float | None = None) -> SampleSettings:
    """Return how to sample with the sampler that ``fit_sampler`` stored with a run.

    Args:
        run: the run folder.
        steps: that it was fitted for.
        guidance: scale that it was fitted for; the recipe's own unless given.

    Raises:
        ValueError: if there is none, or the run has other weights by now.
    """
    opened = Run.open(Path(run))
    default = opened.recipe.sample
    wanted = replace(default, steps=steps, guidance=default.guidance if guidance is None else guidance)
    return find_fitted(opened, wanted, opened.weights()).settings


def save_images(samples: Samples, folder: str | Path) -> Path:
    """Write each sample as a PNG file that carries its settings, and all of them as ``grid.png``.

    Samples of 2 or of more than 4 channels are NumPy files ``(C, H, W)``, their settings beside them as JSON.

    Args:
        samples: what a pipeline answered.
        folder: made if it is not there; files of the same names are replaced.

    Returns:
        The grid.
    """
    return export.save_images(samples, Path(folder))[-1]
