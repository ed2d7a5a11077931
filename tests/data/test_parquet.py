import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset

Png = Callable[..., bytes]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
REAL = [Path(part) for part in os.environ.get("UNFOG_DATA", "").split(os.pathsep) if part]
REAL.append(Path(__file__).parents[3] / "shared" / "data")


def write(
    path: Path,
    columns: dict[str, pa.Array],
    features: dict[str, Any] | None = None,
    rows_a_group: int = 3,
) -> None:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_a_group)


def images(png: Png, levels: Sequence[int]) -> pa.Array:
    return pa.array([{"bytes": png(level), "path": None} for level in levels], IMAGE)


def levels(dataset: ArrayDataset) -> list[int]:
    pixels = dataset.gather(np.arange(len(dataset)))["x0"]
    return [round(value) for value in ((pixels[:, 0, 0, 0] + 1) * 127.5).tolist()]


def labels(dataset: ArrayDataset) -> list[int]:
    return dataset.gather(np.arange(len(dataset)))["label"].tolist()


def test_rows_are_read_with_their_labels_and_class_names(tmp_path: Path, png: Png) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    write(tmp_path / "set/train.parquet", {"image": images(png, range(7)), "label": [0, 1] * 3 + [0]}, features)
    dataset = open_dataset(DataSpec(str(tmp_path / "set")))
    assert (levels(dataset), labels(dataset)) == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1, 0])
    assert dataset.info.classes == ("ant", "bee")


def test_shards_are_one_set_in_order(tmp_path: Path, png: Png) -> None:
    for shard in range(2):
        values = {"image": images(png, range(4 * shard, 4 * shard + 4)), "label": [shard] * 4}
        write(tmp_path / f"data/train-0000{shard}-of-00002.parquet", values)
    write(tmp_path / "data/test-00000-of-00001.parquet", {"image": images(png, [50]), "label": [1]})
    dataset = open_dataset(DataSpec(str(tmp_path)))
    assert (levels(dataset), labels(dataset)) == (list(range(8)), [0] * 4 + [1] * 4)


def test_a_choice_of_rows_across_groups_and_shards_is_read_in_order(tmp_path: Path, png: Png) -> None:
    for shard in range(2):
        write(tmp_path / f"train-{shard}.parquet", {"image": images(png, range(10 * shard, 10 * shard + 10))})
    whole = open_dataset(DataSpec(str(tmp_path)))
    parts = [open_dataset(DataSpec(str(tmp_path), split, holdout=0.3)) for split in ("train", "test")]
    assert all(levels(part) == sorted(levels(part)) for part in parts)
    assert sorted(levels(parts[0]) + levels(parts[1])) == levels(whole) == list(range(20))


def test_a_single_file_is_a_set(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "birds.parquet", {"img": images(png, [4])})
    dataset = open_dataset(DataSpec(str(tmp_path / "birds.parquet")))
    assert (levels(dataset), dataset.info.name) == ([4], "birds/train")


def test_a_file_called_test_is_not_trained_on(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "test.parquet", {"img": images(png, [4])})
    with pytest.raises(ValueError, match="splits found: 'test'"):
        open_dataset(DataSpec(str(tmp_path / "test.parquet")))


def test_plain_binary_columns_hold_pictures_too(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"photo": pa.array([png(9)], pa.binary())})
    assert levels(open_dataset(DataSpec(str(tmp_path)))) == [9]


def test_a_path_without_bytes_is_read_beside_the_table(tmp_path: Path, png: Png) -> None:
    (tmp_path / "a.png").write_bytes(png(8))
    write(tmp_path / "train.parquet", {"image": pa.array([{"bytes": None, "path": "a.png"}], IMAGE)})
    assert levels(open_dataset(DataSpec(str(tmp_path)))) == [8]


def test_a_broken_row_is_left_out_and_named(tmp_path: Path, png: Png) -> None:
    values = [
        {"bytes": png(1), "path": None},
        {"bytes": b"broken", "path": None},
        None,
        {"bytes": png(2), "path": None},
    ]
    write(tmp_path / "train.parquet", {"image": pa.array(values, IMAGE), "label": [0, 0, 0, 1]}, rows_a_group=1)
    dataset = open_dataset(DataSpec(str(tmp_path), max_bad=0.5))
    assert (levels(dataset), labels(dataset)) == ([1, 2], [0, 1])
    assert [s.name for s in dataset.info.report.skipped] == ["train.parquet row 1", "train.parquet row 2"]


