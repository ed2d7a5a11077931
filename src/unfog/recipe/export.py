"""Samples as files that tell how they were made, so that they can be made again.

A sample of 1, 3 or 4 channels is a PNG file with the record of its making inside: grey, RGB, or RGB with alpha. PNG
has no room for other numbers of channels; such a sample is a NumPy file ``(C, H, W)`` uint8, as data sets of bands are,
with its record beside it as JSON.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.checkpoint import JSON
from unfog.data.dataset import ArrayDataset, Dataset
from unfog.data.image import decode as decode_image
from unfog.data.sources import DataSpec, open_dataset
from unfog.diffusion.checks import require
from unfog.images import PNG_CHANNELS, read_png_text, tile, write_array, write_png
from unfog.pipeline import Samples
from unfog.recipe.plain import decode, encode
from unfog.recipe.run import Run, StoredWeights
from unfog.sampling.request import Condition, SampleRequest, SampleSettings

KEYWORD = "unfog"
"""Keyword of the text in a PNG file."""

SHOWN = 256
"""Most pictures in a grid."""

GRID = "grid.png"
"""Name of the grid beside the samples."""


@dataclass(frozen=True)
class Record:
    """What the file of a sample says of its making.

    Attributes:
        request: of this one sample.
        origin: of the model, as ``origin_of`` gives it.
    """

    request: SampleRequest
    origin: Mapping[str, JSON]


def origin_of(run: Run, weights: StoredWeights) -> dict[str, JSON]:
    """Return which model it was: name of the run folder, recipe, step, weights and their SHA-256."""
    return {
        "run": run.folder.resolve().name,
        "recipe": run.recipe.name,
        "step": weights.step,
        "weights": weights.group,
        "sha256": weights.sha256,
    }


def file_names(channels: int, request: SampleRequest, *, latent: bool = False) -> list[str]:
    """Return the names of the files that samples are written to: ``000000.png`` and so on, or ``.npy``."""
    suffix = ".png" if channels in PNG_CHANNELS and not latent else ".npy"
    return [f"{request.first + k:06d}{suffix}" for k in range(request.count)]


def save_images(
    samples: Samples, folder: Path, *, classes: tuple[str, ...] = (), origin: Mapping[str, JSON] | None = None
) -> list[Path]:
    """Write each sample as ``000000.png`` and so on, and a grid of them as ``grid.png``.

    Samples of other than 1, 3 or 4 channels are written as ``000000.npy``, each with its record in ``000000.json``. So
    are latents, their numbers as they are and as float32, and without a grid.

    Args:
        samples: pictures or latents ``(N, C, H, W)``.
        folder: made if it is not there; files of the same names are replaced.
        classes: names of the classes.
        origin: which model made them, from ``origin_of``.

    Returns:
        The files of the samples, and the grid last.
    """
    if samples.latent:
        return _save_latents(samples, folder, classes, origin)
    paths = [folder / name for name in file_names(samples.x.shape[1], samples.request)]
    for k, (image, path) in enumerate(zip(samples.x, paths, strict=True)):
        record = _text(samples, k, 1, classes, origin)
        if path.suffix == ".png":
            write_png(path, image, {KEYWORD: record})
        else:
            write_array(path, image, record)
    grid = folder / GRID
    save_grid(samples, grid, classes=classes, origin=origin)
    return [*paths, grid]


def open_pictures(path: str | Path, spec: DataSpec) -> Dataset:
    """Open pictures to be scored: a folder that ``save_images`` wrote, or any data set.

    Of such a folder the grid is left out, and the classes are those that the samples were asked for.

    Args:
        path: of the folder, or a data set by any name that it has.
        spec: how they are read; its path and split are others' than theirs.

    Raises:
        ValueError: if there are no such pictures.
    """
    folder = Path(path)
    if not (folder / GRID).exists():
        return open_dataset(replace(spec, path=str(path), split="train"))
    files = sorted(file for file in folder.glob("*.png") if file.name != GRID)
    require(len(files) > 0, f"samples beside {folder / GRID}, got none")
    made = spec.transform
    decoded = [decode_image(file, made.size, made.channels, made.policy).pixels for file in files]
    try:
        labels = labels_of([read_record(file).request for file in files])
    except ValueError:  # not by Unfog
        labels = None
    return ArrayDataset(np.stack(decoded), labels, name=str(path))


def labels_of(requests: Sequence[SampleRequest]) -> NDArray[np.int64] | None:
    """Return the class that each sample of some requests was asked for, or None if one was asked for without."""
    labels = [request.label_of(k) for request in requests for k in range(request.count)]
    return None if None in labels else np.array(labels, dtype=np.int64)


def _save_latents(
    samples: Samples, folder: Path, classes: tuple[str, ...], origin: Mapping[str, JSON] | None
) -> list[Path]:
    paths = [folder / name for name in file_names(samples.x.shape[1], samples.request, latent=True)]
    for k, (latent, path) in enumerate(zip(samples.x, paths, strict=True)):
        write_array(path, latent, _text(samples, k, 1, classes, origin), exact=True)
    return paths


def save_grid(
    samples: Samples, path: Path, *, classes: tuple[str, ...] = (), origin: Mapping[str, JSON] | None = None
) -> None:
    """Write samples as one picture of at most 256.

    Samples of other than 1, 3 or 4 channels stand one a row, with a column for each channel, in grey.

    Args:
        samples: pictures ``(N, C, H, W)``.
        path: the file; one of that name is replaced.
        classes: names of the classes.
        origin: which model made them, from ``origin_of``.
    """
    count, channels = samples.x.shape[:2]
    if channels in PNG_CHANNELS:
        shown = samples.x[:SHOWN]
        columns = columns_for(len(shown), classes, samples.request)
    else:
        shown, columns = samples.x[: max(1, SHOWN // channels)].flatten(0, 1)[:, None], channels  # (N C, 1, H, W)
    write_png(path, tile(shown, columns), {KEYWORD: _text(samples, 0, count, classes, origin)})


def columns_for(count: int, classes: tuple[str, ...], request: SampleRequest) -> int:
    """Return how many columns a grid has: one a class where samples go through all classes in turn."""
    in_turn = all(request.label_of(k) == k % len(classes) for k in range(request.count)) if classes else False
    return len(classes) if in_turn and len(classes) <= 20 else math.ceil(math.sqrt(count))


def read_record(path: Path) -> Record:
    """Return what the file of a sample says of its making.

    Args:
        path: a PNG file, a NumPy file with its record beside it, or that record.

    Raises:
        ValueError: if it is none of them, or not one sample made by Unfog.
    """
    text = _stored_text(path)
    try:
        told = json.loads(text)
        index, count, label, seed = (told[name] for name in ("index", "count", "label", "seed"))
        settings = decode(SampleSettings, told["settings"], "settings")
        origin = dict(told["origin"])
        negative = told.get("negative")
        conditions = {
            "attributes": _tuple(told.get("attributes")),
            "negative": None if negative is None else _condition(negative),
            "also": tuple(_condition(other) for other in told.get("also", ())),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} says how it was made in a way that cannot be read: {error}") from error
    if count != 1:
        raise ValueError(f"{path} is a grid of {count} samples; give the file of one sample")
    return Record(SampleRequest(1, label, seed, index, settings, **conditions), origin)


def _condition(told: Mapping[str, Any]) -> Condition:
    region = _tuple(told.get("region"))
    return Condition(told.get("label"), _tuple(told.get("attributes")), told.get("scale", 1.0), region)


def _tuple(items: Sequence[Any] | None) -> Any:
    return None if items is None else tuple(items)


def _told(condition: Condition, k: int) -> dict[str, JSON]:
    """Return what a condition says of sample k."""
    attributes = condition.attributes_of(k)
    told: dict[str, JSON] = {
        "label": condition.label_of(k),
        "attributes": None if attributes is None else list(attributes),
        "scale": condition.scale,
        "region": None if condition.region is None else list(condition.region),
    }
    return {name: value for name, value in told.items() if value is not None}


def _stored_text(path: Path) -> str:
    if path.suffix in (".npy", ".json"):
        record = path.with_suffix(".json")
        path.open("rb").close()  # says so where there is no such file
        if not record.exists():
            raise ValueError(f"{path} does not say how it was made: its record {record.name} is not beside it")
        return record.read_text(encoding="utf-8")
    text = read_png_text(path).get(KEYWORD)
    if text is None:
        raise ValueError(f"{path} does not say how it was made; only samples written by Unfog do")
    return text


def _text(samples: Samples, k: int, count: int, classes: tuple[str, ...], origin: Mapping[str, JSON] | None) -> str:
    request = samples.request
    labels = [request.label_of(i) for i in range(k, k + count)]
    label: Any = labels[0] if len(set(labels)) == 1 else labels
    told: dict[str, JSON] = {
        "unfog": version("unfog"),
        "torch": torch.__version__,
        "origin": dict(origin or {}),
        "seed": request.seed,
        "index": request.first + k,
        "count": count,
        "label": label,
        "settings": encode(samples.settings, SampleSettings),
    }
    if isinstance(label, int) and classes:
        told["class"] = classes[label]
    rows = [request.condition.attributes_of(i) for i in range(k, k + count)]
    if rows[0] is not None:
        every: list[JSON] = [list(row or ()) for row in rows]
        told["attributes"] = every[0] if len(set(rows)) == 1 else every
    if request.negative is not None:
        told["negative"] = _told(request.negative, k)
    if request.also:
        told["also"] = [_told(other, k) for other in request.also]
    return json.dumps(told)
