"""What is kept of a run on disk: safetensors and JSON, nothing pickled, whole or not there at all.

A checkpoint is a folder ``checkpoints/step-00001200/`` of a run folder::

    model.safetensors           the weights
    ema-0.050.safetensors       their averages, one file a length
    state/optimizer.safetensors
    state.json                  step, examples, seed, counters
    manifest.json               size and SHA-256 of each of these files

Where several processes hold a share of the weights each, every one writes its own file of a part, such as
``model.shard-00002.safetensors``, which says in its header where in the whole tensors its pieces belong
(``training.sharded_checkpoint`` writes them; here they are read like any others).

It is written under another name in the same folder, forced to the disk, read back and compared, and then renamed,
which is atomic: a process killed at any instant leaves either the whole new checkpoint or none, and the previous ones
are removed only afterwards. Reading checks every byte against the manifest and falls back to the previous checkpoint
when something is damaged, saying so. ``docs/decisions/0002-run-folder.md`` tells why it is laid out like this.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from unfog.diffusion.checks import require
from unfog.files import (
    JSON,
    PLACES,
    UNFINISHED,
    DamagedCheckpointError,
    Place,
    SaveError,
    StoredTensors,
    json_object,
    load_tensors,
    places_in,
    places_of,
    read_checked,
    read_file,
    serialized,
    sync_folder,
    write_atomically,
    write_file,
    write_tensors,
)

__all__ = [
    "JSON",
    "DamagedCheckpointError",
    "DamagedCheckpointWarning",
    "Inventory",
    "Place",
    "RunState",
    "SaveError",
    "StoredTensors",
    "discard_checkpoints_after",
    "drafting",
    "inventory",
    "list_checkpoints",
    "load_checkpoint",
    "newest_whole",
    "places_of",
    "publish",
    "read_checkpoint",
    "require_same_tensors",
    "write_atomically",
    "write_checkpoint",
    "write_shard",
    "write_tensors",
]

T = TypeVar("T")

FORMAT = 1
_REPLACED = "-replaced"
_FOLDER = re.compile(rf"step-(\d{{8,}})({_REPLACED})?")
_GROUP = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_SHARD = re.compile(r"\.shard-\d{5}$")
_SUFFIX = ".safetensors"
_STATE = "state.json"


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
        SaveError: if writing fails; nothing is left of it, and the previous checkpoint is untouched.
    """
    require(keep >= 1, f"to keep at least 1 checkpoint, got {keep}")
    for group in state.tensors:
        named = _GROUP.fullmatch(group) is not None and _SHARD.search(group) is None
        require(named, f"a group of tensors named like a file, got {group!r}")
    with drafting(folder, state.step) as draft:
        entries = {}
        for group, tensors in state.tensors.items():
            name = f"{group}{_SUFFIX}"
            entries[name] = write_file(draft / name, serialized(tensors))
        return publish(draft, state.step, state.numbers, entries, keep=keep)


@contextmanager
def drafting(folder: Path, step: int) -> Iterator[Path]:
    """Give an empty folder to write a checkpoint into, to be made the current one by ``publish``.

    Raises:
        SaveError: where it cannot be made or written into; nothing is left of it then.
    """
    draft = folder / "checkpoints" / f"{UNFINISHED}{_name(step)}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)  # it would keep the room that the next attempt needs
        raise SaveError.of(draft, error) from error


def write_shard(draft: Path, group: str, shard: int, pieces: Mapping[str, tuple[Tensor, Place]]) -> dict[str, JSON]:
    """Write what one of several processes holds of a group of tensors into a draft.

    Args:
        draft: from ``drafting``.
        group: of the tensors.
        shard: number of the process, in [0, 100000).
        pieces: by name, and where in the whole tensor each belongs.

    Returns:
        Its entry of the manifest, by the name of the file.
    """
    name = f"{group}.shard-{shard:05d}{_SUFFIX}"
    places = {key: {"shape": place.shape, "offsets": place.offsets} for key, (_, place) in pieces.items()}
    metadata = {PLACES: json.dumps(places, sort_keys=True)}
    return {name: write_file(draft / name, serialized({key: tensor for key, (tensor, _) in pieces.items()}, metadata))}


