"""What is kept of a run on disk: safetensors and JSON, nothing pickled, whole or not there at all.

A checkpoint is a folder ``checkpoints/step-00001200/`` of a run folder::

    model.safetensors           the weights
    ema-0.050.safetensors       their averages, one file a length
    state/optimizer.safetensors
    state.json                  step, examples, seed, counters
    manifest.json               size and SHA-256 of each of these files

It is written under another name in the same folder, forced to the disk, read back and compared, and then renamed,
which is atomic: a process killed at any instant leaves either the whole new checkpoint or none, and the previous ones
are removed only afterwards. Reading checks every byte against the manifest and falls back to the previous checkpoint
when something is damaged, saying so. ``docs/decisions/0002-run-folder.md`` tells why it is laid out like this.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from unfog.diffusion.checks import require

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FORMAT = 1
_REPLACED = "-replaced"
_FOLDER = re.compile(rf"step-(\d{{8,}})({_REPLACED})?")
_GROUP = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_UNFINISHED = ".unfinished-"
_SUFFIX = ".safetensors"
_STATE = "state.json"


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not what was written."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was damaged, and the previous one is used instead."""


@dataclass(frozen=True)
class RunState:
    """Everything a run needs to continue as if it had never stopped.

    Attributes:
        step: steps completed.
        tensors: by group and name; a group becomes a file, ``state/optimizer`` becomes
            ``state/optimizer.safetensors``.
        numbers: counters and seeds.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, JSON]


def require_same_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise unless two sets of named tensors agree in keys, shapes and dtypes.

    Args:
        expected: the tensors of the module that is to be filled.
        found: those that were read.
        what: what they are, for the message.

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped key.
    """
    wrong = [f"missing: {name}" for name in expected if name not in found]
    wrong += [f"unexpected: {name}" for name in found if name not in expected]
    for name, tensor in expected.items():
        other = found.get(name)
        if other is not None and (other.shape != tensor.shape or other.dtype != tensor.dtype):
            wrong.append(f"{name}: expected {_describe(tensor)}, got {_describe(other)}")
    if wrong:
        lines = "\n  ".join(wrong)
        raise ValueError(
            f"the saved {what} does not fit this network ({len(wrong)} differences); "
            f"build it from the recipe it was saved with:\n  {lines}"
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder, newest first, damaged or not."""
    home = folder / "checkpoints"
    if not home.is_dir():
        return []
    found = [path for path in home.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (-_step(path), path.name))


def write_checkpoint(folder: Path, state: RunState, *, keep: int = 2) -> Path:
    """Write a checkpoint, make it the current one, and remove older ones.

    Args:
        folder: the run folder; made if it is not there.
        state: what to write.
        keep: how many checkpoints stay, the new one included; at least 2 to survive a damaged disk block.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: if ``keep`` is below 1 or a group's name is no file name.
        OSError: if writing fails; the previous checkpoint is untouched.
    """
    require(keep >= 1, f"to keep at least 1 checkpoint, got {keep}")
    for group in state.tensors:
        require(_GROUP.fullmatch(group) is not None, f"a group of tensors named like a file, got {group!r}")
    home = folder / "checkpoints"
    home.mkdir(parents=True, exist_ok=True)
    name = f"step-{state.step:08d}"
    draft, final = home / f"{_UNFINISHED}{name}", home / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    entries: dict[str, JSON] = {}
    for group, tensors in state.tensors.items():
        entries[f"{group}{_SUFFIX}"] = _write(draft / f"{group}{_SUFFIX}", _serialized(tensors))
    numbers = json.dumps({"step": state.step, **state.numbers}, indent=1, sort_keys=True)
    entries[_STATE] = _write(draft / _STATE, numbers.encode())
    manifest = json.dumps({"format": FORMAT, "files": entries}, indent=1, sort_keys=True)
    _write(draft / "manifest.json", manifest.encode())
    for path in (*(p for p in draft.rglob("*") if p.is_dir()), draft):
        sync_folder(path)
    if final.exists():
        aside = home / f"{name}{_REPLACED}"
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    draft.rename(final)
    sync_folder(home)
    _remove_old(folder, keep)
    return final


def _serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save_bytes(contiguous, metadata=None if metadata is None else dict(metadata))


def _write(path: Path, content: bytes) -> dict[str, JSON]:
    """Write a file, force it to the disk, read it back, and return its entry in the manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    wanted, got = hashlib.sha256(content).hexdigest(), hashlib.sha256(path.read_bytes()).hexdigest()
    if wanted != got:
        raise OSError(f"{path} reads back differently from what was written; the disk may be failing")
    return {"bytes": len(content), "sha256": wanted}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before."""
    draft = path.with_name(f"{_UNFINISHED}{path.name}")
    _write(draft, content)
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    if os.name == "nt":  # Windows cannot open folders, and orders its renames itself.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, such as damaged ones that a run did not resume from."""
    _remove(path for path in list_checkpoints(folder) if _step(path) > step)


def _remove_old(folder: Path, keep: int) -> None:
    paths = list_checkpoints(folder)
    current = {path for path in paths if not path.name.endswith(_REPLACED)}
    replaced = [path for path in paths if path.with_name(path.name.removesuffix(_REPLACED)) in current - {path}]
    rest = [path for path in paths if path not in replaced]
    _remove([*replaced, *rest[keep:]])
    for path in (folder / "checkpoints").glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        # Renamed first: a removal that is cut short must not leave something that looks like a checkpoint.
        trash = path.with_name(f"{_UNFINISHED}{path.name}")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)


