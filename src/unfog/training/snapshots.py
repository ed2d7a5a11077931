"""Averages stored during a run, from which those of any length are formed afterwards (``ema.reconstruct``).

They lie in ``ema/`` of a run folder, one safetensors file for each average and time, written atomically.
"""

import json
import re
from pathlib import Path

from unfog.checkpoint import DamagedCheckpointError, StoredTensors, write_tensors
from unfog.training.ema import Snapshot
from unfog.training.trainer import Trainer

_NAME = re.compile(r"step-(\d{8,})-.+\.safetensors")


def write_snapshots(folder: Path, trainer: Trainer) -> None:
    """Store every average of a trainer as it is now."""
    for group, (player, length) in trainer.ema_groups().items():
        average = trainer.averages[player]
        about = {"player": player, "sigma_rel": length, "time": average.time, "copied": average.copied}
        # One entry, because several are written in an order that differs from process to process.
        metadata = {"unfog": json.dumps(about, sort_keys=True)}
        path = folder / "ema" / f"step-{trainer.index:08d}-{group}.safetensors"
        write_tensors(path, average.weights(length), metadata)


def discard_snapshots_after(folder: Path, step: int) -> None:
    """Remove the snapshots of later steps, which a resumed run will write again."""
    for path, found in _snapshot_files(folder):
        if found > step:
            path.unlink()


def read_snapshots(folder: Path, player: str = "model") -> list[Snapshot]:
    """Open the snapshots of one player of a run folder, in the order of time; tensors are read when asked for.

    Raises:
        FileNotFoundError: if there are none.
        DamagedCheckpointError: names a file that is cut short.
    """
    snapshots = []
    for path, _ in _snapshot_files(folder):
        tensors = StoredTensors(path)
        try:
            about = json.loads(tensors.metadata["unfog"])
            if about["player"] == player:
                snapshots.append(Snapshot(about["sigma_rel"], about["time"], tensors, tuple(about["copied"])))
        except (KeyError, TypeError, ValueError) as error:
            told = f"{path} does not say what it is an average of: {tensors.metadata}"
            raise DamagedCheckpointError(told) from error
    if not snapshots:
        raise FileNotFoundError(
            f"no EMA snapshots of {player!r} in {folder / 'ema'}; train with snapshot_every to have some"
        )
    return snapshots


def _snapshot_files(folder: Path) -> list[tuple[Path, int]]:
    home = folder / "ema"
    paths = sorted(home.iterdir()) if home.is_dir() else []
    return [(path, int(m[1])) for path in paths if (m := _NAME.fullmatch(path.name))]
