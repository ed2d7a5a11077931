"""Training a run: data, network and trainer tied together."""

from collections.abc import Iterator

from unfog.data.dataset import Dataset
from unfog.data.loader import Prefetched, ShuffledBatches
from unfog.diffusion.random import seed_of
from unfog.recipe.build import build_training
from unfog.recipe.run import Run, default_device, initial_network, lasting_settings
from unfog.recipe.watch import watched
from unfog.training.parallel import World
from unfog.training.run import run_training
from unfog.training.signals import Stop
from unfog.training.step import TrainStep
from unfog.training.trainer import Trainer


def train(run: Run, dataset: Dataset, *, stop: Stop | None = None, world: World | None = None) -> Iterator[TrainStep]:
    """Train a run from its newest checkpoint, or from its beginning, to its end.

    However often it is stopped and taken up again, it ends with the same weights: bit for bit on a processor with the
    same versions and number of threads, and on an accelerator as far as its kernels repeat themselves. With another
    number of processes it ends with the same weights but for rounding, if the network has no dropout.

    Args:
        run: where to train; its folder is written to.
        dataset: the training data, from ``run.data()``.
        stop: looked at after each step; when it is requested, the run is saved and the iterator ends.
        world: the processes that train together, each of which calls this; one alone unless given.

    Returns:
        The steps, each once it is taken and logged. All that can be refused is refused before the first.

    Raises:
        RunInUseError: if another process trains the run.
        ValueError: if the checkpoint does not fit the recipe, or a tracker refuses the run.
        ImportError: if a library is missing that a tracker needs.
        DamagedCheckpointError: if all checkpoints are damaged.
    """
    recipe, world = run.recipe, world or World.alone(default_device())
    task = build_training(recipe, initial_network(recipe)).to(world.device)
    seed = seed_of("data", recipe.train.seed)
    shuffled = ShuffledBatches(dataset, seed, flip=recipe.data.flip)
    batches = Prefetched(shuffled, stride=recipe.train.batch_size)
    trainer = Trainer(task, batches, recipe.train, world)
    steps = run_training(
        trainer,
        run.folder,
        checkpoint_every=recipe.save.checkpoint_every,
        log_every=recipe.save.log_every,
        keep=recipe.save.keep,
        resume=True,
        stop=stop,
        settings=lasting_settings(recipe),
    )
    return _closing(watched(steps, trainer, run, dataset), batches)


def _closing(steps: Iterator[TrainStep], batches: Prefetched) -> Iterator[TrainStep]:
    with batches:
        yield from steps
