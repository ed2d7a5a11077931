"""Which columns of a table hold the pictures, the labels and the captions.

Used for parquet files and for data sets of the hub alike: both carry an Arrow schema, with the features of Hugging
Face's ``datasets`` in its metadata where that library wrote it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.data.labels import CAPTION_NAMES, LABEL_NAMES
from unfog.data.source import Encoded

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_NAMES = ("image", "img")


@dataclass(frozen=True)
class Columns:
    """The columns to read: the pictures', the labels' or None, the captions' or None, and the names of the classes."""

    image: str
    label: str | None
    caption: str | None
    names: tuple[str, ...] | None


def choose_columns(schema: "pa.Schema", image: str | None, label: str | None, where: str) -> Columns:
    """Choose the columns of a table.

    The picture column is the one of feature type Image; else, of the columns of encoded bytes (binary, or a struct
    with a field ``bytes``) that are not declared as something else, the only one or the one called image or img.
    The label column is the one called label or labels; else the only one of feature type ClassLabel; else there is
    none. The caption column is the one of text that is called text, caption or captions; else there is none.

    Args:
        schema: of the table.
        image: the picture column, where it is to be this one.
        label: the label column, where it is to be this one.
        where: what to call the table in errors.

    Raises:
        ValueError: if a column is missing or several could be meant.
    """
    features = _features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items()}
    for wanted in (image, label):
        if wanted is not None and wanted not in schema.names:
            raise ValueError(f"{where} has no column {wanted!r}; columns found: {_described(schema, kinds)}")
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    if not images:
        images = [f.name for f in schema if _holds_bytes(f.type) and kinds.get(f.name) in (None, "Value")]
    chosen = image or _only(images, _IMAGE_NAMES)
    if chosen is None:
        found = f"could be any of {images}: say which with image_column" if images else "is missing"
        raise ValueError(f"{where}: the column of pictures {found}; columns found: {_described(schema, kinds)}")
    if not _holds_bytes(schema.field(chosen).type):
        raise ValueError(
            f"{where}: column {chosen!r} holds {schema.field(chosen).type}, not encoded pictures (bytes): "
            f"columns found: {_described(schema, kinds)}"
        )
    named = [name for name in LABEL_NAMES if name in schema.names]
    declared = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    labelled = label or _only(named or declared, LABEL_NAMES)
    if labelled is None and declared:
        raise ValueError(f"{where}: the labels could be any of {declared}: say which with label_column")
    names = features.get(labelled or "", {}).get("names")
    captions = [name for name in CAPTION_NAMES if name in schema.names and _holds_text(schema.field(name).type)]
    if len(captions) > 1:
        raise ValueError(f"{where}: the captions could be any of {captions}: keep one of these columns")
    caption = captions[0] if captions and captions[0] != labelled else None
    return Columns(chosen, labelled, caption, tuple(str(name) for name in names) if names else None)


def _only(candidates: list[str], preferred: tuple[str, ...]) -> str | None:
    """Return the only candidate, or else the first of the preferred names among them."""
    if len(candidates) == 1:
        return candidates[0]
    return next((name for name in preferred if name in candidates), None)


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Return the features that ``datasets`` wrote into the schema, by column."""
    written = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(written).get("info", {}).get("features", {}) if written else {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _described(schema: "pa.Schema", kinds: Mapping[str, str | None]) -> str:
    return ", ".join(f"{field.name} ({kinds.get(field.name) or field.type})" for field in schema)


def pictures(values: "pa.ChunkedArray", names: Iterable[str], folder: Path | None) -> Iterable[Encoded]:
    """Turn the values of a picture column into encoded pictures.

    Args:
        values: bytes, or structs of ``bytes`` and ``path``.
        names: what to call each picture.
        folder: where a path without bytes is looked up; None for the working folder.
    """
    for value, name in zip(values.to_pylist(), names, strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        if content is None and path:
            yield Encoded(f"{name} ({path})", (folder or Path()) / path)
        else:
            # No bytes at all: an empty picture, which decoding refuses and the report names.
            yield Encoded(name, content or b"")