def _step(path: Path) -> int:
    match = _FOLDER.fullmatch(path.name)
    return -1 if match is None else int(match[1])


def load_checkpoint(path: Path, groups: Iterable[str] | None = None) -> RunState:
    """Read one checkpoint, checking each byte of what is read.

    Args:
        path: the checkpoint's folder.
        groups: which groups of tensors to read; all unless given.

    Raises:
        DamagedCheckpointError: names the file and what is wrong with it.
        ValueError: if a group is not in the checkpoint.
    """
    files = _manifest(path)
    numbers = _json_object(path / _STATE, _read(path, _STATE, files))
    step = numbers.pop("step", None)
    if not isinstance(step, int) or step != _step(path):
        raise DamagedCheckpointError(f"{path / _STATE} tells of step {step}")
    there = {name.removesuffix(_SUFFIX): name for name in files if name != _STATE}
    chosen = list(there) if groups is None else list(groups)
    for group in chosen:
        require(group in there, f"one of the parts of {path}, which are {', '.join(sorted(there))}; got {group!r}")
    tensors = {group: _load(path, there[group], files) for group in chosen}
    return RunState(step, tensors, numbers)


def read_checkpoint(folder: Path, groups: Iterable[str] | None = None) -> RunState:
    """Read the newest whole checkpoint of a run folder.

    A damaged one is named in a ``DamagedCheckpointWarning`` and the previous one is used.

    Args:
        folder: the run folder.
        groups: which groups of tensors to read and check, such as ``["ema-0.050"]``; all unless given.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        DamagedCheckpointError: if it holds damaged ones only.
        ValueError: if a group is not in the checkpoint.
    """
    chosen = None if groups is None else tuple(groups)
    damages: list[str] = []
    for path in list_checkpoints(folder):
        try:
            state = load_checkpoint(path, chosen)
        except DamagedCheckpointError as error:
            damages.append(str(error))
            continue
        if damages:
            listed = "\n  ".join(damages)
            warnings.warn(
                f"using the checkpoint {path.name} of {folder}, because what is newer is damaged:\n  {listed}",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
        return state
    if damages:
        raise DamagedCheckpointError(f"no whole checkpoint in {folder}:\n  " + "\n  ".join(damages))
    raise FileNotFoundError(f"no checkpoint in {folder}; is it the folder of a run that has saved one?")


def _manifest(path: Path) -> dict[str, JSON]:
    manifest = _json_object(path / "manifest.json", _bytes(path / "manifest.json"))
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict) or _STATE not in files:
        raise DamagedCheckpointError(f"{path}/manifest.json is not a manifest of format {FORMAT}")
    for name in files:
        group = name.removesuffix(_SUFFIX)
        if name != _STATE and (group == name or _GROUP.fullmatch(group) is None):
            raise DamagedCheckpointError(f"{path}/manifest.json lists {name!r}, which no checkpoint holds")
    return files


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} is missing") from error
    except OSError as error:  # a failing disk answers with input/output errors
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error


def _read(path: Path, name: str, files: Mapping[str, JSON]) -> bytes:
    entry = files[name]
    content = _bytes(path / name)
    if not isinstance(entry, dict) or len(content) != entry.get("bytes"):
        size = entry.get("bytes") if isinstance(entry, dict) else entry
        raise DamagedCheckpointError(f"{path / name} has {len(content)} bytes; the manifest says {size}")
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise DamagedCheckpointError(f"{path / name} does not have the SHA-256 of the manifest")
    return content


def _json_object(file: Path, content: bytes) -> dict[str, JSON]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DamagedCheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{file} is not a JSON object")
    return value


def _load(path: Path, name: str, files: Mapping[str, JSON]) -> dict[str, Tensor]:
    try:
        return load_bytes(_read(path, name, files))
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path / name} is not a safetensors file: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _serialized(tensors, metadata))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read when they are asked for.

    Raises:
        DamagedCheckpointError: if it is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = cast(Any, safe_open(str(path), framework="pt"))  # comes without types
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpointError(f"{path} is not a whole safetensors file: {error}") from error
        self._names = tuple(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor = self._file.get_tensor(name)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
