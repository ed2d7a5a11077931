"""What there is to watch of a run while it trains: pictures of samples, and trackers.

Neither changes what is trained. Pictures are drawn from the averaged weights with noise that is keyed by seed and
sample, in a network of their own, and torch's generator is left alone: weights with and without them are bit-equal.
They take time, though, which ``unfog estimate`` counts.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from unfog.asking import classes_in_turn, in_turn
from unfog.data.dataset import Dataset
from unfog.pipeline import Pipeline
from unfog.recipe.export import origin_of, save_grid
from unfog.recipe.run import Run, StoredWeights
from unfog.recipe.schema import SaveConfig
from unfog.recipe.trackers import Tracker, open_trackers, tell
from unfog.sampling.request import SampleRequest
from unfog.training.ema import average_of
from unfog.training.run import is_logged, step_record
from unfog.training.spread import whole
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError, Trainer

SAMPLES = "samples"
"""Folder of the pictures in a run folder."""

_PICTURE = re.compile(r"preview-(\d{8,})\.png")


def preview_count(classes: int) -> int:
    """Return how many samples a preview shows: of each class up to 20 four, 36 of a model without."""
    return 36 if not classes else 4 * classes if classes <= 20 else 100


def preview_request(pipeline: Pipeline, examples: Dataset) -> SampleRequest:
    """Return what a preview shows: samples of seed 0, at the pipeline's settings, with the conditions of ``in_turn``.

    Args:
        pipeline: that draws.
        examples: whose attributes are asked for, of a model that is told any.
    """
    count = preview_count(classes_in_turn(pipeline.conditioner))
    return SampleRequest.of(count, in_turn(pipeline.conditioner, examples, range(count)))


def watched(steps: Iterator[TrainStep], trainer: Trainer, run: Run, examples: Dataset) -> Iterator[TrainStep]:
    """Pass steps on, writing previews and trackers as the recipe asks for; of several processes the first one writes.

    What can be refused is refused at the call.

    Args:
        steps: from ``run_training``.
        trainer: that takes them.
        run: where they are written.
        examples: those that are trained on.

    Raises:
        ImportError: if a tracker's library is missing.
        ValueError: if a tracker refuses the run; says why.
        LeaderError: in the other processes, if the first one could not open a tracker, or later not draw.
    """
    trackers: list[Tracker] = []

    def begin() -> None:
        _discard_after(run.folder, trainer.index)
        trackers.extend(open_trackers(run.folder, run.recipe, run.log()))

    trainer.world.led(begin)
    return _watched(steps, trainer, run, examples, trackers)


def _watched(
    steps: Iterator[TrainStep], trainer: Trainer, run: Run, examples: Dataset, trackers: Sequence[Tracker]
) -> Iterator[TrainStep]:
    save, failed = run.recipe.save, True
    try:
        if trainer.index and _is_due(trainer, save):
            _draw(trainer, run, examples, trackers)  # a kill may have come between the checkpoint and its picture
        for step in steps:
            if is_logged(step, save.log_every):
                for tracker in trackers:
                    tell(tracker, step_record(step))
            if _is_due(trainer, save):
                _draw(trainer, run, examples, trackers)
            yield step
        failed = False
    except GeneratorExit:
        failed = False
        raise
    except NonFiniteError as error:
        for tracker in trackers:
            tell(tracker, step_record(error.step))
        raise
    finally:
        for tracker in trackers:
            tracker.close(failed=failed)


def _is_due(trainer: Trainer, save: SaveConfig) -> bool:
    every = save.preview_every
    return every is not None and (trainer.index % every == 0 or trainer.index == trainer.config.steps)


def _draw(trainer: Trainer, run: Run, examples: Dataset, trackers: Sequence[Tracker]) -> None:
    """Draw a preview; all processes take part in bringing the weights together where these are sharded."""
    average = run.recipe.average
    group = "model" if average is None else average_of(average).name
    tensors = {name: tensor.detach().cpu() for name, tensor in whole(trainer.tensors()[group]).items()}

    def draw() -> None:
        weights = StoredWeights.of(group, trainer.index, tensors)
        pipeline = run.pipeline(weights)
        samples = pipeline.sample(preview_request(pipeline, examples))
        path = run.folder / SAMPLES / f"preview-{trainer.index:08d}.png"
        save_grid(samples, path, classes=pipeline.classes, origin=origin_of(run, weights))
        for tracker in trackers:
            if trainer.index >= tracker.begin:
                tracker.show(trainer.index, path)

    trainer.world.led(draw)


def _discard_after(folder: Path, step: int) -> None:
    """Remove the previews of later steps, which a resumed run will draw again."""
    home = folder / SAMPLES
    for path in home.iterdir() if home.is_dir() else ():
        found = _PICTURE.fullmatch(path.name)
        if found and int(found[1]) > step:
            path.unlink()
