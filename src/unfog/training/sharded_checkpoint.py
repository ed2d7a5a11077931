"""Checkpoints of sharded weights: each process writes and reads its share, through ``torch.distributed.checkpoint``.

A checkpoint is the folder that ``unfog.checkpoint`` describes, with several files to a part::

    model.shard-00000.safetensors   what process 0 held of the weights, and where in them it belongs
    model.shard-00001.safetensors

torch plans who writes and reads what, so the number of processes may differ between writing and reading. The storage
below it is our own: torch's would pickle what it knows of the files, and a checkpoint is never unpickled here.

What is promised of a checkpoint holds for these too: each file is read back and hashed, process 0 renames the folder
once all processes have written, and what is read is checked against the manifest, each process checking some files.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from unfog.checkpoint import (
    JSON,
    DamagedCheckpointError,
    Inventory,
    Place,
    RunState,
    SaveError,
    StoredTensors,
    drafting,
    inventory,
    list_checkpoints,
    newest_whole,
    places_of,
    publish,
    write_shard,
)
from unfog.training.parallel import World


def write_sharded(folder: Path, state: RunState, world: World, *, keep: int = 2) -> None:
    """Write a checkpoint together, make it the current one, and remove older ones.

    Args:
        folder: the run folder, on a file system that all processes share.
        state: the same in all processes, but for what each holds of the tensors.
        world: the processes.
        keep: how many checkpoints stay, the new one included.

    Raises:
        SaveError: in all processes, if writing fails in one; the previous checkpoint is untouched.
        LeaderError: in the other processes, if process 0 cannot begin.
    """
    with ExitStack() as opened:
        draft = world.led(lambda: opened.enter_context(drafting(folder, state.step)))

        def finish(entries: Mapping[str, JSON]) -> None:
            publish(draft, state.step, state.numbers, entries, keep=keep)

        try:
            save(_flat(state.tensors), storage_writer=_Writer(draft, world.rank, finish))
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            if isinstance(reason, OSError):
                raise SaveError(f"process {rank}: {reason}") from error
            raise reason from error


def read_sharded(folder: Path, world: World, own: Callable[[RunState], Mapping[str, Mapping[str, Tensor]]]) -> RunState:
    """Read the newest whole checkpoint into tensors that are there already, each process what it holds of them.

    It may have been written by any number of processes, by one as well.

    Args:
        folder: the run folder, which must hold a checkpoint, on a file system that all processes share.
        world: the processes.
        own: returns the tensors to be filled, with the parts, names, shapes and dtypes of the state that it is given,
            or raises; the tensors in that have no values.

    Returns:
        The state, whose tensors are those of ``own``.

    Raises:
        DamagedCheckpointError: in all processes, if all checkpoints are damaged.
        ValueError: whatever ``own`` raises.
    """
    names = world.led(lambda: [path.name for path in list_checkpoints(folder)])
    found = newest_whole([folder / "checkpoints" / name for name in names], lambda path: _checked(path, world))
    reader = _Reader(found)
    tensors = own(RunState(found.step, reader.outline(), found.numbers))
    load(_flat(tensors), storage_reader=reader)
    return RunState(found.step, tensors, found.numbers)


def _checked(path: Path, world: World) -> Inventory:
    """Check all files of a checkpoint together; what one process finds damaged is damaged for all."""
    found, damage = None, None
    try:
        found = inventory(path)
        for name in sorted(found.files)[world.rank :: world.size]:
            found.read(name)
    except DamagedCheckpointError as error:
        damage = str(error)
    damages = [told for told in world.everyone(damage) if told is not None]
    if damages:
        raise DamagedCheckpointError("; ".join(dict.fromkeys(damages)))
    assert found is not None
    return found


def _flat(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    return {_key(group, name): tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def _key(group: str, name: str) -> str:
    return f"{group}:{name}"  # a group is named like a file, and has no colon


def _parts(key: str) -> tuple[str, str]:
    group, _, name = key.partition(":")
    return group, name


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class _Writer(StorageWriter):
    """Writes what one process holds, one file for each part."""

    def __init__(self, draft: Path, rank: int, finish: Callable[[Mapping[str, JSON]], None]) -> None:
        self._draft, self._rank, self._finish = draft, rank, finish

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if not self._draft.is_dir():
            raise SaveError(
                f"there is no {self._draft} here: the run folder must lie on a file system that all machines share"
            )
        groups: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            groups.setdefault(_parts(item.index.fqn)[0], []).append(item)
        results: list[WriteResult] = []
        for group, items in groups.items():
            pieces = {_parts(item.index.fqn)[1]: (_tensor(planner, item), _place(item)) for item in items}
            entry = write_shard(self._draft, group, self._rank, pieces)
            results += [WriteResult(item.index, item.tensor_storage_size() or 0, entry) for item in items]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        entries: dict[str, JSON] = {}
        for result in (result for process in results for result in process):
            entries.update(result.storage_data)
        self._finish(entries)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False


def _tensor(planner: SavePlanner, item: WriteItem) -> Tensor:
    return cast(Tensor, planner.resolve_data(item))


def _place(item: WriteItem) -> Place:
    assert item.tensor_data is not None, "a state holds tensors only"
    return Place(tuple(item.tensor_data.size), tuple(item.tensor_data.chunk.offsets))


class _Reader(StorageReader):
    """Reads pieces of a checkpoint's tensors, which lie whole in one file or in pieces in several."""

    def __init__(self, found: Inventory) -> None:
        self._known: dict[str, TensorStorageMetadata] = {}
        self._files: dict[MetadataIndex, StoredTensors] = {}
        for group, names in found.parts.items():
            for name in names:
                self._add(group, found.path / name)

    def _add(self, group: str, path: Path) -> None:
        stored = StoredTensors(path)
        places = places_of(path, stored.metadata)
        for name in stored:
            key, size = _key(group, name), stored.shape(name)
            place = places.get(name, Place(size, (0,) * len(size)))
            known = self._known.setdefault(
                key,
                TensorStorageMetadata(TensorProperties(dtype=stored.dtype(name)), torch.Size(place.shape), []),
            )
            known.chunks.append(ChunkStorageMetadata(torch.Size(place.offsets), torch.Size(size)))
            self._files[MetadataIndex(key, place.offsets)] = stored

    def outline(self) -> dict[str, dict[str, Tensor]]:
        """Return tensors of the shapes and dtypes that there are, without values."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, known in self._known.items():
            group, name = _parts(key)
            tensor = torch.empty(known.size, dtype=known.properties.dtype, device="meta")
            groups.setdefault(group, {})[name] = tensor
        return groups

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(dict(self._known))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            name = _parts(item.storage_index.fqn)[1]
            piece = self._files[item.storage_index].piece(name, item.storage_offsets, item.lengths)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece)
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False
