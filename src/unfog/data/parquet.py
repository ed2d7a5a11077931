"""Parquet files as Hugging Face's ``datasets`` writes them: one row a picture, encoded, with its label."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.data.columns import Columns, choose_columns, pictures
from unfog.data.labels import number_labels
from unfog.data.missing import needs_extra
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import by_split

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files in a folder, or else those in its sub-folder ``data`` (as the hub lays them out)."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def splits_of(path: Path, image_column: str | None, label_column: str | None) -> Splits:
    """Find the splits of a parquet file or a folder of such files, by their names (``train-00000-of-00002``)."""
    files = [path] if path.is_file() else parquet_files(path)
    groups = by_split((file.stem, file) for file in files)
    name = path.stem if path.is_file() else path.name
    return {split: partial(_source, name, split, groups, image_column, label_column) for split in groups}


def _source(
    name: str,
    split: str | None,
    groups: Mapping[str | None, Sequence[Path]],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    with needs_extra("pyarrow", "reading parquet files"):
        import pyarrow.parquet as pq
    files = tuple(groups[split])
    try:
        schema = pq.read_schema(files[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"{files[0]} cannot be read as parquet: {error}") from error
    columns = choose_columns(schema, image_column, label_column, str(files[0]))
    labels, classes = None, None
    if columns.label is not None:
        read = {key: _column(group, columns.label) for key, group in groups.items()}
        labels, classes = number_labels(split, read, columns.names, name)
    return Source(
        name=name,
        count=sum(pq.read_metadata(file).num_rows for file in files),
        stream=partial(_stream, files, columns),
        files=files,
        variant=f"parquet {columns.image}",
        labels=labels,
        classes=classes,
        captions=tuple(_column(files, columns.caption)) if columns.caption else None,
    )


def _column(files: Sequence[Path], name: str) -> list[Any]:
    import pyarrow.parquet as pq

    return [value for file in files for value in pq.ParquetFile(file).read(columns=[name]).column(name).to_pylist()]


def _stream(files: Sequence[Path], columns: Columns, ids: NDArray[np.int64]) -> Iterator[Encoded]:
    """Yield the chosen rows, reading only the row groups in which some lie."""
    import pyarrow.parquet as pq

    before = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            start = before
            for group in range(file.num_row_groups):
                stop = before + file.metadata.row_group(group).num_rows
                chosen = ids[np.searchsorted(ids, before) : np.searchsorted(ids, stop)]
                if len(chosen):
                    yield from _rows(file, path, group, columns.image, chosen - before, before - start)
                before = stop


def _rows(
    file: "pa.parquet.ParquetFile", path: Path, group: int, column: str, chosen: NDArray[np.int64], offset: int
) -> Iterator[Encoded]:
    """Yield some rows of one row group, a few hundred in memory at a time.

    Args:
        file: the open file.
        path: its path.
        group: which row group.
        column: of the pictures.
        chosen: ascending numbers of rows inside the group.
        offset: number, in the file, of the group's first row.
    """
    before = 0
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
        here = chosen[np.searchsorted(chosen, before) : np.searchsorted(chosen, before + batch.num_rows)]
        if len(here):
            names = [f"{path.name} row {offset + i}" for i in here]
            yield from pictures(batch.column(column).take(here - before), names, path.parent)
        before += batch.num_rows
