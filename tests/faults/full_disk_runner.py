"""Trains where there is no room, and again where there is, for test_matrix.py.

torch is imported once; each run is a fork, as in tests/training/kill_runner.py. Called with a folder; leaves the runs
``limit/`` and ``full/`` there, and prints what each was told.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it when they are made; once here saves a second in each child

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny import tiny_config, tiny_trainer

from unfog.checkpoint import SaveError
from unfog.training.run import run_training

# As in test_matrix.py, so that the files can be compared.
SETTINGS = {"schedule": {"kind": "cosine", "shift": 1.0}, "train": {"batch_size": 8}}


def train(folder: Path) -> None:
    trainer = tiny_trainer(tiny_config(12, snapshot_every=2, ema=(0.05,)))
    for _ in run_training(trainer, folder, checkpoint_every=3, resume=True, settings=SETTINGS):
        pass


def in_child(work: Callable[[], None]) -> str:
    """Return what a fork was told when it could not save; nothing if it could."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except SaveError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


def limited(folder: Path) -> dict[str, object]:
    def work() -> None:
        # More than the weights need, less than the optimiser's moments. The signal that comes with it Python ignores.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        train(folder)

    error = in_child(work)
    left = [str(path) for path in folder.rglob(".unfinished-*")]
    assert in_child(lambda: train(folder)) == ""
    return {"error": error, "left": left}


def full(folder: Path, small: Path) -> dict[str, object] | None:
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        return None
    error = in_child(lambda: train(small / "run"))
    left = [str(path) for path in small.rglob(".unfinished-*")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
    assert in_child(lambda: train(small / "run")) == ""
    shutil.copytree(small / "run", folder)
    subprocess.run(["umount", str(small)], check=True)
    return {"error": error, "left": left}


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    print(json.dumps({"limit": limited(home / "limit"), "full": full(home / "full", home / "small")}))
