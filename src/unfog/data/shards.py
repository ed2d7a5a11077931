"""WebDataset shards: tar files in which the members of one example follow each other under one name.

``0001.jpg 0001.cls 0001.txt 0002.jpg ...``: what precedes the first dot of the file name is the example, what follows
is the field. Its picture is the member whose field is the extension of a picture; its label is ``cls``, or ``label`` in
``json``; its caption is ``txt``, or ``text`` or ``caption`` in ``json``. Other fields are passed over.

A shard is indexed by its headers, and pictures are read from where they lie in it: examples have numbers, in the order
of the shards and of what is in them, and any of them can be read without those before. Compressed archives have no
such places and are refused. A shard that breaks off is refused as a whole, for nobody knows what it has lost. The index
of a large shard is kept in the cache, under the shard's path, size and time.

Source: the WebDataset format, https://github.com/webdataset/webdataset; read here with the standard library alone.
"""

import hashlib
import json
import os
import re
import secrets
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfog.data.cache import cache_folder
from unfog.data.dataset import Skipped, printable
from unfog.data.image import EXTENSIONS, Stretch, stored
from unfog.data.labels import CAPTION_NAMES, LABEL_NAMES, number_labels
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import by_split

_VERSION = 1
# Below, indexing takes no time worth saving, and a shard could be written anew within one tick of the clock.
_INDEXED_BYTES = 4 * 2**20
_TEXTS = ("json", "cls", "txt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in a folder, by name."""
    return sorted(folder.glob("*.tar"))


def is_pattern(given: str) -> bool:
    """Tell whether a path names shards by a range of numbers, such as ``train-{000..012}.tar``."""
    return bool(_RANGE.search(given)) and given.endswith(".tar")


def expanded(pattern: str) -> list[Path]:
    """Return the shards that a pattern names.

    Raises:
        ValueError: if one of them is not there.
    """
    names = [pattern]
    while any(_RANGE.search(name) for name in names):
        names = [each for name in names for each in _first_range(name)]
    paths = [Path(name).expanduser() for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{pattern} names {len(paths)} shards, of which {missing[0]}{more} is not there")
    return paths


def _first_range(name: str) -> list[str]:
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    if int(first) > int(last):
        raise ValueError(f"{name}: expected a range that rises, such as {{{last}..{first}}}")
    numbers = range(int(first), int(last) + 1)
    return [f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}" for number in numbers]


def splits_of(files: Sequence[Path], name: str) -> Splits:
    """Find the splits of some shards, by their names (``train-000.tar``)."""
    groups = by_split((file.stem, file) for file in files)
    return {split: partial(_source, name, split, groups) for split in groups}


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@dataclass
class _Example:
    """One example: what to call it, where its picture begins and how long it is, what the members beside that say."""

    name: str
    picture: tuple[int, int] | None
    label: int | str | None = None
    caption: str | None = None
    problem: str | None = None


def _source(name: str, split: str | None, groups: Mapping[str | None, Sequence[Path]]) -> Source:
    indexed = {key: [(file, one) for file in files for one in _indexed(file)] for key, files in groups.items()}
    read = {key: [one for _, one in each] for key, each in indexed.items()}
    examples = read[split]
    if not any(example.picture for example in examples):
        found = sorted({_field(member.name) for file in groups[split] for member in _members(file)})
        raise ValueError(f"the shards of {name} hold no pictures; the fields found are {', '.join(found) or 'none'}")
    labels, classes = _labels(name, split, read)
    refused = {i: Skipped(one.name, one.problem) for i, one in enumerate(examples) if one.problem is not None}
    return Source(
        name=name,
        count=len(examples),
        stream=partial(_stream, indexed[split]),
        files=tuple(groups[split]),
        variant="shards",
        labels=labels,
        classes=classes,
        captions=tuple(example.caption for example in examples),
        refused=refused,
    )


def _labels(
    name: str, split: str | None, read: Mapping[str | None, Sequence[_Example]]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Return the labels of a split; 0, without a meaning, for examples that have a problem."""
    given = {key: [one.label for one in examples if one.problem is None] for key, examples in read.items()}
    labelled = {key: labels for key, labels in given.items() if any(label is not None for label in labels)}
    if split not in labelled:
        return None, None
    known, classes = number_labels(split, labelled, None, name)
    if known is None:
        return None, None
    labels = np.zeros(len(read[split]), dtype=np.int64)
    labels[[one.problem is None for one in read[split]]] = known
    return labels, classes


def _stream(indexed: Sequence[tuple[Path, _Example]], ids: NDArray[np.int64]) -> Iterator[Encoded]:
    for i in ids:
        shard, example = indexed[i]
        assert example.picture is not None  # those without are refused
        yield Encoded(example.name, Stretch(shard, *example.picture))


def _indexed(shard: Path) -> list[_Example]:
    """Return the examples of a shard, from its index where there is one."""
    stat = shard.stat()
    if stat.st_size < _INDEXED_BYTES:
        return list(_examples(shard))
    told = os.fsencode(shard.absolute()) + f"\0{_VERSION} {stat.st_size} {stat.st_mtime_ns}".encode()
    place = cache_folder() / "shards" / f"{hashlib.sha256(told).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):  # no index, or a damaged one: it is made anew
        return [_Example(**each) for each in json.loads(place.read_text())]
    found = list(_examples(shard))
    with suppress(OSError):  # a cache that cannot be written is refused where it is needed, by ``materialize``
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        draft.write_text(json.dumps([asdict(each) for each in found]))
        draft.replace(place)
    return found


def _examples(shard: Path) -> Iterator[_Example]:
    members = _members(shard)
    with shard.open("rb") as file:
        for key, group in groupby(members, key=lambda member: _example(member.name)):
            yield _read(f"{shard.name}/", key, list(group), file)


def _example(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.split(".", 1)[0]))


def _field(name: str) -> str:
    return PurePosixPath(name).name.partition(".")[2].lower()


def _read(where: str, key: str, members: Sequence[_Member], file: BinaryIO) -> _Example:
    fields = {_field(member.name): member for member in members}
    pictures = [member for name, member in fields.items() if f".{name}" in EXTENSIONS]
    if len(pictures) != 1:
        problem = f"expected one picture, found {len(pictures)}; its fields are {', '.join(fields)}"
        return _Example(where + (pictures[0].name if pictures else key), None, problem=problem)
    example = _Example(where + pictures[0].name, (pictures[0].offset, pictures[0].size))
    try:
        _note(example, {name: _text(member, file) for name, member in fields.items() if name in _TEXTS})
    except ValueError as error:
        example.problem = str(error)
    return example


def _text(member: _Member, file: BinaryIO) -> str:
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its {_field(member.name)} is not UTF-8 ({error})") from error


def _note(example: _Example, texts: Mapping[str, str]) -> None:
    """Note what the members beside a picture say of it."""
    if "json" in texts:
        try:
            told = json.loads(texts["json"])
        except ValueError as error:
            raise ValueError(f"its json cannot be read: {error}") from error
        if isinstance(told, dict):
            example.label = next((told[name] for name in LABEL_NAMES if told.get(name) is not None), None)
            example.caption = next((told[name] for name in CAPTION_NAMES if told.get(name) is not None), None)
    if "cls" in texts:
        label = texts["cls"]
        example.label = int(label) if re.fullmatch(r"-?\d+", label) else label
    example.caption = texts.get("txt", example.caption)
    if example.caption is not None and not isinstance(example.caption, str):
        raise ValueError(f"its caption must be text, but is {example.caption!r}")


def _members(shard: Path) -> list[_Member]:
    """List the plain files of a shard in order.

    Raises:
        ValueError: if it cannot be read to its end.
    """
    found: list[_Member] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isreg() and not any(part.startswith(".") for part in PurePosixPath(name).parts):
                    found.append(_Member(name, member.offset_data, member.size))
            # The library takes an archive that breaks off between two members, or goes on with rubbish, for ended.
            whole = stored(Stretch(shard, tar.offset, tarfile.BLOCKSIZE)) == tarfile.NUL * tarfile.BLOCKSIZE
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(_broken(shard, found, str(error))) from error
    if not whole:
        raise ValueError(_broken(shard, found, "the mark of its end is missing"))
    return found


def _broken(shard: Path, found: Sequence[_Member], why: str) -> str:
    after = f" after its member {printable(found[-1].name)}" if found else ""
    return (
        f"the shard {shard} is truncated, damaged or no plain tar{after} ({why}): "
        "copy it again, or unpack and pack it anew without compression"
    )
