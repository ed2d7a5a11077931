"""Runs the tiny task in child processes that are killed, for test_kill.py and faults/test_hundred_kills.py.

torch is imported once and each run is a fork of this process, which itself never trains and so has no threads.
Called with a folder; writes ``plain/`` (never killed) and runs that were killed there, and prints how each child ended.
With ``hundred`` as a second argument, one hundred are killed at random.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
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


def die_at_file_call(number: int, only: str = "") -> None:
    """Kill the process at the given call that forces, renames or removes something on the disk.

    Only calls for paths that contain a word are counted, if one is given.
    """
    left = number

    def deadly(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal left
            what = Path(f"/proc/self/fd/{args[0]}").readlink() if isinstance(args[0], int) else args[0]
            left -= only in str(what)
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
        elif kind == "save":
            die_at_file_call(int(value), only="checkpoints")
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


def in_killed_child(folder: Path, seconds: float) -> int:
    """Train in a fork that is killed from outside after a while, unless it has ended; return as ``in_child``."""
    child = os.fork()
    if child == 0:
        train(folder, None)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # one that has ended is not reaped yet: the signal then goes nowhere
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hundred(folder: Path) -> None:
    """Kill one hundred runs, a third each by the clock, at any change on the disk, and within a save."""
    chance = random.Random(2)
    began = time.perf_counter()
    assert in_child(folder / "plain", None) == 0
    whole = time.perf_counter() - began
    kills = {"clock": 0, "file": 0, "save": 0}
    rounds = [0]
    while sum(kills.values()) < 100:
        kind = chance.choice(list(kills))
        here = folder / f"killed-{rounds[-1]}"
        if kind == "clock":
            end = in_killed_child(here, chance.uniform(0, 0.7 * whole))
        else:
            end = in_child(here, (kind, chance.randint(1, 60)))
        assert end in (0, -signal.SIGKILL)
        kills[kind] += end != 0
        if end == 0:  # it came to its end: another one
            rounds.append(rounds[-1] + 1)
    assert in_child(folder / f"killed-{rounds[-1]}", None) == 0
    print(json.dumps({"kills": kills, "rounds": len(rounds)}))


def main(folder: Path) -> None:
    chance = random.Random(1)
    traps: list[Trap] = [("loss", chance.randint(1, 14)) for _ in range(12)]
    traps += [("file", chance.randint(1, 48)) for _ in range(8)]
    chance.shuffle(traps)
    plain = in_child(folder / "plain", None)
    killed = [in_child(folder / "killed", trap) for trap in traps]
    finished = in_child(folder / "killed", None)
    saves = [in_child(folder / "saves", ("save", number)) for number in range(1, 21)]
    saves.append(in_child(folder / "saves", None))
    timed = [1]
    while timed[-1] != 0 and len(timed) < 30:  # ever more time, so that it ends on a slow machine too
        timed.append(in_child(folder / "timed", ("timer", 0.01 * 1.7 ** len(timed))))
    ends = {"plain": plain, "killed": killed, "finished": finished, "saves": saves, "timed": timed[1:]}
    print(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    (hundred if "hundred" in sys.argv else main)(Path(sys.argv[1]))
