"""A run on disk: its recipe, its manifest, and what training left there.

::

    recipe.yaml      fully resolved
    manifest.json    versions, and which data it learned from
    checkpoints/     see ``checkpoint``
    log.jsonl        see ``training.log``

The manifest is written last: a folder with one holds a whole run.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from unfog.checkpoint import (
    JSON,
    RunState,
    read_checkpoint,
    require_same_tensors,
    write_atomically,
    write_checkpoint,
)
from unfog.data.dataset import DataInfo
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.machine import machine
from unfog.pipeline import Pipeline
from unfog.recipe.build import build_model, build_pipeline, fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.data import Data, open_data
from unfog.recipe.errors import RecipeError
from unfog.recipe.load import differences, dump, load, override
from unfog.recipe.plain import encode
from unfog.recipe.schema import Recipe
from unfog.recipe.trackers import require_trackers
from unfog.training.ema import Average, average_of
from unfog.training.log import read_log
from unfog.training.run import LOG
from unfog.training.settings import SETTINGS, require_same_settings

RECIPE, MANIFEST = "recipe.yaml", "manifest.json"
FORMAT = 1
CHANGEABLE = ("train.steps", "train.parallel", "train.micro_batch", "save.", "data.max_bad")
"""Settings that may change when a run is resumed, by the beginning of their path."""
_LASTING = (
    "network",
    "schedule",
    "parameterization",
    "times",
    "weight",
    "coupling",
    "variance",
    "energy",
    "augmentation",
    "condition",
    "train",
)
"""Parts of a recipe that decide what is learned; which data they are is told by a fingerprint."""


class RunError(ValueError):
    """A folder that is not a run, or not the run that is asked for."""


class Weights(Enum):
    """Which weights of a run are meant, besides a given average."""

    OF_RECIPE = "those that the recipe samples from"
    OF_LAST_STEP = "those of the last step"


@dataclass(frozen=True)
class Manifest:
    """Where a run comes from.

    Attributes:
        format: of the run folder.
        unfog: version of this library.
        torch: version of torch.
        python: version of Python.
        created: when, in ISO 8601, UTC.
        command: that started it, as it was typed; empty if none did.
        data: what it learned from.
        machine: on which it was started, by name; runs of older versions do not know theirs.
    """

    format: int
    unfog: str
    torch: str
    python: str
    created: str
    command: str
    data: DataCard
    machine: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredWeights:
    """Weights from a checkpoint.

    Attributes:
        group: their name in the checkpoint, such as ``ema-0.050``.
        step: of the checkpoint.
        sha256: of names, dtypes, shapes and values.
        tensors: by name.
    """

    group: str
    step: int
    sha256: str
    tensors: Mapping[str, Tensor]

    @staticmethod
    def of(group: str, step: int, tensors: Mapping[str, Tensor]) -> "StoredWeights":
        """Return weights with their SHA-256; the tensors lie on the CPU."""
        return StoredWeights(group, step, _sha256(tensors), tensors)


@dataclass(frozen=True)
class Run:
    """An opened run folder.

    Attributes:
        folder: where it lies.
        recipe: fully resolved.
        manifest: where the run comes from.
    """

    folder: Path
    recipe: Recipe
    manifest: Manifest

    @staticmethod
    def create(folder: Path, recipe: Recipe, info: DataInfo, *, command: str = "") -> "Run":
        """Start a run: write its recipe, fitted to the data, and its manifest.

        Args:
            folder: made if it is not there.
            recipe: the run.
            info: of the training data.
            command: that starts it, as it was typed.

        Raises:
            FileExistsError: if the folder holds a run, or anything else.
            ValueError: if the recipe does not fit the data.
            ImportError: if a library is missing that the recipe's trackers need.
        """
        require_trackers(recipe.save)
        card = DataCard.of(info)
        return _begin(folder, fit_to_data(recipe, card), card, command)

    @staticmethod
    def adopt(
        folder: Path, recipe: Recipe, card: DataCard, weights: Mapping[str, Tensor], *, command: str = ""
    ) -> "Run":
        """Make a run of weights that were trained elsewhere: it can be sampled from at once, but not resumed.

        Args:
            folder: made if it is not there.
            recipe: of a model that keeps no averages: the weights are those of its last step.
            card: of the data that it learned from, as far as they are known; see ``DataCard.fingerprint``.
            weights: ``state_dict`` of its network.
            command: that does this, as it was typed.

        Raises:
            FileExistsError: if the folder holds a run, or anything else.
            ValueError: if recipe, card and weights do not go together.
        """
        recipe = fit_to_data(recipe, card)
        require(recipe.average is None, f"a recipe with average=None, got {recipe.average}")
        with torch.device("meta"):
            require_same_tensors(build_model(recipe).state_dict(), weights, "model")
        state = RunState(0, {"model": weights}, {SETTINGS: lasting_settings(recipe)})
        return _begin(folder, recipe, card, command, state)

    @staticmethod
    def open(folder: Path) -> "Run":
        """Open a run folder.

        Raises:
            RunError: if it is none, or damaged; says which file and why.
        """
        if not folder.is_dir():
            raise RunError(f"there is no folder {folder}{_similar(folder)}")
        if not (folder / MANIFEST).is_file():
            raise RunError(f"{folder} is not a run: it has no {MANIFEST}{_similar(folder)}")
        try:
            manifest = TypeAdapter(Manifest).validate_json((folder / MANIFEST).read_bytes(), strict=True)
        except ValidationError as error:
            reason = error.errors()[0]
            where = ".".join(str(part) for part in reason["loc"])
            raise RunError(f"{folder / MANIFEST} is damaged: {where or 'the file'}: {reason['msg']}") from error
        if manifest.format != FORMAT:
            raise RunError(
                f"{folder} is a run of format {manifest.format}; this version of Unfog reads format {FORMAT}"
            )
        try:
            recipe = load((folder / RECIPE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecipeError) as error:
            raise RunError(f"{folder / RECIPE} is damaged: {error}") from error
        return Run(folder, recipe, manifest)

    def changed(self, assignments: Sequence[str]) -> "Run":
        """Return the run with another number of steps or another cadence of saving, to be resumed.

        Raises:
            RunError: if its weights were trained elsewhere, which has left nothing to go on from.
            RecipeError: if anything else would change.
            ImportError: if a library is missing that the trackers need.
        """
        if not self.manifest.data.fingerprint:
            raise RunError(f"{self.folder} was imported: it has weights, but no optimiser state to resume from")
        recipe = override(self.recipe, assignments)
        changes = differences(self.recipe, recipe)
        refused = [path for path in changes if not path.startswith(CHANGEABLE)]
        if refused:
            raise RecipeError(
                refused[0],
                f"a run that is resumed keeps its recipe, save train.steps, train.parallel, train.micro_batch, "
                f"data.max_bad and save.*; {', '.join(refused)} would change: start another run for that, or leave it "
                f"out",
            )
        require_trackers(recipe.save)
        return replace(self, recipe=recipe)

    def save_recipe(self) -> None:
        """Write the recipe, after ``changed``."""
        write_atomically(self.folder / RECIPE, dump(self.recipe).encode())

    def data(self) -> Data:
        """Open the data that the run learned from.

        Raises:
            RunError: if they are not the same any more, or are not of the kind that the model is for.
            ValueError: if they cannot be opened.
            ImportError: if a library that they need is missing.
        """
        if self.manifest.data.latent:
            raise RunError(f"{self.folder} diffuses codes of pictures, for which it has no autoencoder: it has no data")
        data = open_data(self.recipe.data, labelled=self.recipe.condition.classes)
        before, now = self.manifest.data, DataCard.of(data.train.info)
        if not before.fingerprint:
            self._require_like(now)
        elif before.fingerprint != now.fingerprint:
            raise RunError(
                f"the training data of {self.folder} have changed since the run began: {before.name} had "
                f"{before.count} examples with the fingerprint {before.fingerprint[:12]}, {now.name} has {now.count} "
                f"with {now.fingerprint[:12]}; bring the old data back, or start another run"
            )
        return data

    def _require_like(self, data: DataCard) -> None:
        """Refuse data that the model cannot have learned from, where it is not known from which it has."""
        own, classes = self.manifest.data, self.recipe.condition.classes
        if own.shape != data.shape or (classes and len(own.classes) != len(data.classes)):
            raise RunError(
                f"{self.folder} is a model of {own.shape} with {len(own.classes)} classes; {data.name} is {data.shape} "
                f"with {len(data.classes)}"
            )

    def weights(self, which: Weights | float | Average = Weights.OF_RECIPE) -> StoredWeights:
        """Read weights from the newest whole checkpoint.

        Args:
            which: the recipe's average, the last step's, or an average of ``recipe.train.ema``; a number is the length
                of an ``ema.Power``.

        Raises:
            ValueError: if the run keeps no such average.
            ValueError: if the checkpoint is of a run with another recipe.
            FileNotFoundError: if it has saved nothing yet.
            DamagedCheckpointError: if all checkpoints are damaged.
        """
        group = self._group(which)
        state = read_checkpoint(self.folder, [group])
        require_same_settings(state.numbers.get(SETTINGS), lasting_settings(self.recipe))
        return StoredWeights.of(group, state.step, state.tensors[group])

    def network(self, which: Weights | float | Average | StoredWeights = Weights.OF_RECIPE) -> nn.Module:
        """Return the network with weights from the newest whole checkpoint; raises as ``weights`` does."""
        weights = which if isinstance(which, StoredWeights) else self.weights(which)
        network = initial_network(self.recipe)
        require_same_tensors(network.state_dict(), weights.tensors, weights.group)
        network.load_state_dict(weights.tensors)
        return network.eval()

    def pipeline(self, which: Weights | float | Average | StoredWeights = Weights.OF_RECIPE) -> Pipeline:
        """Return what samples from the run; raises as ``weights`` does."""
        network, card = self.network(which).to(default_device()), self.manifest.data
        return build_pipeline(self.recipe, network, card)

    def log(self) -> list[dict[str, JSON]]:
        """Return the records of ``log.jsonl``; none before the first."""
        path = self.folder / LOG
        return read_log(path) if path.exists() else []

    def _group(self, which: Weights | float | Average) -> str:
        average = self.recipe.average if which is Weights.OF_RECIPE else which
        if average is None or isinstance(average, Weights):
            return "model"
        train = self.recipe.train
        kept = average_of(average) in train.averages
        require(kept, f"one of the averages that {self.folder} keeps, {list(train.ema)}, got {average}")
        return average_of(average).name


def _begin(folder: Path, recipe: Recipe, card: DataCard, command: str, state: RunState | None = None) -> Run:
    """Write a run folder, with its first checkpoint if there is one; the manifest last."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a run already" if (folder / MANIFEST).exists() else "is not an empty folder"
        raise FileExistsError(f"{folder} {what}")
    manifest = Manifest(
        format=FORMAT,
        unfog=version("unfog"),
        torch=torch.__version__,
        python=platform.python_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        data=card,
        machine=machine(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE, dump(recipe).encode())
    if state is not None:
        write_checkpoint(folder, state)
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    return Run(folder, recipe, manifest)


def lasting_settings(recipe: Recipe) -> dict[str, JSON]:
    """Return the settings that a run keeps, by which its checkpoints are told from those of others."""
    tree = encode(recipe, Recipe)
    assert isinstance(tree, dict)
    lasting = {name: tree[name] for name in _LASTING}
    train = lasting["train"]
    assert isinstance(train, dict)
    lasting["train"] = {name: value for name, value in train.items() if not f"train.{name}".startswith(CHANGEABLE)}
    return {**lasting, "data": {"flip": recipe.data.flip}}


def initial_network(recipe: Recipe) -> nn.Module:
    """Return the network as training begins with it, a learned schedule included: it depends on the recipe alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", recipe.train.seed))
        return build_model(recipe)


def default_device() -> torch.device:
    """Return where networks run: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _similar(folder: Path) -> str:
    """Name the runs that lie beside a folder that is none."""
    home = folder.parent
    runs = sorted(path.parent.name for path in home.glob(f"*/{MANIFEST}")) if home.is_dir() else []
    return f"; runs there: {', '.join(str(home / name) for name in runs[:8])}" if runs else ""
