"""The calls that most people need, from training to pictures."""

from collections.abc import Sequence
from pathlib import Path

from unfog.pipeline import Pipeline, Samples
from unfog.recipe import export
from unfog.recipe.data import open_data
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
