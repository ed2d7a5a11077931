"""Files that are written whole or not at all, and read back only if they are what was written: safetensors and JSON."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


UNFINISHED = ".unfinished-"
"""How the names of things begin that are not whole yet."""

PLACES = "places"
"""Entry of a file's metadata that says where its pieces of tensors belong."""


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not what was written."""


class SaveError(OSError):
    """Something of a run could not be written; what was saved before is as it was."""

    @staticmethod
    def of(path: Path, error: OSError) -> "SaveError":
        """Return the error of writing a file, with what to do about it."""
        if isinstance(error, SaveError):
            return error
        told = f"{path} could not be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            told += f" ({_free(path.parent)}); make room there"
        return SaveError(f"{told}. What was saved before is whole.")


def _free(folder: Path) -> str:
    """Tell how much room there is; a quota or a limit of the process may allow less."""
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as the content of a safetensors file."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save_bytes(contiguous, metadata=None if metadata is None else dict(metadata))


def write_file(path: Path, content: bytes) -> dict[str, JSON]:
    """Write a file, force it to the disk, read it back, and return its entry in the manifest."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SaveError.of(path, error) from error
    wanted, got = hashlib.sha256(content).hexdigest(), hashlib.sha256(path.read_bytes()).hexdigest()
    if wanted != got:
        raise SaveError(f"{path} reads back differently from what was written; the disk may be failing")
    return {"bytes": len(content), "sha256": wanted}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before.

    Raises:
        SaveError: if it cannot be written.
    """
    draft = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        write_file(draft, content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SaveError.of(path, error) from error
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


def read_file(file: Path) -> bytes:
    """Return the content of a file; raises ``DamagedCheckpointError`` if it is not there or cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} is missing") from error
    except OSError as error:  # a failing disk answers with input/output errors
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error


def read_checked(file: Path, entry: JSON) -> bytes:
    """Return the content of a file if it is what was written.

    Args:
        file: what to read.
        entry: what ``write_file`` returned.

    Raises:
        DamagedCheckpointError: says what differs.
    """
    content = read_file(file)
    if not isinstance(entry, dict) or len(content) != entry.get("bytes"):
        size = entry.get("bytes") if isinstance(entry, dict) else entry
        raise DamagedCheckpointError(f"{file} has {len(content)} bytes; the manifest says {size}")
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise DamagedCheckpointError(f"{file} does not have the SHA-256 of the manifest")
    return content


def json_object(file: Path, content: bytes) -> dict[str, JSON]:
    """Return a JSON object; raises ``DamagedCheckpointError`` if the content of the file is none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DamagedCheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{file} is not a JSON object")
    return value


class Place(NamedTuple):
    """Where a piece of a tensor belongs.

    Attributes:
        shape: of the whole tensor.
        offsets: of the piece's first element, for each axis.
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialized(tensors, metadata))


def load_tensors(file: Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file; ``DamagedCheckpointError`` if it is none."""
    try:
        return load_bytes(content)
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{file} is not a safetensors file: {error}") from error


def places_in(file: Path, content: bytes) -> dict[str, Place]:
    """Read from a safetensors file, which begins with the length of its header, where its pieces belong."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return places_of(file, header.get("__metadata__", {}))


def places_of(file: Path, metadata: Mapping[str, str]) -> dict[str, Place]:
    """Return where the pieces in a file belong, by name; of a file with whole tensors, nothing.

    Args:
        file: for the message.
        metadata: of the file.

    Raises:
        DamagedCheckpointError: if the metadata say something else.
    """
    if PLACES not in metadata:
        return {}
    try:
        told = json.loads(metadata[PLACES])
        return {key: Place(tuple(place["shape"]), tuple(place["offsets"])) for key, place in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{file} does not say where its pieces belong: {error}") from error


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

    def piece(self, name: str, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Return a part of a tensor, reading no more than that."""
        if not lengths:
            return self[name]
        cut = tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))
        return cast(Tensor, self._file.get_slice(name)[cut])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, reading next to nothing of it."""
        shape = self.shape(name)
        return self.piece(name, (0,) * len(shape), (0,) * len(shape)).dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
