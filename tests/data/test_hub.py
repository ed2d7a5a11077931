import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfog.data.sources import DataSpec, open_dataset

Png = Callable[..., bytes]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub cache")


@pytest.fixture
def folder(tmp_path: Path, png: Png, offline: None) -> Path:
    """A folder of parquet files as the hub holds them."""
    place = tmp_path / "birds"
    (place / "data").mkdir(parents=True)
    for split, levels in (("train", [3, 1, 2]), ("test", [9, 8])):
        images = pa.array([{"bytes": png(level), "path": None} for level in levels])
        table = pa.table({"image": images, "label": [i % 2 for i in range(len(levels))]})
        pq.write_table(table, place / "data" / f"{split}-00000-of-00001.parquet")
    return place


def test_a_data_set_is_loaded_with_its_labels(folder: Path) -> None:
    dataset = open_dataset(DataSpec(f"hf:{folder}", "test"))
    values = dataset.gather(np.arange(2))
    assert ((values["x0"][:, 0, 0, 0] + 1) * 127.5).round().tolist() == [9, 8]
    assert values["label"].tolist() == [0, 1]


def test_the_hub_and_the_files_give_the_same_set(folder: Path) -> None:
    fingerprints = {open_dataset(DataSpec(path)).info.fingerprint for path in (f"hf:{folder}", str(folder))}
    assert len(fingerprints) == 1


def test_a_choice_of_rows_is_the_same_from_the_hub(folder: Path) -> None:
    chosen = {open_dataset(DataSpec(path, limit=2)).info.fingerprint for path in (f"hf:{folder}", str(folder))}
    assert len(chosen) == 1


def test_the_name_and_configuration_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load_dataset(*given: object) -> dict[str, object]:
        asked.append(given)
        return {}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("hf:owner/name", "hf:owner/name/small", "hf:name"):
        with pytest.raises(ValueError, match="no split"):
            open_dataset(DataSpec(path))
    assert asked == [("owner/name", None), ("owner/name", "small"), ("name", None)]


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path: Path, offline: None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="could not be loaded"):
        open_dataset(DataSpec(f"hf:{tmp_path / 'empty'}"))


def test_without_the_library_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'unfog\[data\]'"):
        open_dataset(DataSpec("hf:owner/name"))
