"""Data sets of the Hugging Face hub, read through its library ``datasets``.

``hf:owner/name`` names a data set of the hub, ``hf:owner/name/configuration`` one of its configurations, and
``hf:`` followed by a folder anything that ``datasets.load_dataset`` makes of that folder.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.data.columns import choose_columns, pictures
from unfog.data.labels import number_labels
from unfog.data.missing import needs_extra
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import canonical

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"
_BATCH_ROWS = 256


def splits_of(name: str, image_column: str | None, label_column: str | None) -> Splits:
    """Load a data set and find its splits.

    Args:
        name: what follows ``hf:``.
        image_column: the picture column, where it is to be this one.
        label_column: the label column, where it is to be this one.

    Raises:
        ImportError: without ``datasets``.
        ValueError: if the data set cannot be loaded.
    """
    with needs_extra("datasets", "reading a data set of the hub"):
        import datasets
    place, configuration = name, None
    if not Path(name).expanduser().exists() and name.count("/") == 2:
        place, configuration = name.rsplit("/", 1)
    try:
        loaded = datasets.load_dataset(str(Path(place).expanduser()), configuration)
    # The library lets through whatever its network, cache and builders raise.
    except Exception as error:
        raise ValueError(f"{PREFIX}{name} could not be loaded by datasets: {type(error).__name__}: {error}") from error
    tables = {canonical(str(split)): table for split, table in loaded.items()}
    return {split: partial(_source, Path(place).name, split, tables, image_column, label_column) for split in tables}


def _source(
    name: str,
    split: str,
    tables: Mapping[str, "datasets.Dataset"],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    table = tables[split]
    columns = choose_columns(table.features.arrow_schema, image_column, label_column, f"{PREFIX}{name}")
    labels, classes = None, None
    if columns.label is not None:
        read: dict[str | None, list[Any]] = {key: _column(part, columns.label) for key, part in tables.items()}
        labels, classes = number_labels(split, read, columns.names, name)
    return Source(
        name=name,
        count=len(table),
        stream=partial(_stream, split, table, columns.image),
        files=tuple(Path(part["filename"]) for part in table.cache_files) or None,
        variant=f"hub {columns.image}",
        labels=labels,
        classes=classes,
        captions=tuple(_column(table, columns.caption)) if columns.caption else None,
    )


def _column(table: "datasets.Dataset", name: str) -> list[Any]:
    # Arrow tables hold what is stored: the library's own rows would decode every picture.
    return list(table.select_columns([name]).with_format("arrow")[:].column(name).to_pylist())


def _stream(split: str, table: "datasets.Dataset", column: str, ids: NDArray[np.int64]) -> Iterator[Encoded]:
    stored = table.select_columns([column]).with_format("arrow")
    for start in range(0, len(ids), _BATCH_ROWS):
        chosen = ids[start : start + _BATCH_ROWS].tolist()
        yield from pictures(stored[chosen].column(column), [f"{split} row {i}" for i in chosen], None)
