"""Samples as PNG files that tell how they were made, so that they can be made again."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unfog.checkpoint import JSON
from unfog.images import read_png_text, tile, write_png
from unfog.pipeline import SampleRequest, Samples, SampleSettings
from unfog.recipe.plain import decode, encode
from unfog.recipe.run import Run, StoredWeights

KEYWORD = "unfog"
"""Keyword of the text in a PNG file."""

SHOWN = 256
"""Most samples that a grid shows."""


@dataclass(frozen=True)
class Record:
    """What a PNG file says of its making.

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


def save_images(
    samples: Samples, folder: Path, *, classes: tuple[str, ...] = (), origin: Mapping[str, JSON] | None = None
) -> list[Path]:
    """Write each sample as ``000000.png`` and so on, and a grid of them as ``grid.png``.

    Args:
        samples: pictures with 1 or 3 channels.
        folder: made if it is not there; files of the same names are replaced.
        classes: names of the classes.
        origin: which model made them, from ``origin_of``.

    Returns:
        The files, the grid last.
    """
    paths = []
    for k, image in enumerate(samples.x):
        path = folder / f"{samples.request.first + k:06d}.png"
        write_png(path, image, {KEYWORD: _text(samples, k, 1, classes, origin)})
        paths.append(path)
    shown = samples.x[:SHOWN]
    grid = folder / "grid.png"
    text = _text(samples, 0, len(samples.x), classes, origin)
    write_png(grid, tile(shown, columns_for(len(shown), classes, samples.request)), {KEYWORD: text})
    return [*paths, grid]


def columns_for(count: int, classes: tuple[str, ...], request: SampleRequest) -> int:
    """Return how many columns a grid has: one a class where samples go through all classes in turn."""
    in_turn = all(request.label_of(k) == k % len(classes) for k in range(request.count)) if classes else False
    return len(classes) if in_turn and len(classes) <= 20 else math.ceil(math.sqrt(count))


def read_record(path: Path) -> Record:
    """Return what a PNG file says of its making.

    Raises:
        ValueError: if it is no PNG file, or not one sample made by Unfog.
    """
    text = read_png_text(path).get(KEYWORD)
    if text is None:
        raise ValueError(f"{path} does not say how it was made; only samples written by Unfog do")
    try:
        told = json.loads(text)
        index, count, label, seed = (told[name] for name in ("index", "count", "label", "seed"))
        settings = decode(SampleSettings, told["settings"], "settings")
        origin = dict(told["origin"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} says how it was made in a way that cannot be read: {error}") from error
    if count != 1:
        raise ValueError(f"{path} is a grid of {count} samples; give the file of one sample")
    return Record(SampleRequest(1, label, seed, index, settings), origin)


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
    return json.dumps(told)
