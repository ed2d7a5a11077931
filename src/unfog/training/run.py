"""A run in a folder: training that survives being stopped at any instant.

::

    with stop_on_signals() as stop:
        for step in run_training(trainer, folder, checkpoint_every=500, resume=True, stop=stop):
            ...  # draw the progress

Where several processes train together, all of them call it, and process 0 alone writes (but for checkpoints of sharded
weights, of which each writes its share). A stop that one of them is asked for stops all after the same step.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from signal import Signals

from torch import Tensor

from unfog.checkpoint import (
    JSON,
    RunState,
    discard_checkpoints_after,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from unfog.diffusion.checks import require
from unfog.training.failures import discard_failures_after, write_failures
from unfog.training.lock import RunLock
from unfog.training.log import LogWriter
from unfog.training.parallel import World
from unfog.training.settings import SETTINGS, require_same_settings
from unfog.training.signals import Stop
from unfog.training.snapshots import discard_snapshots_after, write_snapshots
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError, Trainer

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
    settings: Mapping[str, JSON] | None = None,
) -> Iterator[TrainStep]:
    """Train in a folder, saving now and then, and yield each step once it is logged (and saved, if it is due).

    Everything up to the first step happens at the call: ``trainer.index`` then tells where the run resumes. Whatever a
    killed run left after its last checkpoint (lines of the log, snapshots, failures) is removed, for it is written
    again. The folder is locked until the iterator ends or is closed.

    Args:
        trainer: a fresh trainer; when resuming, of the same task and configuration as before.
        folder: the run folder; made if it is not there.
        checkpoint_every: steps between checkpoints; the last step is saved always.
        log_every: steps between lines of ``log.jsonl``; steps that could not be applied are logged always.
        keep: how many checkpoints stay.
        resume: continue from the newest whole checkpoint, or start if there is none yet.
        stop: looked at after each step; when it is requested in any process, the run is saved and the iterator ends.
        settings: what tells this run from others, stored in each checkpoint; one with other settings is refused.

    Raises:
        ValueError: if a cadence is below 1, the checkpoint does not fit the trainer or its settings, or more steps are
            done than the run is to have.
        FileExistsError: if the folder holds a run already and ``resume`` is off.
        RunInUseError: if another process trains in the folder.
        DamagedCheckpointError: if all checkpoints are damaged.
        LeaderError: in the other processes, where process 0 raises one of these.
        SaveError: later, if something cannot be written; the trainer holds what was learned up to then.
        NonFiniteError: later, at the third step in a row that could not be applied; it is logged like any other.
    """
    require(checkpoint_every >= 1, f"checkpoint_every of at least 1 step, got {checkpoint_every}")
    require(log_every >= 1, f"log_every of at least 1 step, got {log_every}")
    require(keep >= 1, f"to keep at least 1 checkpoint, got {keep}")
    world, log = trainer.world, _Log()
    numbers: dict[str, JSON] = {} if settings is None else {SETTINGS: dict(settings)}
    with ExitStack() as opened:

        def begin() -> bool:
            if not resume and (list_checkpoints(folder) or (folder / LOG).exists()):
                raise FileExistsError(f"{folder} holds a run already; resume it, or choose another folder")
            folder.mkdir(parents=True, exist_ok=True)
            opened.enter_context(RunLock(folder))
            return bool(list_checkpoints(folder))

        def clear() -> None:
            discard_checkpoints_after(folder, trainer.index)
            discard_snapshots_after(folder, trainer.index)
            discard_failures_after(folder, trainer.index)
            log.writer = LogWriter(folder / LOG, after_step=trainer.index)

        if world.led(begin):
            _continue(trainer, folder, settings or {})
        world.led(clear)
        steps = _steps(trainer, folder, log, checkpoint_every, log_every, keep, stop or Stop(), numbers)
        return _closing(steps, log, opened.pop_all())


def is_logged(step: TrainStep, log_every: int) -> bool:
    """Return whether a step is told of: every ``log_every``-th, and each that could not be applied."""
    return step.index % log_every == 0 or not step.applied


class _Log:
    """The log of a run in process 0, and nothing in the others."""

    writer: LogWriter | None = None

    def record(self, folder: Path, step: TrainStep, log_every: int) -> None:
        """Write what there is to be told of a step."""
        if self.writer is None:
            return
        if is_logged(step, log_every):
            self.writer.write(step_record(step))
        if step.failures:
            write_failures(folder, step.failures)

    def sync(self) -> None:
        if self.writer is not None:
            self.writer.sync()


def _continue(trainer: Trainer, folder: Path, settings: Mapping[str, JSON]) -> None:
    """Load the newest whole checkpoint, if it is one of this run."""

    def require_this_run(state: RunState) -> None:
        require_same_settings(state.numbers.get(SETTINGS), settings)
        require(
            state.step <= trainer.config.steps,
            f"at least the {state.step} steps that {folder} has done already, got {trainer.config.steps}; a run can be "
            f"made longer, not shorter",
        )
        trainer.require_fit(state)

    def own(state: RunState) -> dict[str, Mapping[str, Tensor]]:
        require_this_run(state)
        return trainer.tensors()

    def read() -> tuple[int, Mapping[str, JSON]]:
        state = read_checkpoint(folder)
        require_this_run(state)
        trainer.load_state(state)
        return state.step, state.numbers

    if trainer.sharded:
        from unfog.training.sharded_checkpoint import read_sharded  # imports half as much as torch

        trainer.load_state(read_sharded(folder, trainer.world, own))
        return
    step, numbers = trainer.world.led(read)
    for tensors in trainer.tensors().values():
        trainer.world.follow_(*tensors.values())
    if not trainer.world.leads:
        trainer.load_state(RunState(step, trainer.tensors(), numbers))


def _save(trainer: Trainer, folder: Path, numbers: Mapping[str, JSON], keep: int) -> None:
    told = {**trainer.numbers(), **numbers}
    if trainer.sharded:
        from unfog.training.sharded_checkpoint import write_sharded

        write_sharded(folder, RunState(trainer.index, trainer.tensors(), told), trainer.world, keep=keep)
        return

    def write() -> None:
        write_checkpoint(folder, RunState(trainer.index, trainer.tensors(), told), keep=keep)

    trainer.world.led(write)


def _asked(stop: Stop, world: World) -> bool:
    """Tell whether any process was asked to stop; then all of them are."""
    number = world.largest(1 + (stop.signal or 0) if stop.requested else 0)
    if number:
        stop.request(Signals(number - 1) if number > 1 else None)
    return stop.requested


def _closing(steps: Iterator[TrainStep], log: _Log, opened: ExitStack) -> Iterator[TrainStep]:
    with opened, log.writer or nullcontext():
        yield from steps


def _steps(
    trainer: Trainer,
    folder: Path,
    log: _Log,
    checkpoint_every: int,
    log_every: int,
    keep: int,
    stop: Stop,
    numbers: Mapping[str, JSON],
) -> Iterator[TrainStep]:
    every = trainer.config.snapshot_every
    world, saved = trainer.world, trainer.index

    def save() -> None:
        nonlocal saved
        if saved != trainer.index:
            world.led(log.sync)
            _save(trainer, folder, numbers, keep)
            saved = trainer.index

    try:
        for step in trainer:
            log.record(folder, step, log_every)
            if every is not None and step.index % every == 0:
                write_snapshots(folder, trainer)
            asked = _asked(stop, world)
            if step.index % checkpoint_every == 0 or step.index == trainer.config.steps or asked:
                save()
            yield step
            # Of several processes each may have been asked meanwhile: they agree on it after the next step.
            if asked or (world.size == 1 and stop.requested):
                save()
                return
    except NonFiniteError as error:
        log.record(folder, error.step, log_every)
        raise


def step_record(step: TrainStep) -> dict[str, JSON]:
    """Return a step as a line of the log: flat for one player, and one object per player for several."""
    players: dict[str, dict[str, JSON]] = {
        name: {
            "loss": p.loss,
            "grad_norm": p.grad_norm,
            "applied": p.applied,
            "parts": dict(p.parts),
            **({} if p.failure is None else {"failure": p.failure.record()}),
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
