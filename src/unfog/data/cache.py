"""Decoding once: a source becomes one uint8 array on disk, which later runs map into memory.

The name of a folder of rows (see ``rows``) is a hash of the source's files and of everything done to them, so a changed
file, another size or another selection leads to another folder, into which the rows that stay the same are copied. It
is written under a temporary name and renamed when whole. Of several processes that want the same rows one decodes,
and the others wait for it; what a killed process left behind is removed by the next one that decodes anything.

The place is ``$UNFOG_CACHE``, or ``~/.cache/unfog``: rows are in its folder ``data``, locks in ``locks``.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from unfog.data import rows
from unfog.data.rows import Decoded, Transform
from unfog.data.source import Source

# Up to here files are told apart by their content: a file that is rewritten within one tick of the clock, with the
# same number of bytes, keeps its size and time. Beyond, reading everything at each start would be felt.
_HASHED_BYTES = 16 * 2**20


def cache_folder() -> Path:
    """Return the folder of Unfog's cache: ``$UNFOG_CACHE`` or ``~/.cache/unfog``."""
    return Path(os.environ.get("UNFOG_CACHE") or "~/.cache/unfog").expanduser()


def materialize(source: Source, ids: NDArray[np.int64], transform: Transform) -> Decoded:
    """Decode some pictures of a source, or find them decoded.

    Args:
        source: where they come from.
        ids: ascending numbers of the pictures wanted.
        transform: what to make of them.

    Raises:
        ValueError: if no picture can be read, or their sizes differ and no size is given, or the cache is unusable.
    """
    if not len(ids):
        raise ValueError(f"{source.name} holds no pictures")
    if source.files is None:
        return rows.in_memory(source, ids, transform)
    by_content = _total_bytes(source.files) <= _HASHED_BYTES
    place = cache_folder() / "data" / _name(source, ids, transform, by_content)
    if not place.is_dir():
        with _alone(place):
            if not place.is_dir():  # nobody else has decoded it while this process waited
                _publish(source, ids, transform, by_content, place)
    return rows.read(place)


def _total_bytes(files: tuple[Path, ...]) -> int:
    total = 0
    for file in files:
        with suppress(OSError):  # decoding will refuse it, by its name
            total += file.stat().st_size
    return total


def _name(source: Source, ids: NDArray[np.int64], transform: Transform, by_content: bool) -> str:
    """Return a hash of all that decides the decoded array."""
    files = source.files or ()
    refused = [(number, *source.refused[number]) for number in sorted(source.refused)]
    head = [rows.VERSION, PIL.__version__, source.variant, asdict(transform), refused, len(files)]
    digest = hashlib.sha256(json.dumps(head).encode() + b"\0" + ids.astype("<i8").tobytes())
    for file in files:
        # The path matters even where the content is hashed, for the report names the pictures by it.
        digest.update(os.fsencode(file.absolute()) + b"\0")
        digest.update(_state(file, by_content))
    return digest.hexdigest()[:32]


def _state(file: Path, by_content: bool) -> bytes:
    """Return what tells that a file has changed; one that cannot be read is a picture that decoding will refuse."""
    try:
        if by_content:
            return hashlib.sha256(file.read_bytes()).digest()
        stat = file.stat()
    except OSError as error:
        return type(error).__name__.encode()
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()


def _publish(source: Source, ids: NDArray[np.int64], transform: Transform, by_content: bool, place: Path) -> None:
    """Decode into a temporary folder and rename it when it is whole."""
    draft = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        making = rows.settle(source, ids, transform, by_content)
        rows.write(source, ids, making, draft, place.parent)
        try:
            draft.rename(place)
        except OSError:
            # On a file system without locks another process was faster; what it wrote is the same.
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other processes from decoding the same rows, and remove what killed ones left behind."""
    locks = place.parent.parent / "locks"
    lock = FileLock(locks / f"{place.name}.lock")
    try:
        for folder in (place.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except NotImplementedError:
        pass  # this file system has no locks: processes may decode the same, and the first to end is used
    except OSError as error:
        raise ValueError(f"{place.parent} cannot be written ({error}): set UNFOG_CACHE to another folder") from error
    try:
        if lock.is_locked:
            _sweep(place, locks)
        yield
    finally:
        lock.release()


def _sweep(place: Path, locks: Path) -> None:
    """Remove unfinished folders that no living process is writing: whoever writes one holds its lock."""
    for draft in place.parent.glob(".*"):
        name = draft.name.split(".")[1]
        if name == place.name:
            shutil.rmtree(draft, ignore_errors=True)
            continue
        try:
            with FileLock(locks / f"{name}.lock", timeout=0):
                shutil.rmtree(draft, ignore_errors=True)
        except Timeout:
            continue
