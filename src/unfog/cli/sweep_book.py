"""``sweep.json``: what a sweep has found so far, so that nothing is measured twice."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from unfog.checkpoint import JSON, write_atomically
from unfog.cli.errors import CommandError
from unfog.data.cache import cache_folder
from unfog.diffusion.checks import require
from unfog.evaluation.sweep import Point
from unfog.evaluation.tables import counted
from unfog.machine import machine
from unfog.sampling.request import SampleSettings

NUMBERS = "sweep.json"
FORMAT = 1


class Setting(NamedTuple):
    """A setting of the sweep.

    Attributes:
        settings: how to sample.
        names: of the sampler and of the grid, for people.
        written: as it stands in ``sweep.json``, by which it is found again.
    """

    settings: SampleSettings
    names: tuple[str, str]
    written: Mapping[str, JSON]

    def __str__(self) -> str:
        settings = self.settings
        return f"{self.names[0]} on {self.names[1]}, {counted(settings.steps, 'step')}, guidance {settings.guidance:g}"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Keep other sweeps from a file while the context lasts: each writes all that it knows.

    Raises:
        CommandError: if another one is at it.
    """
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"sweep-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CommandError(
            f"another sweep is writing {path}: wait for it, or give another folder with --out"
        ) from error
    try:
        yield path
    finally:
        lock.release()


@dataclass
class Book:
    """``sweep.json``: what is known, by a fingerprint of the weights, the data and how much is measured.

    Attributes:
        path: the file.
        sweeps: everything in it.
        fingerprint: which part of it is meant.
    """

    path: Path
    sweeps: dict[str, Any]
    fingerprint: str

    @staticmethod
    def open(path: Path, about: Mapping[str, JSON]) -> "Book":
        """Read the book, if there is one, and find or begin the part that is about something.

        Raises:
            ValueError: if the file is not what this command writes.
        """
        fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        sweeps: dict[str, Any] = {}
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                form, sweeps = stored["format"], stored["sweeps"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} was not written by unfog sweep ({error}); move it away") from error
            require(form == FORMAT, f"format {FORMAT} in {path}, got {form}; move it away")
        sweeps.setdefault(fingerprint, {**about, "machine": machine(), "accurate": {}, "floor": None, "settings": []})
        return Book(path, sweeps, fingerprint)

    @property
    def here(self) -> dict[str, Any]:
        """The part that is meant."""
        found: dict[str, Any] = self.sweeps[self.fingerprint]
        return found

    def find(self, setting: Setting) -> Point | None:
        """Return what is known of a setting."""
        for entry in self.here["settings"]:
            if entry["setting"] == setting.written:
                return Point.from_dict(entry["found"])
        return None

    def add(self, setting: Setting, point: Point) -> None:
        """Write down what was found, on disk too."""
        self.here["settings"].append({"setting": setting.written, "found": point.to_dict()})
        self.save()

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, "sweeps": self.sweeps}, indent=1)
        write_atomically(self.path, content.encode())
