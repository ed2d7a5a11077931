"""Decoded pictures as rows of one array on disk, and the rows that were decoded before.

A folder of rows holds, for ``N`` pictures that could be read:

==============  =====================================================================================
``pixels.npy``  (N, C, H, W) uint8
``kept.npy``    (N,) int64, which pictures of the source they are
``keys.npy``    (N, 16) uint8, a hash of what each was decoded from
``facts.npy``   (N,) of ``gate.FACTS``
``report.json``  how the rows were made, their digest, and which pictures could not be read
==============  =====================================================================================

A row depends on what is stored of its picture and on how rows are made, and on nothing else. Where another folder holds
rows made in the same way, a picture whose key is there is copied from it, so that after a change of the source only
what changed is decoded again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from unfog.data.dataset import Report, Skipped
from unfog.data.gate import FACTS, Extents, Passed, facts, notices, passed, require_readable
from unfog.data.image import ON_WHITE, Content, Policy, Size, Stretch, decode, look, stored
from unfog.data.source import Encoded, Source

VERSION = 2
_KEY_BYTES = 16
_HEADER_BYTES = 192


@dataclass(frozen=True)
class Transform:
    """What is made of each picture.

    Attributes:
        size: height and width; None keeps the size of the pictures, which must then all be alike.
        channels: as ``image.decode`` has them; None makes it 1 if every picture is stored grey, else 3, and of arrays
            as many as they have.
        policy: how pictures are decoded.
    """

    size: Size | None = None
    channels: int | None = None
    policy: Policy = ON_WHITE


class Decoded(NamedTuple):
    """Decoded pictures.

    Attributes:
        pixels: ``(N, C, H, W)`` uint8, in memory or mapped read-only.
        kept: ``(N,)`` int64, which pictures of the source they are.
        digest: ``pixel_digest(pixels)``.
        report: which pictures were left out.
        notices: what decoding did that the owner of the pictures may not expect.
    """

    pixels: NDArray[np.uint8]
    kept: NDArray[np.int64]
    digest: str
    report: Report
    notices: tuple[str, ...] = ()


class Row(NamedTuple):
    """One decoded picture, what it was before, and the key of what it was decoded from."""

    pixels: NDArray[np.uint8]
    facts: tuple[int, int, int, bool, bool, bool]
    key: bytes


@dataclass(frozen=True)
class Making:
    """How rows are made: a transform of which everything is settled.

    Attributes:
        size: height and width.
        channels: of the rows.
        policy: of decoding.
        by_content: whether files are told apart by their content, or else by path, size and time.
    """

    size: Size
    channels: int
    policy: Policy
    by_content: bool

    @property
    def name(self) -> str:
        """A text that is the same where the rows are."""
        return json.dumps([VERSION, PIL.__version__, asdict(self)])

    def rows(self, source: Source, ids: NDArray[np.int64], earlier: "Earlier") -> Iterator[Passed[Row]]:
        """Yield pictures of a source, from earlier rows or else decoded."""

        def row(item: Encoded) -> Row:
            content = item.content
            if isinstance(content, Stretch) or (self.by_content and isinstance(content, Path)):
                content = stored(content)
            key = _key(content)
            known = earlier.find(key)
            if known is not None:
                return known
            picture = decode(content, self.size, self.channels, self.policy)
            return Row(picture.pixels, facts(picture.look), key)

        return passed(source, ids, row)


def settle(source: Source, ids: NDArray[np.int64], transform: Transform, by_content: bool) -> Making:
    """Settle how rows are made, by looking at every picture where size or channels are not given.

    Raises:
        ValueError: if the sizes of the pictures differ and none is given.
    """
    extents = Extents()
    if transform.size is None or transform.channels is None:
        for one in passed(source, ids, lambda item: look(item.content, transform.policy)):
            if not isinstance(one.result, Skipped):  # decoding will fail too, and name the picture
                extents.add(one.name, one.result)
    size, channels = extents.settle(source.name, transform.size, transform.channels)
    return Making(size, channels, transform.policy, by_content)


def _key(content: Content) -> bytes:
    """Return a hash of what is stored of a picture; of a file that is not read, of what tells it apart."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    match content:
        case bytes():
            digest.update(b"bytes\0" + content)
        case Path():
            stat = content.stat()
            told = f"{stat.st_size} {stat.st_mtime_ns}\0".encode()
            digest.update(b"file\0" + told + os.fsencode(content.absolute()))
        case Stretch(path, offset, size):
            raise AssertionError(f"{path} was not read at {offset} for {size} bytes")
        case _:
            digest.update(f"array {content.shape}\0".encode() + content.tobytes())
    return digest.digest()


