import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unfog.data import shards
from unfog.data.dataset import ArrayDataset
from unfog.data.shards import expanded
from unfog.data.sources import DataSpec, open_dataset

Png = Callable[..., bytes]


def pack(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def levels(dataset: ArrayDataset) -> list[int]:
    pixels = dataset.gather(np.arange(len(dataset)))["x0"]
    return [round(value) for value in ((pixels[:, 0, 0, 0] + 1) * 127.5).tolist()]


def labels(dataset: ArrayDataset) -> list[int]:
    return dataset.gather(np.arange(len(dataset)))["label"].tolist()


def captions(dataset: ArrayDataset) -> list[str | None]:
    return dataset.captions(np.arange(len(dataset)))


def test_members_of_one_name_are_one_example(tmp_path: Path, png: Png) -> None:
    members = {"1.png": png(10), "1.cls": b"1", "1.txt": b"one\n", "2.cls": b"0", "2.PNG": png(20), "2.txt": b"two"}
    dataset = open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members))))
    assert (levels(dataset), labels(dataset), captions(dataset)) == ([10, 20], [1, 0], ["one", "two"])
    assert dataset.info.classes == ("0", "1")


def test_labels_and_captions_may_be_json(tmp_path: Path, png: Png) -> None:
    told = [{"label": "bee", "caption": "a bee"}, {"label": "ant", "text": "an ant"}]
    members = {
        f"{i}.{name}": content
        for i, each in enumerate(told)
        for name, content in (("png", png(i)), ("json", json.dumps(each).encode()))
    }
    dataset = open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members))))
    assert (labels(dataset), captions(dataset), dataset.info.classes) == ([1, 0], ["a bee", "an ant"], ("ant", "bee"))


def test_shards_are_one_set_in_the_order_of_their_names(tmp_path: Path, png: Png) -> None:
    for shard in (2, 0, 1):
        pack(tmp_path / f"train-{shard:03d}.tar", {f"{i}.png": png(10 * shard + i) for i in (1, 0)})
    pack(tmp_path / "test-000.tar", {"0.png": png(200)})
    assert levels(open_dataset(DataSpec(str(tmp_path)))) == [1, 0, 11, 10, 21, 20]
    assert levels(open_dataset(DataSpec(str(tmp_path / "train-{001..002}.tar")))) == [11, 10, 21, 20]
    assert levels(open_dataset(DataSpec(str(tmp_path), "test"))) == [200]


def test_any_choice_of_examples_is_read_in_order(tmp_path: Path, png: Png) -> None:
    for shard in range(2):
        pack(tmp_path / f"{shard}.tar", {f"{i}.png": png(10 * shard + i) for i in range(10)})
    parts = [open_dataset(DataSpec(str(tmp_path), split, holdout=0.3)) for split in ("train", "test")]
    assert all(levels(part) == sorted(levels(part)) for part in parts)
    assert sorted(levels(parts[0]) + levels(parts[1])) == list(range(20))


def test_ranges_are_expanded_with_their_zeros() -> None:
    with pytest.raises(ValueError, match=r"names 4 shards, of which a/x-08-1\.tar, and 3 more is not there"):
        expanded("a/x-{08..09}-{1..2}.tar")


def test_a_range_that_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="rises"):
        expanded("{2..1}.tar")


def test_a_damaged_member_is_left_out_and_named(tmp_path: Path, png: Png) -> None:
    members = {"1.png": png(1), "2.png": b"broken", "3.cls": b"1", "4.png": png(4), "4.jpg": b"", "5.png": png(5)}
    dataset = open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members)), max_bad=0.9))
    assert levels(dataset) == [1, 5]
    assert [(one.name, one.reason[:28]) for one in dataset.info.report.skipped] == [
        ("a.tar/2.png", "it is none of JPEG, PNG, WEB"),
        ("a.tar/3", "expected one picture, found "),
        ("a.tar/4.png", "expected one picture, found "),
    ]


