"""A run in a folder: training that survives being stopped at any instant.

::

    with stop_on_signals() as stop:
        for step in run_training(trainer, folder, checkpoint_every=500, resume=True, stop=stop):
            ...  # draw the progress
"""

from collections.abc import Iterator
from pathlib import Path

from unfog.checkpoint import (
    JSON,
    discard_checkpoints_after,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from unfog.diffusion.checks import require
from unfog.training.log import LogWriter
from unfog.training.signals import Stop
from unfog.training.snapshots import discard_snapshots_after, write_snapshots
from unfog.training.step import TrainStep
from unfog.training.trainer import Trainer

LOG = "log.jsonl"


def run_training(
    trainer: Trainer,
    folder: Path,
    *,
    checkpoint_every: int,
    log_every: int = 1,
    keep: int = 2,
    resume: bool = False,
    stop: Stop | None = None,
) -> Iterator[TrainStep]:
    """Train in a folder, saving now and then, and yield each step once it is logged (and saved, if it is due).

    Everything up to the first step happens at the call: ``trainer.index`` then tells where the run resumes. Whatever a
    killed run left after its last checkpoint (lines of the log, snapshots) is removed, for it is written again.

    Args:
        trainer: a fresh trainer; when resuming, of the same task and configuration as before.
        folder: the run folder; made if it is not there.
        checkpoint_every: steps between checkpoints; the last step is saved always.
        log_every: steps between lines of ``log.jsonl``; steps that could not be applied are logged always.
        keep: how many checkpoints stay.
        resume: continue from the newest whole checkpoint, or start if there is none yet.
        stop: looked at after each step; when it is requested, the run is saved and the iterator ends.

    Raises:
        ValueError: if a cadence is below 1, or the checkpoint does not fit the trainer.
        FileExistsError: if the folder holds a run already and ``resume`` is off.
        DamagedCheckpointError: if all checkpoints are damaged.
    """
    require(checkpoint_every >= 1, f"checkpoint_every of at least 1 step, got {checkpoint_every}")
    require(log_every >= 1, f"log_every of at least 1 step, got {log_every}")
    require(keep >= 1, f"to keep at least 1 checkpoint, got {keep}")
    if not resume and (list_checkpoints(folder) or (folder / LOG).exists()):
        raise FileExistsError(f"{folder} holds a run already; resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if list_checkpoints(folder):
        trainer.load_state(read_checkpoint(folder))
    discard_checkpoints_after(folder, trainer.index)
    discard_snapshots_after(folder, trainer.index)
    log = LogWriter(folder / LOG, after_step=trainer.index)
    return _steps(trainer, folder, log, checkpoint_every, log_every, keep, stop or Stop())


def _steps(
    trainer: Trainer, folder: Path, log: LogWriter, checkpoint_every: int, log_every: int, keep: int, stop: Stop
) -> Iterator[TrainStep]:
    every = trainer.config.snapshot_every
    saved = trainer.index

    def save() -> None:
        nonlocal saved
        if saved != trainer.index:
            log.sync()
            write_checkpoint(folder, trainer.state(), keep=keep)
            saved = trainer.index

    with log:
        for step in trainer:
            if step.index % log_every == 0 or not step.applied:
                log.write(step_record(step))
            if every is not None and step.index % every == 0:
                write_snapshots(folder, trainer)
            if step.index % checkpoint_every == 0 or step.index == trainer.config.steps or stop.requested:
                save()
            yield step
            if stop.requested:
                save()
                return


def step_record(step: TrainStep) -> dict[str, JSON]:
    """Return a step as a line of the log: flat for one player, and one object per player for several."""
    players: dict[str, dict[str, JSON]] = {
        name: {
            "loss": p.loss,
            "grad_norm": p.grad_norm,
            "applied": p.applied,
            "parts": dict(p.parts),
        }
        for name, p in step.players.items()
    }
    told: dict[str, JSON] = next(iter(players.values())) if len(players) == 1 else {"players": dict(players)}
    return {
        "step": step.index,
        "examples": step.examples,
        "lr": step.lr,
        **told,
        "seconds": step.seconds,
        "waited": step.waited,
    }
