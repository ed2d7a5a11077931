"""Averages stored during a run, from which those of any length are formed afterwards (``ema.reconstruct``).

They lie in ``ema/`` of a run folder, one safetensors file for each average and time, written atomically. Each holds
the SHA-256 of its tensors and of what it says of itself, checked when they are read.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unfog.checkpoint import DamagedCheckpointError, StoredTensors, write_tensors
from unfog.training.ema import Power, Snapshot
from unfog.training.spread import whole
from unfog.training.trainer import Trainer

_NAME = re.compile(r"step-(\d{8,})-.+\.safetensors")


def write_snapshots(folder: Path, trainer: Trainer) -> None:
    """Store every power average of a trainer as it is now; from others nothing can be formed.

    All processes of the trainer's world call it together, and process 0 writes.
    """
    for group, (player, kind) in trainer.ema_groups().items():
        if not isinstance(kind, Power):
            continue
        average = trainer.averages[player]
        weights = whole(average.weights(kind))
        about = {
            "player": player,
            "sigma_rel": kind.sigma_rel,
            "time": average.time,
            "copied": list(average.copied),
            "tensors": {name: _digest(tensor) for name, tensor in weights.items()},
        }
        # One entry, because several are written in an order that differs from process to process.
        metadata = {"unfog": json.dumps({"about": about, "sha256": _text_digest(about)}, sort_keys=True)}
        path = folder / "ema" / f"step-{trainer.index:08d}-{group}.safetensors"
        trainer.world.led(partial(write_tensors, path, weights, metadata))


def _digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text_digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class _Checked(Mapping[str, Tensor]):
    """The tensors of a snapshot, each compared with its digest when it is read."""

    def __init__(self, path: Path, tensors: StoredTensors, digests: Mapping[str, str]) -> None:
        self._path, self._tensors, self._digests = path, tensors, digests

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if _digest(tensor) != self._digests[name]:
            raise DamagedCheckpointError(f"{self._path}: {name!r} does not have the SHA-256 that the file says")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def discard_snapshots_after(folder: Path, step: int) -> None:
    """Remove the snapshots of later steps, which a resumed run will write again."""
    for path, found in _snapshot_files(folder):
        if found > step:
            path.unlink()


def read_snapshots(folder: Path, player: str = "model") -> list[Snapshot]:
    """Open the snapshots of one player of a run folder, in the order of time; tensors are read when asked for.

    Raises:
        FileNotFoundError: if there are none.
        DamagedCheckpointError: names a file that is cut short or changed; for the values of a tensor, when it is read.
    """
    snapshots = []
    for path, _ in _snapshot_files(folder):
        tensors = StoredTensors(path)
        try:
            entry = json.loads(tensors.metadata["unfog"])
            about, digest = entry["about"], entry["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            told = f"{path} does not say what it is an average of: {tensors.metadata}"
            raise DamagedCheckpointError(told) from error
        if _text_digest(about) != digest or set(about["tensors"]) != set(tensors):
            raise DamagedCheckpointError(f"{path} does not hold what it says; it was changed after it was written")
        if about["player"] == player:
            checked = _Checked(path, tensors, about["tensors"])
            snapshots.append(Snapshot(about["sigma_rel"], about["time"], checked, tuple(about["copied"])))
    if not snapshots:
        raise FileNotFoundError(
            f"no EMA snapshots of {player!r} in {folder / 'ema'}; train with snapshot_every to have some"
        )
    return snapshots


def _snapshot_files(folder: Path) -> list[tuple[Path, int]]:
    home = folder / "ema"
    paths = sorted(home.iterdir()) if home.is_dir() else []
    return [(path, int(m[1])) for path in paths if (m := _NAME.fullmatch(path.name))]
