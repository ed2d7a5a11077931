"""Reading published files: safetensors, PyTorch's own with weights only, and folders as diffusers saves them.

Nothing that is read can run code. A file that needs unpickling is refused, with how to convert it elsewhere.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.files import DamagedCheckpointError, StoredTensors

_PYTORCH = (".pt", ".pth", ".bin", ".ckpt")
_WEIGHTS = ("diffusion_pytorch_model", "model")
_PARTS = ("unet", "transformer")
"""Folders of a diffusers pipeline that hold the network."""
_AUTOENCODERS = ("vae", "vqvae", "movq")


class UnreadableError(ValueError):
    """A file that holds no weights that can be read here."""


@dataclass(frozen=True)
class Stored:
    """What a published file or folder holds.

    Attributes:
        path: of the file, or of the folder that the network lies in.
        tensors: by the names that they have there.
        config: of a diffusers folder: what ``config.json`` says; None for a file.
        scheduler: of a diffusers folder: what ``scheduler_config.json`` says; None where there is none.
        autoencoder: whether a diffusers folder has one, so that codes of pictures are diffused.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None
    autoencoder: bool = False


def read(path: Path, entry: str | None = None) -> Stored:
    """Read a published file, or a folder as diffusers saves networks and pipelines.

    Args:
        path: a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, or a folder.
        entry: which of several sets of weights in one file, such as ``ema``; None where there is one.

    Raises:
        UnreadableError: if it is none of these, or damaged, or cannot be read without running code.
    """
    if path.is_dir():
        if entry is not None:
            raise UnreadableError(f"{path} is a folder, which has no entries such as {entry!r}; leave the entry out")
        return _folder(path)
    if not path.is_file():
        raise UnreadableError(f"there is no file or folder {path}")
    return Stored(path, _file(path, entry))


def _folder(folder: Path) -> Stored:
    inner = next((folder / part for part in _PARTS if (folder / part / "config.json").is_file()), folder)
    if not (inner / "config.json").is_file():
        raise UnreadableError(
            f"{folder} is not a folder of diffusers: it has no config.json, nor has a folder unet or transformer in "
            f"it; give the file of the weights itself if it is of another kind"
        )
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    scheduler = next((_json(place) for place in places if place.is_file()), None)
    autoencoder = any((folder / part).is_dir() for part in _AUTOENCODERS)
    return Stored(inner, _weights_in(inner), _json(inner / "config.json"), scheduler, autoencoder)


def _weights_in(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder: one file, or the several that an index names; safetensors go first."""
    for suffix in (".safetensors", ".bin"):
        for stem in _WEIGHTS:
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _sharded(folder, index)
            if (folder / f"{stem}{suffix}").is_file():
                return _file(folder / f"{stem}{suffix}", None)
    raise UnreadableError(f"{folder} holds no weights: expected {_WEIGHTS[0]}.safetensors or {_WEIGHTS[0]}.bin")


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UnreadableError(f"{index} does not say which file each tensor lies in (weight_map)")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise UnreadableError(f"{index} names the file {name!r}, which is not in {folder}")
        found = _file(folder / name, None)
        strays = [key for key in found if places.get(key) != name]
        if strays:
            raise UnreadableError(f"{folder / name} holds {strays[0]}, which {index.name} places elsewhere")
        tensors.update(found)
    lost = [key for key in places if key not in tensors]
    if lost:
        raise UnreadableError(f"{folder} lacks {lost[0]}, which {index.name} places in {places[lost[0]]}")
    return tensors


def _file(path: Path, entry: str | None) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        if entry is not None:
            raise UnreadableError(f"{path} is a safetensors file, which has no entries; leave {entry!r} out")
        try:
            return dict(StoredTensors(path))
        except DamagedCheckpointError as error:
            raise UnreadableError(str(error)) from error
    if path.suffix in _PYTORCH:
        return _chosen(path, _unpacked(path), entry)
    if path.suffix == ".pkl":
        raise UnreadableError(_pickled(path, "a .pkl file holds Python objects"))
    raise UnreadableError(f"{path}: expected a .safetensors file, {', '.join(_PYTORCH)}, or a folder of diffusers")


def _unpacked(path: Path) -> object:
    """Return what ``torch.save`` has written, if it is made of tensors, numbers, texts, lists and dictionaries."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files raise whatever the parser trips over: KeyError, EOFError, RuntimeError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise UnreadableError(_pickled(path, reason)) from error
        raise UnreadableError(f"{path} is damaged, or no file of PyTorch: {reason}") from error


def _pickled(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be read without running code that it contains, which Unfog never does ({reason}); where you "
        "trust it, load it with the program that it comes from, and save the network's weights by "
        "safetensors.torch.save_file({k: v.contiguous() for k, v in network.state_dict().items()}, 'name.safetensors')"
    )


def _chosen(path: Path, content: object, entry: str | None) -> dict[str, Tensor]:
    """Return the weights in a file, which may have several sets of them, each under a name of its own."""
    sets = _sets(content)
    if entry is not None:
        if entry not in sets:
            raise UnreadableError(f"{path} has no weights named {entry!r}; it has {_names(sets)}")
        return sets[entry]
    if len(sets) != 1:
        raise UnreadableError(f"{path} holds {_names(sets)}; say which with the entry")
    return next(iter(sets.values()))


def _names(sets: Mapping[str, object]) -> str:
    return f"the sets of weights {', '.join(sorted(sets))}" if sets else "no weights"


def _sets(content: object) -> dict[str, dict[str, Tensor]]:
    """Return the dictionaries of tensors in a file, by name; the name of the whole file's is empty."""
    if _is_weights(content):
        return {"": content}  # type: ignore[dict-item]
    inner = content.items() if isinstance(content, dict) else ()
    return {str(name): value for name, value in inner if _is_weights(value)}


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"{path} is not a JSON object")
    return content
