"""Decoding once: a source becomes one uint8 array on disk, which later runs map into memory.

A folder of the cache holds ``pixels.npy`` (N, C, H, W), ``kept.npy`` (which pictures of the source these are) and
``report.json``. Its name is a hash of the source's files and of everything done to them, so a changed file, another
size or another selection leads to another folder. It is written under a temporary name and renamed when whole, so
of several processes that decode at the same time one wins and all see a complete folder.

The place is ``$UNFOG_CACHE``, or ``~/.cache/unfog``, and in it the folder ``data``.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from unfog.data.dataset import Report, Skipped, pixel_digest
from unfog.data.image import Look, Size, decode, look
from unfog.data.source import Encoded, Source

_VERSION = 1
_CHUNK = 256
# Up to here files are told apart by their content: a file that is rewritten within one tick of the clock, with the
# same number of bytes, keeps its size and time. Beyond, reading everything at each start would be felt.
_HASHED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Transform:
    """What is made of each picture.

    Attributes:
        size: height and width; None keeps the size of the pictures, which must then all be alike.
        channels: 1 or 3; None makes it 1 if every picture is stored grey, else 3.
    """

    size: Size | None = None
    channels: int | None = None


class Decoded(NamedTuple):
    """Decoded pictures.

    Attributes:
        pixels: ``(N, C, H, W)`` uint8, in memory or mapped read-only.
        kept: ``(N,)`` int64, which pictures of the source they are.
        digest: ``pixel_digest(pixels)``.
        report: which pictures were left out.
    """

    pixels: NDArray[np.uint8]
    kept: NDArray[np.int64]
    digest: str
    report: Report


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
    if source.files is None:
        return _in_memory(source, ids, transform)
    place = cache_folder() / "data" / _key(source, ids, transform)
    if not place.is_dir():
        _publish(source, ids, transform, place)
    return _load(place)


def _in_memory(source: Source, ids: NDArray[np.int64], transform: Transform) -> Decoded:
    chunks = list(_decoded(source, ids, transform))
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    kept = np.concatenate([chunk.kept for chunk in chunks])
    report = Report(len(ids), tuple(chain.from_iterable(chunk.skipped for chunk in chunks)))
    _refuse_nothing(source, report, len(kept))
    return Decoded(pixels, kept, pixel_digest(pixels), report)


def _key(source: Source, ids: NDArray[np.int64], transform: Transform) -> str:
    """Return a hash of all that decides the decoded array."""
    files = source.files or ()
    head = [_VERSION, PIL.__version__, source.variant, transform.size, transform.channels, len(files)]
    digest = hashlib.sha256(json.dumps(head).encode() + b"\0" + ids.astype("<i8").tobytes())
    stats = [file.stat() for file in files]
    small = sum(stat.st_size for stat in stats) <= _HASHED_BYTES
    for file, stat in zip(files, stats, strict=True):
        # The path matters even where the content is hashed, for the report names the pictures by it.
        digest.update(os.fsencode(file.resolve()) + b"\0")
        if small:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _load(place: Path) -> Decoded:
    try:
        pixels = np.load(place / "pixels.npy", mmap_mode="r", allow_pickle=False)
        kept = np.load(place / "kept.npy", allow_pickle=False)
        written = json.loads((place / "report.json").read_text())
        report = Report(written["found"], tuple(Skipped(name, reason) for name, reason in written["skipped"]))
        digest = str(written["digest"])
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"the cached pictures in {place} are damaged: delete this folder ({error})") from error
    return Decoded(np.asarray(pixels), kept, digest, report)


def _publish(source: Source, ids: NDArray[np.int64], transform: Transform, place: Path) -> None:
    """Decode into a temporary folder and rename it when it is whole."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.mkdir()
    except OSError as error:
        raise ValueError(f"{place.parent} cannot be written ({error}): set UNFOG_CACHE to another folder") from error
    try:
        _write(source, ids, transform, draft)
        try:
            draft.rename(place)
        except OSError:
            # Another process was faster; what it wrote is the same.
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(source: Source, ids: NDArray[np.int64], transform: Transform, folder: Path) -> None:
    kept: list[NDArray[np.int64]] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    shape: tuple[int, ...] = ()
    start = 0
    # Plain writes, for a full disk kills a process that writes to mapped memory.
    with (folder / "pixels.npy").open("wb") as file:
        for chunk in _decoded(source, ids, transform):
            if not shape:
                shape = chunk.pixels.shape[1:]
                _refuse_too_large(folder, len(ids) * int(np.prod(shape)))
                start = _write_header(file, (len(ids), *shape))
            file.write(chunk.pixels.data)
            digest.update(chunk.pixels.data)
            kept.append(chunk.kept)
            skipped.extend(chunk.skipped)
        file.flush()
        os.fsync(file.fileno())
    report = Report(len(ids), tuple(skipped))
    numbers = np.concatenate(kept)
    _refuse_nothing(source, report, len(numbers))
    if skipped:
        _correct_header(folder, start, (len(numbers), *shape))
    np.save(folder / "kept.npy", numbers)
    written = {"found": report.found, "skipped": report.skipped, "digest": digest.hexdigest(), "source": source.name}
    (folder / "report.json").write_text(json.dumps(written))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _correct_header(folder: Path, start: int, shape: tuple[int, ...]) -> None:
    """Write the pixels again under a header for fewer pictures: a header of another length would not fit in place."""
    pixels = np.memmap(folder / "pixels.npy", dtype=np.uint8, mode="r", offset=start, shape=shape)
    np.save(folder / "fewer.npy", pixels)
    del pixels  # an open map keeps some systems from renaming
    (folder / "fewer.npy").replace(folder / "pixels.npy")