@pytest.mark.parametrize("beside", [{"json": b"{"}, {"txt": b"\xff"}, {"cls": b"\xff"}, {"json": b'{"text": 1}'}])
def test_an_example_whose_notes_are_damaged_is_left_out_and_named(
    tmp_path: Path, png: Png, beside: dict[str, bytes]
) -> None:
    members = {"1.png": png(1), **{f"1.{name}": content for name, content in beside.items()}, "2.png": png(2)}
    dataset = open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members)), max_bad=0.5))
    assert levels(dataset) == [2]
    assert dataset.info.report.skipped[0].name == "a.tar/1.png"


def test_labels_stay_with_their_pictures_where_one_is_left_out(tmp_path: Path, png: Png) -> None:
    members = {"1.png": png(1), "1.txt": b"\xff", "2.png": png(2), "2.cls": b"5", "3.png": png(3), "3.cls": b"4"}
    dataset = open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members)), max_bad=0.5))
    assert (levels(dataset), labels(dataset)) == ([2, 3], [5, 4])


# Inside the header of the second member, inside its content, right after it, and inside the mark of the end.
@pytest.mark.parametrize("kept", [512 + 512 + 100, 3 * 512 + 10, 4 * 512, 4 * 512 + 300])
def test_a_shard_that_breaks_off_is_refused_by_name(tmp_path: Path, png: Png, kept: int) -> None:
    path = pack(tmp_path / "part-07.tar", {"1.png": png(1), "2.png": png(2)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"part-07\.tar is truncated, damaged.*after its member [12]\.png"):
        open_dataset(DataSpec(str(path)))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_plain_archive_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar is truncated, damaged or no plain tar"):
        open_dataset(DataSpec(str(tmp_path / "a.tar")))


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path, png: Png) -> None:
    path = pack(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2)})
    content = bytearray(path.read_bytes())
    content[1024:1100] = b"\xaa" * 76
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"after its member 1\.png"):
        open_dataset(DataSpec(str(path)))


def test_shards_without_pictures_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fields found are cls, wav"):
        open_dataset(DataSpec(str(pack(tmp_path / "a.tar", {"1.wav": b"", "1.cls": b"0"}))))


def test_shards_beside_pictures_are_refused(tmp_path: Path, png: Png) -> None:
    pack(tmp_path / "a.tar", {"1.png": png(1)})
    (tmp_path / "1.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="both shards"):
        open_dataset(DataSpec(str(tmp_path)))


def test_some_examples_without_a_label_are_refused(tmp_path: Path, png: Png) -> None:
    members = {"1.png": png(1), "1.cls": b"0", "2.png": png(2)}
    with pytest.raises(ValueError, match="1 of 2 pictures have no label"):
        open_dataset(DataSpec(str(pack(tmp_path / "a.tar", members))))


@pytest.mark.parametrize("damage", [b"", b"[1]", None])
def test_the_index_of_a_large_shard_is_kept_and_holds_all_of_it(
    tmp_path: Path, png: Png, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    monkeypatch.setattr(shards, "_INDEXED_BYTES", 0)
    members = {"1.png": png(1), "1.cls": b"0", "1.txt": b"one", "2.png": png(2), "2.cls": b"1", "3.cls": b"1"}
    spec = DataSpec(str(pack(tmp_path / "a.tar", members)), max_bad=0.5)
    first = open_dataset(spec)
    (index,) = (cache / "shards").iterdir()
    if damage is None:
        monkeypatch.setattr(shards, "_members", None)  # nothing reads the shard's headers again
    else:
        index.write_bytes(damage)
    assert open_dataset(spec).info == first.info


def test_a_large_shard_that_was_written_anew_is_indexed_anew(
    tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_INDEXED_BYTES", 0)
    for levels_there in ([1], [2, 3]):
        path = pack(tmp_path / "a.tar", {f"{level}.png": png(level) for level in levels_there})
        os.utime(path, ns=(len(levels_there), len(levels_there)))
        assert levels(open_dataset(DataSpec(str(path)))) == levels_there
