"""Runs the tiny task in child processes that are killed, for test_kill.py.

torch is imported once and each run is a fork of this process, which itself never trains and so has no threads.
Called with a folder; writes ``plain/`` (never killed) and ``killed/`` there, and prints how each child ended.
"""

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it when they are made; once here saves a second in each child
from tiny import TinyTask, tiny_config, tiny_trainer

from unfog.training.run import run_training

STEPS = 40
Trap = tuple[str, float]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DeadlyTask(TinyTask):
    """Kills its process inside a given call of the loss, between two micro-batches of a step or not."""

    calls = 0
    deadly = 0

    def loss(self, batch, player, *, rng):  # type: ignore[no-untyped-def]
        DeadlyTask.calls += 1
        if DeadlyTask.calls == DeadlyTask.deadly:
            die()
        return super().loss(batch, player, rng=rng)


def die_at_file_call(number: int) -> None:
    """Kill the process at the given call that forces, renames or removes something on the disk."""
    left = number

    def deadly(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                die()
            return function(*args, **options)

        return call

    os.fsync, os.rename, os.replace = deadly(os.fsync), deadly(os.rename), deadly(os.replace)  # type: ignore
    os.unlink, shutil.rmtree = deadly(os.unlink), deadly(shutil.rmtree)  # type: ignore


def train(folder: Path, trap: Trap | None) -> None:
    if trap is not None:
        kind, value = trap
        if kind == "loss":
            DeadlyTask.deadly = int(value)
        elif kind == "file":
            die_at_file_call(int(value))
        else:  # SIGALRM is not handled, so it ends the process wherever it is, as SIGKILL does
            signal.setitimer(signal.ITIMER_REAL, value)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        task = DeadlyTask()
    torch.manual_seed(os.getpid())  # what the global generator holds must not matter
    trainer = tiny_trainer(tiny_config(STEPS, snapshot_every=4), task)
    for _ in run_training(trainer, folder, checkpoint_every=2, resume=True):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)


def in_child(folder: Path, trap: Trap | None) -> int:
    """Train in a fork; return 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            train(folder, trap)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    chance = random.Random(1)
    traps: list[Trap] = [("loss", chance.randint(1, 14)) for _ in range(12)]
    traps += [("file", chance.randint(1, 48)) for _ in range(8)]
    chance.shuffle(traps)
    plain = in_child(folder / "plain", None)
    killed = [in_child(folder / "killed", trap) for trap in traps]
    finished = in_child(folder / "killed", None)
    timed = [1]
    while timed[-1] != 0 and len(timed) < 30:  # ever more time, so that it ends on a slow machine too
        timed.append(in_child(folder / "timed", ("timer", 0.01 * 1.7 ** len(timed))))
    print(json.dumps({"plain": plain, "killed": killed, "finished": finished, "timed": timed[1:]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