def test_a_column_declared_as_sound_is_not_taken_for_pictures(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"audio": images(png, [1])}, {"audio": {"_type": "Audio"}})
    with pytest.raises(ValueError, match=r"column of pictures is missing.*audio \(Audio\)"):
        open_dataset(DataSpec(str(tmp_path)))


def test_several_columns_of_pictures_are_told_apart_by_name(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"mask": images(png, [1]), "image": images(png, [2])})
    assert levels(open_dataset(DataSpec(str(tmp_path)))) == [2]
    assert levels(open_dataset(DataSpec(str(tmp_path), image_column="mask"))) == [1]


def test_columns_of_pictures_that_cannot_be_told_apart_are_refused(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"left": images(png, [1]), "right": images(png, [2])})
    with pytest.raises(ValueError, match="image_column"):
        open_dataset(DataSpec(str(tmp_path)))


def test_a_column_that_is_not_there_is_refused(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"image": images(png, [1])})
    with pytest.raises(ValueError, match=r"no column 'picture'.*image"):
        open_dataset(DataSpec(str(tmp_path), image_column="picture"))


def test_a_column_of_numbers_is_refused_as_pictures(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"image": images(png, [1]), "label": [0]})
    with pytest.raises(ValueError, match="not encoded pictures"):
        open_dataset(DataSpec(str(tmp_path), image_column="label"))


def test_labels_may_be_text(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"image": images(png, [1, 2]), "label": ["dog", "cat"]})
    write(tmp_path / "test.parquet", {"image": images(png, [3]), "label": ["emu"]})
    dataset = open_dataset(DataSpec(str(tmp_path)))
    assert (labels(dataset), dataset.info.classes) == ([1, 0], ("cat", "dog", "emu"))


@pytest.mark.parametrize("name", ["text", "caption"])
def test_a_column_of_text_holds_the_captions(tmp_path: Path, png: Png, name: str) -> None:
    write(tmp_path / "train.parquet", {"image": images(png, [1, 2]), name: ["one", None]})
    assert open_dataset(DataSpec(str(tmp_path))).captions(np.arange(2)) == ["one", None]


def test_two_columns_of_captions_are_refused(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "train.parquet", {"image": images(png, [1]), "text": ["one"], "caption": ["two"]})
    with pytest.raises(ValueError, match=r"captions could be any of \['text', 'caption'\]"):
        open_dataset(DataSpec(str(tmp_path)))


def test_two_label_columns_are_told_apart_by_the_spec(tmp_path: Path, png: Png) -> None:
    kind = {"names": ["a", "b"], "_type": "ClassLabel"}
    values = {"image": images(png, [1]), "fine": [1], "coarse": [0]}
    write(tmp_path / "train.parquet", values, {"fine": kind, "coarse": kind})
    with pytest.raises(ValueError, match="label_column"):
        open_dataset(DataSpec(str(tmp_path)))
    assert labels(open_dataset(DataSpec(str(tmp_path), label_column="fine"))) == [1]


def test_a_split_labelled_minus_one_has_no_labels(tmp_path: Path, png: Png) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    write(tmp_path / "test.parquet", {"image": images(png, [1, 2]), "label": [-1, -1]}, features)
    assert open_dataset(DataSpec(str(tmp_path), "test")).info.classes is None


@pytest.mark.parametrize("values", [[0, None], [0, -1], [0, 7], [0.5, 1.0]])
def test_labels_that_mean_nothing_are_refused(tmp_path: Path, png: Png, values: list[Any]) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    write(tmp_path / "train.parquet", {"image": images(png, [1, 2]), "label": pa.array(values)}, features)
    with pytest.raises(ValueError, match="label"):
        open_dataset(DataSpec(str(tmp_path)))


@pytest.mark.parametrize(("name", "channels", "size"), [("mnist", 1, (28, 28)), ("cifar10", 3, (32, 32))])
def test_real_sets_are_read(name: str, channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    if not any((place / name).is_dir() for place in REAL):
        pytest.skip(f"{name} is not here: set UNFOG_DATA to the folder that holds it")
    monkeypatch.setenv("UNFOG_DATA", os.pathsep.join(str(place) for place in REAL))
    dataset = open_dataset(DataSpec(name, "test", limit=40))
    assert (dataset.info.channels, dataset.info.size, len(dataset)) == (channels, size, 40)
    # Both test sets hold about as many examples of each of the ten classes.
    assert np.bincount(labels(dataset)).tolist() == pytest.approx([4] * 10, abs=1)
    assert dataset.info.report.skipped == ()


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        open_dataset(DataSpec(str(tmp_path / "a.parquet")))
