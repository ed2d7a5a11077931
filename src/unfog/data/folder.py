"""Folders of pictures: flat, or one folder for each class, with or without folders for the splits above.

Hidden files and folders (a leading dot) are passed over. Files are ordered by the bytes of their path, so that the
numbering depends neither on the machine nor on its language.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfog.data.image import EXTENSIONS
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import canonical, is_split

_IGNORED = "__MACOSX"


def has_pictures(folder: Path) -> bool:
    """Tell whether a picture lies in a folder or below it."""
    return next(_pictures(folder), None) is not None


def splits_of(folder: Path) -> Splits:
    """Find the splits of a folder of pictures.

    Sub-folders called train, test, val, ... are splits; any others are classes. The classes are those of all splits
    together, so that a class missing from the test pictures does not shift the labels.

    Raises:
        ValueError: if the folder mixes splits, classes and loose pictures.
    """
    below = _folders(folder)
    parts = {canonical(part.name): part for part in below if is_split(part.name)}
    others = [part.name for part in below if not is_split(part.name) and has_pictures(part)]
    if not parts:
        return {None: partial(_source, folder, [folder])}
    if others or _loose(folder):
        raise ValueError(
            f"{folder} holds the splits {sorted(parts)} but also pictures outside of them (in {others or 'itself'}): "
            "keep only folders of splits here, or only folders of classes"
        )
    if len(parts) < sum(is_split(part.name) for part in below):
        raise ValueError(f"{folder} holds several folders for one split: {sorted(part.name for part in below)}")
    return {split: partial(_source, part, list(parts.values())) for split, part in parts.items()}


def _source(folder: Path, siblings: list[Path]) -> Source:
    listed = {sibling: _listing(sibling) for sibling in siblings}
    if any(listed.values()) and not all(listed.values()):
        raise ValueError(f"some splits have folders for classes and some have not: {[str(s) for s in siblings]}")
    # Label i is the i-th name: the names of all splits, in one order.
    classes = tuple(sorted({name for by_class in listed.values() for name in by_class}, key=os.fsencode)) or None
    found = [(path, name) for name, paths in listed[folder].items() for path in paths]
    if not found:
        found = [(path, "") for path in _sorted(_loose(folder), folder)]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({' '.join(sorted(EXTENSIONS))})")
    paths = tuple(path for path, _ in found)
    labels = None
    if classes is not None:
        label_of = {name: i for i, name in enumerate(classes)}
        labels = np.array([label_of[name] for _, name in found], dtype=np.int64)
    return Source(
        name=folder.name,
        count=len(paths),
        stream=partial(_stream, folder, paths),
        files=paths,
        variant="folder",
        labels=labels,
        classes=classes,
    )


def _stream(folder: Path, paths: tuple[Path, ...], ids: NDArray[np.int64]) -> Iterator[Encoded]:
    for i in ids:
        yield Encoded(paths[i].relative_to(folder).as_posix(), paths[i])


def _listing(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class, or nothing where the folder is flat."""
    classes = {part.name: _sorted(_pictures(part), folder) for part in _folders(folder)}
    classes = {name: classes[name] for name in sorted(classes, key=os.fsencode) if classes[name]}
    if classes and _loose(folder):
        raise ValueError(
            f"{folder} holds pictures of its own ({_loose(folder)[0].name}, ...) beside folders of pictures "
            f"({', '.join(classes)}): put every picture into the folder of its class, or all into one folder"
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != _IGNORED]


def _loose(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _is_picture(path)]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _pictures(folder: Path) -> Iterator[Path]:
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and name != _IGNORED]
        yield from (path for path in (Path(parent, name) for name in names) if _is_picture(path))


def _sorted(paths: Iterator[Path] | list[Path], folder: Path) -> list[Path]:
    return sorted(paths, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))