def publish(draft: Path, step: int, numbers: Mapping[str, JSON], entries: Mapping[str, JSON], *, keep: int) -> Path:
    """Complete a draft, make it the current checkpoint, and remove older ones.

    Args:
        draft: from ``drafting``, with the tensors in it.
        step: steps completed.
        numbers: counters and seeds.
        entries: of the manifest, for each file with tensors.
        keep: how many checkpoints stay, the new one included.

    Returns:
        The folder of the checkpoint.
    """
    text = json.dumps({"step": step, **numbers}, indent=1, sort_keys=True)
    files = {**entries, _STATE: write_file(draft / _STATE, text.encode())}
    manifest = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True)
    write_file(draft / "manifest.json", manifest.encode())
    for path in (*(p for p in draft.rglob("*") if p.is_dir()), draft):
        sync_folder(path)
    final = draft.with_name(_name(step))
    if final.exists():
        aside = final.with_name(f"{final.name}{_REPLACED}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    draft.rename(final)
    sync_folder(final.parent)
    _remove_old(final.parent.parent, keep)
    return final


def _name(step: int) -> str:
    return f"step-{step:08d}"


def discard_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, such as damaged ones that a run did not resume from, and drafts."""
    _remove(path for path in list_checkpoints(folder) if _step(path) > step)
    _remove_drafts(folder)


def _remove_old(folder: Path, keep: int) -> None:
    paths = list_checkpoints(folder)
    current = {path for path in paths if not path.name.endswith(_REPLACED)}
    replaced = [path for path in paths if path.with_name(path.name.removesuffix(_REPLACED)) in current - {path}]
    rest = [path for path in paths if path not in replaced]
    _remove([*replaced, *rest[keep:]])
    _remove_drafts(folder)


def _remove_drafts(folder: Path) -> None:
    """Remove what a write or a removal that was cut short has left."""
    for path in (folder / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        # Renamed first: a removal that is cut short must not leave something that looks like a checkpoint.
        trash = path.with_name(f"{UNFINISHED}{path.name}")
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
    found = inventory(path)
    chosen = list(found.parts) if groups is None else list(groups)
    for group in chosen:
        listed = ", ".join(sorted(found.parts))
        require(group in found.parts, f"one of the parts of {path}, which are {listed}; got {group!r}")
    return RunState(found.step, {group: _joined(found, group) for group in chosen}, found.numbers)


@dataclass(frozen=True)
class Inventory:
    """What a checkpoint should hold, by its manifest.

    Attributes:
        path: its folder.
        step: steps completed.
        numbers: counters and seeds.
        parts: the files of each group of tensors: one, or several that hold pieces of them.
        files: their entries in the manifest.
    """

    path: Path
    step: int
    numbers: Mapping[str, JSON]
    parts: Mapping[str, Sequence[str]]
    files: Mapping[str, JSON]

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DamagedCheckpointError: if it is not what was written.
        """
        return read_checked(self.path / name, self.files[name])


def inventory(path: Path) -> Inventory:
    """Read what a checkpoint should hold, and its counters; tensors are not looked at.

    Raises:
        DamagedCheckpointError: names the file and what is wrong with it.
    """
    files = _manifest(path)
    numbers = json_object(path / _STATE, read_checked(path / _STATE, files[_STATE]))
    step = numbers.pop("step", None)
    if not isinstance(step, int) or step != _step(path):
        raise DamagedCheckpointError(f"{path / _STATE} tells of step {step}")
    parts: dict[str, list[str]] = {}
    for name in sorted(files):
        if name != _STATE:
            parts.setdefault(_SHARD.sub("", name.removesuffix(_SUFFIX)), []).append(name)
    return Inventory(path, step, numbers, parts, files)


def _joined(found: Inventory, group: str) -> dict[str, Tensor]:
    """Return the tensors of a group, those that lie in pieces put together."""
    tensors: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    for name in found.parts[group]:
        content = found.read(name)
        pieces, places = load_tensors(found.path / name, content), places_in(found.path / name, content)
        for key, piece in pieces.items():
            filled[key] = filled.get(key, 0) + piece.numel()
            if key not in places:
                tensors[key] = piece
                continue
            shape, offsets = places[key]
            into = tensors.setdefault(key, piece.new_empty(shape))
            into[tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))] = piece
    holes = [key for key, tensor in tensors.items() if filled[key] != tensor.numel()]
    if holes:
        raise DamagedCheckpointError(f"{found.path} lacks pieces of {group}: {', '.join(holes)}")
    return tensors


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
    chosen, paths = None if groups is None else tuple(groups), list_checkpoints(folder)
    if not paths:
        raise FileNotFoundError(f"no checkpoint in {folder}; is it the folder of a run that has saved one?")
    return newest_whole(paths, lambda path: load_checkpoint(path, chosen))


def newest_whole(paths: Sequence[Path], read: Callable[[Path], T]) -> T:
    """Return what is read from the first checkpoint that can be read, warning of those before it.

    Args:
        paths: of one run folder, newest first, at least one.
        read: raises ``DamagedCheckpointError`` for a damaged one.

    Raises:
        DamagedCheckpointError: if there are damaged ones only.
    """
    damages: list[str] = []
    for path in paths:
        try:
            found = read(path)
        except DamagedCheckpointError as error:
            damages.append(str(error))
            continue
        if damages:
            listed = "\n  ".join(damages)
            warnings.warn(
                f"using the checkpoint {path.name} of {path.parent.parent}, because what is newer is damaged:"
                f"\n  {listed}",
                DamagedCheckpointWarning,
                stacklevel=3,
            )
        return found
    raise DamagedCheckpointError(f"no whole checkpoint in {paths[0].parent.parent}:\n  " + "\n  ".join(damages))


def _manifest(path: Path) -> dict[str, JSON]:
    manifest = json_object(path / "manifest.json", read_file(path / "manifest.json"))
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict) or _STATE not in files:
        raise DamagedCheckpointError(f"{path}/manifest.json is not a manifest of format {FORMAT}")
    for name in files:
        group = name.removesuffix(_SUFFIX)
        if name != _STATE and (group == name or _GROUP.fullmatch(group) is None):
            raise DamagedCheckpointError(f"{path}/manifest.json lists {name!r}, which no checkpoint holds")
    return files
