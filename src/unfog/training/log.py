"""The log of a run: ``log.jsonl``, one JSON object a line, only ever appended to.

Each line has a ``step``. Opening the log of a run that is resumed drops the lines after the resumed step, so the log
of a run that was killed and resumed equals that of an uninterrupted one, timing fields apart.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from unfog.checkpoint import JSON, SaveError, write_atomically

TIMING = frozenset({"seconds", "waited"})
"""Fields that differ between two runs of the same thing."""


class LogWriter:
    """A log that is appended to while its context lasts.

    Args:
        path: the file; made if it is not there.
        after_step: lines of later steps are dropped.
    """

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        if path.exists():
            kept = [line for line in read_log(path) if _step(line) <= after_step]
            write_atomically(path, "".join(_text(line) for line in kept).encode())
        self._path = path

    def write(self, record: Mapping[str, JSON]) -> None:
        """Append a line, whole once this returns even if the process is killed afterwards.

        Numbers that are not finite become null: JSON has no others.

        Raises:
            SaveError: if it cannot be written; whatever there is of the line is dropped when the log is opened again.
        """
        try:
            self._file.write(_text(record))
            self._file.flush()
        except OSError as error:
            raise SaveError.of(self._path, error) from error

    def sync(self) -> None:
        """Force what was written to the disk.

        Raises:
            SaveError: if it cannot be.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SaveError.of(self._path, error) from error

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:  # a line that could not be written is tried once more, and what stopped it is told already
            if error is None:
                raise


def read_log(path: Path) -> list[dict[str, JSON]]:
    """Read the lines of a log; a last line that was cut short by a kill is left out.

    Raises:
        ValueError: if any other line is not a JSON object with a ``step``.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            record = json.loads(line)
            _step(record)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object with a step, got {line[:80]!r}") from error
        records.append(record)
    return records


def _step(record: Mapping[str, JSON]) -> int:
    step = record["step"]
    if not isinstance(step, int):
        raise TypeError("a step is an integer")
    return step


def _text(record: Mapping[str, JSON]) -> str:
    return json.dumps(_finite(dict(record)), allow_nan=False) + "\n"


def _finite(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
