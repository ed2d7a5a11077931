"""The log of a run in TensorBoard and in Weights & Biases, for whoever wants to watch.

``log.jsonl`` is written always and is the truth; a tracker is a copy of it. A run that is resumed takes its steps again
with the same values, so a tracker that knows a step already needs nothing, and one that lacks a step finds it in the
log: nothing is doubled and nothing is missing.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from PIL import Image

from unfog.checkpoint import JSON, write_atomically
from unfog.recipe.load import dump
from unfog.recipe.plain import encode
from unfog.recipe.schema import Recipe, SaveConfig

EVENTS = "tensorboard"
"""Folder of the event files in a run folder."""

WANDB = "wandb-run.json"
"""Which run of Weights & Biases a run folder is."""

Record = Mapping[str, JSON]
"""A line of the log."""


class Tracker(ABC):
    """A place that the log is copied to."""

    @property
    @abstractmethod
    def begin(self) -> int:
        """The first step that it wants to be told of."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    @abstractmethod
    def show(self, step: int, picture: Path) -> None:
        """Take a PNG file of samples."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Write what is left; the run goes on no further now, because it failed or because it ends."""


def require_trackers(config: SaveConfig) -> None:
    """Refuse a configuration whose trackers need a library that is missing.

    Raises:
        ImportError: says which, and how to install it.
    """
    wanted = {"tensorboard": ("save.tensorboard", config.tensorboard), "wandb": ("save.wandb", config.wandb)}
    for library, (setting, value) in wanted.items():
        if value and find_spec(library) is None:
            raise ImportError(f"{setting} needs {library}: pip install 'unfog[log]', or leave the setting out")


def open_trackers(folder: Path, recipe: Recipe, log: Sequence[Record]) -> tuple[Tracker, ...]:
    """Open the trackers that a recipe asks for, and tell them what they lack of the log.

    Args:
        folder: the run folder.
        recipe: of the run.
        log: its lines so far; the run goes on after them.

    Raises:
        ImportError: if a library is missing.
        ValueError: if Weights & Biases refuses; says why.
    """
    require_trackers(recipe.save)
    last = int(str(log[-1]["step"])) if log else 0
    trackers: list[Tracker] = []
    if recipe.save.tensorboard:
        trackers.append(TensorBoard(folder, recipe, last))
    if recipe.save.wandb is not None:
        trackers.append(WeightsAndBiases(folder, recipe, recipe.save.wandb, last))
    for tracker in trackers:
        for record in log:
            tell(tracker, record)
    return tuple(trackers)


def tell(tracker: Tracker, record: Record) -> None:
    """Give a line of the log to a tracker, if it wants the step."""
    step = int(str(record["step"]))
    if step >= tracker.begin:
        tracker.write(step, dict(_numbers(record)))


def _numbers(record: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Flatten a line: ``parts/error``; null was a number that is not finite."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif value is None:
            yield prefix + name, math.nan
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, float(value)


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``.

    A resumed run begins a new file with the step from which on everything older is void. That is the last step of the
    log and not the one after it, since a kill may have come between the log and the event file.

    Args:
        folder: the run folder.
        recipe: shown as text.
        last: the last step of the log, 0 if there is none.
    """

    def __init__(self, folder: Path, recipe: Recipe, last: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        home = folder / EVENTS
        again = home.is_dir() and any(home.iterdir())
        self._begin = max(last, 1) if again else 0
        self._writer: Any = SummaryWriter(str(home), purge_step=self._begin if again else None)
        if not again:
            self._writer.add_text("recipe", f"```yaml\n{dump(recipe)}```", 0)
        self._writer.flush()

    @property
    def begin(self) -> int:
        return self._begin

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # As safe from a kill as the log is, and no slower than it: lines of the log are seconds apart.
        self._writer.flush()

    def show(self, step: int, picture: Path) -> None:
        with Image.open(picture) as image:
            self._writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, whose number is kept in ``RUN/wandb-run.json`` so that a resumed run continues it.

    Where and whether it is sent follows its own environment variables (``WANDB_MODE=offline``, ``WANDB_API_KEY``); its
    own files are in ``RUN/wandb``. Its server takes steps in rising order only, so a resumed run tells of those that
    the server has not. Offline nobody knows what it has, and the session begins with the last step of the log.

    Args:
        folder: the run folder.
        recipe: sent as the configuration.
        project: which the run belongs to.
        last: the last step of the log, 0 if there is none.

    Raises:
        ValueError: if the run cannot be opened; says why.
    """

    def __init__(self, folder: Path, recipe: Recipe, project: str, last: int) -> None:
        import wandb

        known = _read_number(folder / WANDB, project)
        number = known or token_hex(4)
        config = encode(recipe, Recipe)
        assert isinstance(config, dict)
        try:
            self._run = wandb.init(
                project=project,
                id=number,
                name=folder.resolve().name,
                dir=folder,
                resume="allow",
                config=config,
                # The command line's progress is not captured: the log has all of it.
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            hint = "" if os.environ.get("WANDB_MODE") else "; or set WANDB_MODE=offline and send the run later"
            raise ValueError(f"save.wandb={project}: Weights & Biases refuses the run: {error}{hint}") from error
        if not known:
            write_atomically(folder / WANDB, json.dumps({"project": project, "id": number}).encode())
        self._begin = last if known and self._run.offline else self._run.starting_step

    @property
    def begin(self) -> int:
        return self._begin

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, picture: Path) -> None:
        import wandb

        self._run.log({"samples": wandb.Image(str(picture))}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _read_number(path: Path, project: str) -> str | None:
    """Return the number of a run of a project, if the folder is one."""
    try:
        told = json.loads(path.read_bytes())
        return str(told["id"]) if told["project"] == project else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say which run it is: {error}; remove it to start another one") from error