def _refuse_too_large(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the decoded pictures need {needed / 2**30:.1f} GiB in {folder.parent}, where {free / 2**30:.1f} GiB "
            "are free: set UNFOG_CACHE to a folder on a larger disk, or give a smaller size or a limit"
        )


def _refuse_nothing(source: Source, report: Report, kept: int) -> None:
    if not kept:
        raise ValueError(f"no picture of {source.name} could be read: {report}")


class _Chunk(NamedTuple):
    pixels: NDArray[np.uint8]
    kept: NDArray[np.int64]
    skipped: tuple[Skipped, ...]


def _decoded(source: Source, ids: NDArray[np.int64], transform: Transform) -> Iterator[_Chunk]:
    """Decode pictures in threads, a chunk in memory at a time, in order."""
    if not len(ids):
        raise ValueError(f"{source.name} holds no pictures")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        size, channels = _resolved(source, ids, transform, pool)
        numbers = iter(ids)
        for chunk in _chunks(source.stream(ids)):
            results = list(pool.map(lambda item: _decode_one(item, size, channels), chunk))
            kept, pixels, skipped = [], [np.empty((0, channels, *size), dtype=np.uint8)], []
            for number, result in zip(islice(numbers, len(results)), results, strict=True):
                if isinstance(result, Skipped):
                    skipped.append(result)
                else:
                    kept.append(number)
                    pixels.append(result[None])
            yield _Chunk(np.concatenate(pixels), np.array(kept, dtype=np.int64), tuple(skipped))


def _chunks(items: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _decode_one(item: Encoded, size: Size, channels: int) -> NDArray[np.uint8] | Skipped:
    try:
        return decode(item.content, size, channels)
    except MemoryError:
        raise
    # On a broken file Pillow raises OSError, SyntaxError, ValueError, struct.error, and what else its readers meet.
    except Exception as error:
        return Skipped(item.name, f"{type(error).__name__}: {error}")


def _resolved(
    source: Source, ids: NDArray[np.int64], transform: Transform, pool: ThreadPoolExecutor
) -> tuple[Size, int]:
    """Find size and channels out by looking at every picture, where they are not given."""
    if transform.size is not None and transform.channels is not None:
        return transform.size, transform.channels
    sizes: dict[Size, tuple[int, str]] = {}
    grey = True
    for chunk in _chunks(source.stream(ids)):
        for item, seen in zip(chunk, pool.map(_look_at, chunk), strict=True):
            if seen is not None:
                count, example = sizes.get(seen.size, (0, item.name))
                sizes[seen.size] = (count + 1, example)
                grey = grey and seen.grey
    if transform.size is None and len(sizes) > 1:
        raise ValueError(_differing(source.name, sizes))
    # Without one readable header, any size will do: decoding finds out, picture by picture, what is wrong.
    size = transform.size or next(iter(sizes), (1, 1))
    return size, transform.channels or (1 if grey else 3)


def _look_at(item: Encoded) -> Look | None:
    try:
        return look(item.content)
    except MemoryError:
        raise
    except Exception:
        return None  # decoding will fail too, and name the picture


def _differing(name: str, sizes: dict[Size, tuple[int, str]]) -> str:
    common: Sequence[tuple[Size, tuple[int, str]]] = sorted(sizes.items(), key=lambda entry: -entry[1][0])
    found = ", ".join(f"{h}x{w} ({count}, such as {example})" for (h, w), (count, example) in common[:4])
    more = f", and {len(common) - 4} more" if len(common) > 4 else ""
    return (
        f"the pictures of {name} differ in size, height x width: {found}{more}. "
        "Give a size, such as size=64: the largest centred square of each is then resized to 64x64"
    )