class Earlier:
    """Rows of other folders that were made in one way, by key.

    Args:
        home: the folder of the folders; None has none.
        name: ``Making.name``.
    """

    def __init__(self, home: Path | None = None, name: str = "") -> None:
        self._folders: list[tuple[NDArray[np.uint8], NDArray[np.void]]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for folder in sorted(home.glob("[!.]*")) if home else []:
            try:
                written = json.loads((folder / "report.json").read_text())
                if written["making"] == name:
                    self._add(folder)
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                continue  # damaged, or of another version: its pictures are decoded again

    def _add(self, folder: Path) -> None:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        found = np.load(folder / "facts.npy", allow_pickle=False)
        keys = np.load(folder / "keys.npy", allow_pickle=False)
        if not len(pixels) == len(found) == len(keys):
            raise ValueError(f"{folder} is damaged")
        self._places.update((bytes(key), (len(self._folders), row)) for row, key in enumerate(keys))
        self._folders.append((pixels, found))

    def find(self, key: bytes) -> Row | None:
        """Return the row of a key, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        pixels, found = self._folders[place[0]]
        return Row(np.asarray(pixels[place[1]]), found[place[1]].item(), key)


def in_memory(source: Source, ids: NDArray[np.int64], transform: Transform) -> Decoded:
    """Decode pictures into memory.

    Raises:
        ValueError: if no picture can be read, or their sizes differ and no size is given.
    """
    making = settle(source, ids, transform, by_content=True)
    skipped: list[Skipped] = []
    kept: list[int] = []
    found: list[Row] = []
    digest = hashlib.sha256()
    for one in making.rows(source, ids, Earlier()):
        if isinstance(one.result, Skipped):
            skipped.append(one.result)
        else:
            found.append(one.result)
            kept.append(one.number)
            digest.update(one.result.pixels.data)
    report = Report(len(ids), tuple(skipped))
    require_readable(source.name, report)
    told = notices(np.array([row.facts for row in found], FACTS), making.size, making.policy.value_range is not None)
    pixels = np.stack([row.pixels for row in found])
    return Decoded(pixels, np.array(kept, dtype=np.int64), digest.hexdigest(), report, told)


def write(source: Source, ids: NDArray[np.int64], making: Making, folder: Path, home: Path) -> None:
    """Write a folder of rows.

    Args:
        source: where the pictures come from.
        ids: their ascending numbers.
        making: how rows are made.
        folder: where to write; it exists and is empty.
        home: the folder whose folders hold earlier rows.

    Raises:
        ValueError: if no picture can be read, or the disk is too small.
    """
    shape = (making.channels, *making.size)
    _refuse_too_large(home, len(ids) * int(np.prod(shape)))
    skipped: list[Skipped] = []
    kept: list[int] = []
    keys: list[bytes] = []
    found: list[tuple[int, int, int, bool, bool, bool]] = []
    digest = hashlib.sha256()
    # Plain writes, for a full disk kills a process that writes to mapped memory.
    with (folder / "pixels.npy").open("wb") as file:
        _write_header(file, (len(ids), *shape))
        for one in making.rows(source, ids, Earlier(home, making.name)):
            if isinstance(one.result, Skipped):
                skipped.append(one.result)
                continue
            file.write(one.result.pixels.data)
            digest.update(one.result.pixels.data)
            kept.append(one.number)
            keys.append(one.result.key)
            found.append(one.result.facts)
        _write_header(file, (len(kept), *shape))
        file.flush()
        os.fsync(file.fileno())
    report = Report(len(ids), tuple(skipped))
    require_readable(source.name, report)
    np.save(folder / "kept.npy", np.array(kept, dtype=np.int64))
    np.save(folder / "keys.npy", np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES))
    np.save(folder / "facts.npy", np.array(found, FACTS))
    told = notices(np.array(found, FACTS), making.size, making.policy.value_range is not None)
    written = {
        "making": making.name,
        "found": report.found,
        "skipped": report.skipped,
        "digest": digest.hexdigest(),
        "source": source.name,
        "notices": told,
    }
    (folder / "report.json").write_text(json.dumps(written))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of an ``.npy`` file at its beginning, padded so that one for fewer pictures fits as well."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    begin = np.lib.format.magic(1, 0)
    room = _HEADER_BYTES - len(begin) - 2
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    file.write(begin + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n")
    file.seek(max(end, _HEADER_BYTES))


def _refuse_too_large(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if needed > free:
        raise ValueError(
            f"the decoded pictures need {needed / 2**30:.1f} GiB in {home}, where {free / 2**30:.1f} GiB "
            "are free: set UNFOG_CACHE to a folder on a larger disk, or give a smaller size or a limit"
        )


def read(folder: Path) -> Decoded:
    """Open a folder of rows.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        kept = np.load(folder / "kept.npy", allow_pickle=False)
        written = json.loads((folder / "report.json").read_text())
        report = Report(written["found"], tuple(Skipped(name, reason) for name, reason in written["skipped"]))
        digest, told = str(written["digest"]), tuple(map(str, written["notices"]))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"the cached pictures in {folder} are damaged: delete this folder ({error})") from error
    return Decoded(pixels, kept, digest, report, told)
