"""The calls that most people need, from training to pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec
from unfog.evaluation.classifier import to_pixels
from unfog.evaluation.extractors import Extractor, Features
from unfog.evaluation.fit import Fit, fit_steps
from unfog.evaluation.image_scores import ImageScores, yardstick
from unfog.evaluation.measure import describe
from unfog.pipeline import Pipeline, Samples
from unfog.recipe import export
from unfog.recipe.data import open_data
from unfog.recipe.fitted import FittedCard, Gain, find_fitted, fixed_tables, store_fitted
from unfog.recipe.load import override
from unfog.recipe.run import Run, default_device
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train as train_run
from unfog.recipes import named
from unfog.sampling.request import SampleSettings
from unfog.training.parallel import joined
from unfog.zoo.load import import_checkpoint as load_published


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


def import_checkpoint(
    path: str | Path, name: str, out: str | Path, *, entry: str | None = None, data: str | None = None
) -> Pipeline:
    """Make a run of a published checkpoint on this machine, and return what samples from it.

    Args:
        path: a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, or a folder as diffusers saves it.
        name: which model it is: one that ``unfog import --list`` shows, or ``diffusers`` for a folder that says it.
        out: the run folder; it must not hold anything yet.
        entry: which weights, where a file holds several sets, such as ``ema``.
        data: what the model is to be compared with when it is evaluated, as for ``data.path`` of recipes.

    Raises:
        ValueError: if the file cannot be read, or holds other tensors than that model's; says what it seems to be.
        FileExistsError: if the folder holds anything.
    """
    return load_published(Path(path), name, Path(out), entry=entry, data=data).run.pipeline()


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


def score(
    images: str | Path | Samples | Tensor,
    against: str,
    *,
    features: Features | Extractor = Features.OWN,
    weights: str | Path | None = None,
    split: str = "train",
    size: int | None = None,
    seed: int = 0,
) -> ImageScores:
    """Score pictures against real ones, without a model.

    Args:
        images: a folder of pictures (of one that ``save_images`` wrote, all but the grid) or a data set; what a
            pipeline answered; or ``(N, C, H, W)`` uint8, or floats in [-1, 1].
        against: the real pictures, as data sets are named.
        features: which features: ``Features.INCEPTION`` for those whose Fréchet distance is FID, or an extractor of
            one's own; those of a network that is trained on the real pictures unless given.
        weights: of published features, a file or folder, instead of those in the cache.
        split: of the real pictures; own features take the training and the test split.
        size: side of the square that pictures of files are brought to.
        seed: of choices and cuts.

    Raises:
        ValueError: if there are no such pictures, or they cannot be compared.
        FileNotFoundError: if weights are missing; says where to put them.
    """
    spec = DataSpec(path=against, split=split, size=size)
    stick = yardstick(spec, features, weights=None if weights is None else Path(weights), device=default_device())
    if isinstance(images, str | Path):
        return stick.score(export.open_pictures(images, spec), seed=seed)
    pixels = to_pixels(images if isinstance(images, Tensor) else images.x)
    labels = None if isinstance(images, Tensor) else export.labels_of([images.request])
    return stick.score(ArrayDataset(pixels.cpu().numpy(), labels, name="samples"), seed=seed)


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
