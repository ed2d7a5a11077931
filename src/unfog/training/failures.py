"""What is told and kept of steps that were not applied, because a loss or a gradient was not finite.

Each such step leaves ``failures/step-00000120.json`` in the run folder; ``diagnosis`` finds out what stands in it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from unfog.checkpoint import JSON, write_atomically

_NAME = re.compile(r"step-(\d{8,})\.json")
_NAMED = 4
"""Examples that a sentence names; the file has them all."""


class Cause(Enum):
    """Where something went bad first."""

    DATA = "data"
    WEIGHTS = "weights"
    FORWARD = "forward pass"
    LOSS = "loss"
    BACKWARD = "backward pass"
    NORM = "gradient norm"
    VANISHED = "not repeatable"
    UNKNOWN = "not examined"


@dataclass(frozen=True)
class Example:
    """An example that a failure was traced to.

    Attributes:
        id: which example of the data set.
        epoch: how often the set was passed through before.
        told: what the task says of it, such as ``t``, ``log_snr`` and ``loss``.
    """

    id: int
    epoch: int
    told: Mapping[str, float]

    def __str__(self) -> str:
        told = ", ".join(f"{_WORDS.get(name, name)} {value:.4g}" for name, value in self.told.items())
        return f"{self.id} ({told})" if told else str(self.id)


_WORDS = {"log_snr": "log-SNR"}


@dataclass(frozen=True)
class Failure:
    """Why a step was not applied to one player.

    Attributes:
        step: which one, counted from 1.
        player: whose loss or gradient it was.
        loss: of the whole batch.
        grad_norm: of the whole batch.
        cause: where it began.
        module: qualified name, within the task, of the first module whose output or gradient went bad; None if no
            module's did.
        detail: a clause that says what was found.
        examples: those whose input is not finite; else whose row of the first bad value; else whose own loss. None if
            it concerns no single ones.
    """

    step: int
    player: str
    loss: float
    grad_norm: float
    cause: Cause
    module: str | None
    detail: str
    examples: tuple[Example, ...] = ()

    def __str__(self) -> str:
        told = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g} of {self.player!r} in step {self.step}"
        return f"{told}: {self.detail}{self._whose()}"

    def _whose(self) -> str:
        if not self.examples:
            return ""
        named = ", ".join(str(example) for example in self.examples[:_NAMED])
        more = f" and {len(self.examples) - _NAMED} more" if len(self.examples) > _NAMED else ""
        return f"; example{'s' if len(self.examples) > 1 else ''} {named}{more}"

    def record(self) -> dict[str, JSON]:
        """Return the failure as JSON; numbers that are not finite are written as text."""
        examples: list[JSON] = [
            {"id": e.id, "epoch": e.epoch, **{name: _plain(value) for name, value in e.told.items()}}
            for e in self.examples
        ]
        return {
            "player": self.player,
            "loss": _plain(self.loss),
            "grad_norm": _plain(self.grad_norm),
            "cause": self.cause.value,
            "module": self.module,
            "detail": self.detail,
            "examples": examples,
        }


def foremost(failures: Sequence[Failure]) -> Failure:
    """Return what processes found together that went through their parts of one step, given in the order of the parts.

    It is the first thing that any of them found, with the examples of all.
    """
    silent = (Cause.VANISHED, Cause.UNKNOWN)
    found = next((failure for failure in failures if failure.cause not in silent), failures[0])
    examples = tuple(example for failure in failures for example in failure.examples)
    if found.cause is Cause.VANISHED and len(failures) > 1:
        detail = "gone through again, every number in each process was finite, but perhaps not their sum"
        return replace(found, detail=detail, examples=examples)
    return replace(found, examples=examples)


def _plain(value: float) -> JSON:
    return value if math.isfinite(value) else str(value)


def write_failures(folder: Path, failures: Sequence[Failure]) -> Path:
    """Store the failures of one step, at least one, in a run folder; return the file."""
    step = failures[0].step
    path = folder / "failures" / f"step-{step:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, JSON] = {"step": step, "failures": [failure.record() for failure in failures]}
    write_atomically(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return path


def discard_failures_after(folder: Path, step: int) -> None:
    """Remove what is told of later steps, which a resumed run takes again."""
    home = folder / "failures"
    for path in sorted(home.iterdir()) if home.is_dir() else []:
        found = _NAME.fullmatch(path.name)
        if found is not None and int(found[1]) > step:
            path.unlink()
