"""Importing: from a published file to a run folder that samples at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.recipe.card import DataCard
from unfog.recipe.networks import build_network
from unfog.recipe.run import Run
from unfog.zoo.described import described, require_described
from unfog.zoo.keymap import KeyMap, KeyMapError, differences, from_published, published_shapes
from unfog.zoo.layouts import Network, kind_of
from unfog.zoo.published import MODELS, Published, named
from unfog.zoo.reading import Stored, read

DIFFUSERS = "diffusers"
"""The name that stands for whatever network a folder of diffusers describes."""


class Imported(NamedTuple):
    """What came of an import.

    Attributes:
        run: the new run.
        left_out: tensors of the file that were not used, and why.
    """

    run: Run
    left_out: Mapping[str, str]


def import_checkpoint(
    path: Path, name: str, out: Path, *, entry: str | None = None, data: str | None = None, command: str = ""
) -> Imported:
    """Make a run of a published checkpoint.

    Args:
        path: a file, or a folder as diffusers saves it.
        name: what it is: one of ``published.MODELS``; or ``diffusers``, which takes network and schedule from a folder.
        out: the run folder; it must not hold anything yet.
        entry: which of several sets of weights in one file, such as ``ema``; None where there is one.
        data: what to measure the model on, as for ``data.path`` of recipes; that of the model unless given.
        command: that does this, as it was typed.

    Raises:
        ValueError: if the file cannot be read, is damaged, or is not of that model; says what it seems to be.
        FileExistsError: if the folder holds anything.
    """
    model = None if name == DIFFUSERS else named(name)  # a wrong name is told before a large file is read
    stored = read(path, entry)
    if model is None:
        model = described(stored)
    elif stored.config is not None:
        require_described(stored, model, name)
    recipe = model.recipe(name if name != DIFFUSERS else stored.path.resolve().name)
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, path=data))
    network = _on_meta(model.network)
    keymap = _keymap(stored, model, name, network)
    try:
        weights = from_published(keymap, stored.tensors, network)
    except KeyMapError as error:
        raise ValueError(f"{stored.path} is not {name}: {error}. {_alike(stored.tensors, name)}") from error
    run = Run.adopt(out, recipe, _card(model), weights, command=command)
    return Imported(run, {theirs: item.unused for item in keymap if item.unused for theirs in item.theirs})


def expected_shapes(model: Published, layout: int = 0) -> dict[str, tuple[int, ...]]:
    """Return what a file of a published model holds, name by name.

    Args:
        model: of ``published``.
        layout: which of its layouts.
    """
    network = _on_meta(model.network)
    return published_shapes(model.layouts[layout].keymap(model.network, network, model.side), network)


@cache
def parameters_of(network: Network) -> int:
    """Return how many parameters a network has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(network).parameters())


def _on_meta(network: Network) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_network(network).state_dict()


def _keymap(stored: Stored, model: Published, name: str, network: Mapping[str, Tensor]) -> KeyMap:
    layout = next((layout for layout in model.layouts if layout.recognises(stored.tensors)), None)
    if layout is None:
        wanted = ", or ".join(layout.name for layout in model.layouts)
        raise ValueError(f"{stored.path} is not {name}, which is expected as {wanted}: {kind_of(stored.tensors)}")
    return layout.keymap(model.network, network, model.side)


def _alike(tensors: Mapping[str, Tensor], name: str) -> str:
    """Say which published models a file could be instead of the one of a name."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fitting = [other for other, make in MODELS.items() if other != name and _fits(make(), found)]
    return f"It fits {', '.join(fitting)}" if fitting else f"By its names {kind_of(tensors)}"


def _fits(model: Published, found: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether a file holds what a model's does."""
    for number, layout in enumerate(model.layouts):
        if layout.recognises(found):
            return not differences(expected_shapes(model, number), {k: tuple(v) for k, v in found.items()})
    return False


def _card(model: Published) -> DataCard:
    classes = tuple(map(str, range(model.network.num_classes or 0)))
    return DataCard(f"{model.data}, as published", "", 0, model.shape, classes, latent=model.latent)
