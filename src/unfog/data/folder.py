"""Folders of pictures: flat, or one folder for each class, with or without folders for the splits above.

Hidden files and folders (a leading dot) are passed over. Files are ordered by the bytes of their path, so that the
numbering depends neither on the machine nor on its language. What is called like a picture is one, or a bad one:
links to nothing are named, not passed over. A folder is never a picture, whatever it is called.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfog.data.dataset import Skipped, printable
from unfog.data.gate import accepted, counted
from unfog.data.image import EXTENSIONS
from unfog.data.labels import number_labels
from unfog.data.sidecars import METADATA, Notes, read_notes
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import canonical, is_split

_IGNORED = "__MACOSX"


def has_pictures(folder: Path) -> bool:
    """Tell whether a picture lies in a folder or below it."""
    return any(_is_picture(path) for path in _files(folder))


def splits_of(folder: Path) -> Splits:
    """Find the splits of a folder of pictures.

    Sub-folders called train, test, val, ... are splits; any others are classes. The classes are those of all splits
    together, so that a class missing from the test pictures does not shift the labels.

    Raises:
        ValueError: if the folder mixes splits, classes and loose pictures.
    """
    below = _folders(folder)
    parts: dict[str | None, Path] = {canonical(part.name): part for part in below if is_split(part.name)}
    others = [part.name for part in below if not is_split(part.name) and has_pictures(part)]
    if not parts:
        return {None: partial(_source, None, {None: folder}, [])}
    loose = [path for path in folder.iterdir() if not path.is_dir()]
    if others or any(_is_picture(path) for path in loose):
        raise ValueError(
            f"{folder} holds the splits {sorted(map(str, parts))} but also pictures outside of them "
            f"(in {others or 'itself'}): keep only folders of splits here, or only folders of classes"
        )
    if len(parts) < sum(is_split(part.name) for part in below):
        raise ValueError(f"{folder} holds several folders for one split: {sorted(part.name for part in below)}")
    above = [path for path in loose if path.name in METADATA]
    return {split: partial(_source, split, parts, above) for split in parts}


@dataclass(frozen=True)
class _Listing:
    """The pictures of a folder in order, the class folder of each (None in a flat one), and what else is there."""

    folder: Path
    pictures: tuple[Path, ...]
    classes: tuple[str, ...] | None
    notes: Notes
    others: tuple[Path, ...]

    @property
    def labels(self) -> Sequence[int | str | None] | None:
        """The label of each picture: of a list beside them, or else its folder."""
        if self.notes.labels:
            return [self.notes.labels.get(picture) for picture in self.pictures]
        return self.classes


def _source(split: str | None, folders: Mapping[str | None, Path], above: Sequence[Path]) -> Source:
    listed = {key: _listed(folder, above) for key, folder in folders.items()}
    own = listed[split]
    if not own.pictures:
        found = counted(path.suffix.lower() or "without extension" for path in own.others)
        raise ValueError(f"{own.folder} holds no pictures; found: {found}; {accepted()}")
    names = {path: path.relative_to(own.folder).as_posix() for path in own.pictures}
    labels, classes = _labels(split, listed)
    refused = {
        number: Skipped(names[path], own.notes.unreadable[path])
        for number, path in enumerate(own.pictures)
        if path in own.notes.unreadable
    }
    return Source(
        name=own.folder.name,
        count=len(own.pictures),
        stream=partial(_stream, own.folder, own.pictures),
        files=own.pictures,
        variant="folder",
        labels=labels,
        classes=classes,
        captions=tuple(own.notes.captions.get(path) for path in own.pictures),
        refused=refused,
        notices=_passed_over(own),
    )


def _labels(
    split: str | None, listed: Mapping[str | None, _Listing]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Return the labels of a split and the names of the classes, which are those of all splits, in one order."""
    labels = {key: listing.labels for key, listing in listed.items() if listing.pictures}
    labelled = {key: each for key, each in labels.items() if each is not None}
    if not labelled:
        return None, None
    if len(labelled) < len(labels):
        folders = [str(listing.folder) for listing in listed.values()]
        raise ValueError(f"some splits have folders for classes and some have not: {folders}")
    own = listed[split]
    bare = [path for path, label in zip(own.pictures, labelled[split], strict=True) if label is None]
    if bare:
        tables = ", ".join(table.name for table in own.notes.tables)
        raise ValueError(f"{printable(str(bare[0]))} has no label in {tables}, where others have one")
    if any(listing.notes.labels for listing in listed.values()):
        return number_labels(split, labelled, None, str(own.folder))
    classes = tuple(sorted({str(name) for each in labelled.values() for name in each}, key=os.fsencode))
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[str(name)] for name in labelled[split]], dtype=np.int64), classes


def _stream(folder: Path, paths: tuple[Path, ...], ids: NDArray[np.int64]) -> Iterator[Encoded]:
    for i in ids:
        yield Encoded(paths[i].relative_to(folder).as_posix(), paths[i])


def _listed(folder: Path, above: Sequence[Path]) -> _Listing:
    """List a folder: the pictures by class, or all of them where it is flat."""
    files = list(_files(folder))
    pictures = [path for path in files if _is_picture(path)]
    others = [path for path in files if not _is_picture(path)]
    notes = read_notes(pictures, [*others, *above])
    # What a list names and nobody finds is a picture that was lost: it is opened in vain, and named as a bad one.
    lost = [path for path in notes.listed if path.is_relative_to(folder) and not os.path.lexists(path)]
    ordered = _sorted([*pictures, *(path for path in lost if path.suffix.lower() in EXTENSIONS)], folder)
    tops = {path: path.relative_to(folder).parts for path in ordered}
    loose = [path for path in ordered if len(tops[path]) == 1]
    if loose and len(loose) < len(ordered):
        classes = sorted({parts[0] for parts in tops.values() if len(parts) > 1}, key=os.fsencode)
        raise ValueError(
            f"{folder} holds pictures of its own ({printable(loose[0].name)}, ...) beside folders of pictures "
            f"({', '.join(map(printable, classes))}): put every picture into the folder of its class, or all into one "
            "folder"
        )
    # Class by class, so that a class comes before another whose name goes on with a byte below that of the slash.
    if not loose:
        ordered = sorted(ordered, key=lambda path: os.fsencode(tops[path][0]))
    of_folders = None if loose or not ordered else tuple(tops[path][0] for path in ordered)
    return _Listing(folder, tuple(ordered), of_folders, notes, tuple(others))


def _passed_over(listing: _Listing) -> tuple[str, ...]:
    used = {*listing.notes.tables, *listing.notes.texts}
    others = [path for path in listing.others if path not in used]
    if not others:
        return ()
    kinds = counted(path.suffix.lower() or "without extension" for path in others)
    return (f"files of {listing.folder.name} that are no pictures are passed over: {kinds}",)


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != _IGNORED]


def _is_picture(path: Path) -> bool:
    """Tell whether a file is called like a picture; one that is no plain file, such as a pipe, is none."""
    return path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists())


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    # Links to folders are followed here, at the level of classes, and not below, where they could lead in circles.
    for top in _folders(folder):
        for parent, below, names in os.walk(top, onerror=_refuse):
            below[:] = [name for name in below if not name.startswith(".") and name != _IGNORED]
            yield from (Path(parent, name) for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _sorted(paths: Sequence[Path], folder: Path) -> list[Path]:
    return sorted(paths, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))
