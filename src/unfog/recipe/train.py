"""Training a run: data, network and trainer tied together."""

from collections.abc import Iterator

from unfog.data.dataset import Dataset
from unfog.data.loader import Prefetched, ShuffledBatches
from unfog.diffusion.random import seed_of
from unfog.recipe.build import build_task
from unfog.recipe.run import Run, default_device, initial_network
from unfog.training.run import run_training
from unfog.training.signals import Stop
from unfog.training.step import TrainStep
from unfog.training.trainer import Trainer


def train(run: Run, dataset: Dataset, *, stop: Stop | None = None) -> Iterator[TrainStep]:
    """Train a run from its newest checkpoint, or from its beginning, to its end.

    However often it is stopped and taken up again, it ends with the same weights: bit for bit on a processor with the
    same versions and number of threads, and on an accelerator as far as its kernels repeat themselves.

    Args:
        run: where to train; its folder is written to.
        dataset: the training data, from ``run.data()``.
        stop: looked at after each step; when it is requested, the run is saved and the iterator ends.

    Returns:
        The steps, each once it is taken and logged. All that can be refused is refused before the first.

    Raises:
        ValueError: if the checkpoint does not fit the recipe.
        DamagedCheckpointError: if all checkpoints are damaged.
    """
    recipe = run.recipe
    task = build_task(recipe, initial_network(recipe)).to(default_device())
    seed = seed_of("data", recipe.train.seed)
    batches = Prefetched(ShuffledBatches(dataset, seed, flip=recipe.data.flip))
    steps = run_training(
        Trainer(task, batches, recipe.train),
        run.folder,
        checkpoint_every=recipe.save.checkpoint_every,
        log_every=recipe.save.log_every,
        keep=recipe.save.keep,
        resume=True,
        stop=stop,
    )
    return _closing(steps, batches)


def _closing(steps: Iterator[TrainStep], batches: Prefetched) -> Iterator[TrainStep]:
    with batches:
        yield from steps
