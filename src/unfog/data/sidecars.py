"""Captions and labels that lie beside pictures in a folder.

Either ``x.txt`` beside ``x.png`` holds the caption of that picture, or a ``metadata.jsonl`` or ``metadata.csv`` lists
pictures by ``file_name``, relative to its own folder, with a caption (``text`` or ``caption``) and a ``label`` each
or either. A label of such a list counts more than the folder that a picture lies in. Texts are UTF-8.

Source: the ImageFolder layout of Hugging Face's ``datasets``, whose conventions for metadata files these are.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfog.data.labels import CAPTION_NAMES, LABEL_NAMES

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass
class Notes:
    """What lies beside pictures.

    Attributes:
        captions: by picture.
        labels: by picture, whole numbers or text.
        unreadable: pictures whose caption cannot be read, and why.
        listed: the list that names a picture.
        tables: the metadata files.
        texts: the files of captions.
    """

    captions: dict[Path, str] = field(default_factory=dict)
    labels: dict[Path, int | str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    listed: dict[Path, Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)


def read_notes(pictures: Iterable[Path], others: Iterable[Path]) -> Notes:
    """Read what lies beside pictures.

    Args:
        pictures: their files.
        others: all other files around them.

    Raises:
        ValueError: if a list cannot be read, names a picture twice, or gives a caption to one that has one beside it.
    """
    around = set(others)
    notes = Notes(tables=sorted(path for path in around if path.name in METADATA))
    for table in notes.tables:
        for where, row in _rows(table):
            _note(notes, table, where, row)
    for picture in pictures:
        text = picture.with_suffix(".txt")
        if text in around:
            notes.texts.append(text)
            _note_text(notes, picture, text)
    return notes


def _note(notes: Notes, table: Path, where: str, row: Mapping[str, Any]) -> None:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no file_name; its columns are {', '.join(map(str, row))}")
    picture = table.parent / name
    if picture in notes.listed:
        raise ValueError(f"{where} lists {name} again, which {notes.listed[picture].name} has already")
    notes.listed[picture] = table
    caption = next((row[key] for key in CAPTION_NAMES if row.get(key) is not None), None)
    label = next((row[key] for key in LABEL_NAMES if row.get(key) is not None), None)
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"{where}: the caption must be text, but is {caption!r}")
    if caption is not None:
        notes.captions[picture] = caption
    if label is not None:
        notes.labels[picture] = label


def _note_text(notes: Notes, picture: Path, text: Path) -> None:
    if picture in notes.captions:
        raise ValueError(f"{picture} has a caption in {text.name} and another in {notes.listed[picture].name}")
    try:
        notes.captions[picture] = text.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        notes.unreadable[picture] = f"its caption {text.name} is not UTF-8 ({error})"
    except OSError as error:
        notes.unreadable[picture] = f"its caption {text.name} cannot be read ({error.strerror})"


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a list, each with where it stands."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8: {error}") from error
    if table.suffix == ".csv":
        yield from _csv_rows(table, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no JSON object with names, but {line.strip()[:40]!r}")
        yield where, row


def _csv_rows(table: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    read = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(f"{table}, line {read.line_num}", row) for row in read]
    except csv.Error as error:
        raise ValueError(f"{table}, line {read.line_num}: {error}") from error
    # Everything in CSV is text: labels that are digits throughout are numbers.
    for name in LABEL_NAMES:
        if all((row.get(name) or "").isdecimal() for _, row in rows):
            for _, row in rows:
                row[name] = int(row[name])
    yield from rows
