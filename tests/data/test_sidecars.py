import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset

Save = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def captions(dataset: ArrayDataset) -> list[str | None]:
    return dataset.captions(np.arange(len(dataset)))


def labels(dataset: ArrayDataset) -> list[int]:
    return dataset.gather(np.arange(len(dataset)))["label"].tolist()


def jsonl(path: Path, *rows: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_text_beside_a_picture_is_its_caption(save: Save, folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(name, 1)
    (folder / "a.txt").write_text("\ufeffa grüne Katze\n", encoding="utf-8")
    (folder / "c.txt").write_text("")
    dataset = open_dataset(DataSpec(str(folder)))
    assert captions(dataset) == ["a grüne Katze", None, ""]
    assert (dataset.info.captioned, dataset.info.notices) == (2, ())


def test_captions_stay_with_their_pictures_where_one_is_left_out(save: Save, folder: Path) -> None:
    for level, name in enumerate("abc"):
        save(f"{name}.png", level)
        (folder / f"{name}.txt").write_text(f"caption of {name}")
    (folder / "b.png").write_bytes(b"broken")
    dataset = open_dataset(DataSpec(str(folder), max_bad=0.5))
    assert captions(dataset) == ["caption of a", "caption of c"]


def test_a_caption_that_is_no_text_makes_its_picture_a_bad_one(save: Save, folder: Path) -> None:
    for level, name in enumerate("ab"):
        save(f"{name}.png", level)
        (folder / f"{name}.txt").write_bytes(b"caption \xff"[: 8 + level])
    for _ in ("decoded", "from the cache"):
        dataset = open_dataset(DataSpec(str(folder), max_bad=0.5))
        assert [skipped.name for skipped in dataset.info.report.skipped] == ["b.png"]
        assert "b.txt is not UTF-8" in dataset.info.report.skipped[0].reason
        assert captions(dataset) == ["caption"]


def test_a_changed_caption_changes_the_fingerprint_and_decodes_nothing(save: Save, folder: Path, cache: Path) -> None:
    save("a.png", 1)
    found = []
    for text in ("one", "two"):
        (folder / "a.txt").write_text(text)
        found.append(open_dataset(DataSpec(str(folder))).info.fingerprint)
    assert found[0] != found[1]
    assert len(list((cache / "data").iterdir())) == 1


@pytest.mark.parametrize("name", ["text", "caption"])
def test_a_list_gives_captions_and_labels(save: Save, folder: Path, name: str) -> None:
    save("a.png", 1)
    save("b.png", 2)
    rows = {"file_name": "b.png", name: "a bee", "label": 1}, {"file_name": "a.png", name: "an ant", "label": 0}
    jsonl(folder / "metadata.jsonl", *rows)
    dataset = open_dataset(DataSpec(str(folder)))
    assert (captions(dataset), labels(dataset)) == (["an ant", "a bee"], [0, 1])
    assert dataset.info.classes == ("0", "1")
    assert dataset.info.notices == ()


def test_a_list_may_be_csv(save: Save, folder: Path) -> None:
    save("a.png", 1)
    save("b.png", 2)
    (folder / "metadata.csv").write_text('file_name,text,label\na.png,"an ant, red",2\nb.png,"two\nlines",0\n')
    dataset = open_dataset(DataSpec(str(folder)))
    assert (captions(dataset), labels(dataset)) == (["an ant, red", "two\nlines"], [2, 0])


def test_labels_of_a_list_may_be_text_and_count_more_than_folders(save: Save, folder: Path) -> None:
    save("one/a.png", 1)
    save("two/b.png", 2)
    jsonl(folder / "metadata.jsonl", {"file_name": "one/a.png", "label": "x"}, {"file_name": "two/b.png", "label": "w"})
    dataset = open_dataset(DataSpec(str(folder)))
    assert (labels(dataset), dataset.info.classes) == ([1, 0], ("w", "x"))


def test_folders_stay_classes_where_a_list_has_captions_alone(save: Save, folder: Path) -> None:
    save("one/a.png", 1)
    save("two/b.png", 2)
    jsonl(folder / "one" / "metadata.jsonl", {"file_name": "a.png", "text": "an ant"})
    dataset = open_dataset(DataSpec(str(folder)))
    assert (labels(dataset), dataset.info.classes, captions(dataset)) == ([0, 1], ("one", "two"), ["an ant", None])


def test_a_list_may_lie_above_the_splits(save: Save, folder: Path) -> None:
    save("train/a.png", 1)
    save("test/b.png", 2)
    rows = {"file_name": "train/a.png", "label": "ant"}, {"file_name": "test/b.png", "label": "bee"}
    jsonl(folder / "metadata.jsonl", *rows)
    dataset = open_dataset(DataSpec(str(folder), "test"))
    assert (labels(dataset), dataset.info.classes, len(dataset)) == ([1], ("ant", "bee"), 1)


def test_what_a_list_names_and_nobody_finds_is_a_bad_picture(save: Save, folder: Path) -> None:
    save("a.png", 1)
    jsonl(folder / "metadata.jsonl", {"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y"})
    (skipped,) = open_dataset(DataSpec(str(folder), max_bad=0.5)).info.report.skipped
    assert skipped == ("b.png", "there is no such file")


def test_a_picture_without_a_label_among_others_is_refused(save: Save, folder: Path) -> None:
    save("a.png", 1)
    save("b.png", 2)
    jsonl(folder / "metadata.jsonl", {"file_name": "a.png", "label": 0})
    with pytest.raises(ValueError, match=r"b\.png has no label in metadata\.jsonl"):
        open_dataset(DataSpec(str(folder)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png"}\n{broken\n', "line 2 is no JSON"),
        ("metadata.jsonl", b"[1]\n", "no JSON object"),
        ("metadata.jsonl", b'{"name": "a.png"}\n', "has no file_name; its columns are name"),
        ("metadata.jsonl", b'{"file_name": "a.png"}\n{"file_name": "a.png"}\n', "lists a.png again"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}\n', "must be text"),
        ("metadata.jsonl", b"\xff\xfe", "not UTF-8"),
        ("metadata.csv", b'file_name,text\n"a.png,x\n', r"metadata\.csv, line \d: unexpected end"),
        ("metadata.csv", b"name,text\na.png,x\n", "has no file_name"),
    ],
)
def test_a_broken_list_is_refused_by_its_place(save: Save, folder: Path, name: str, content: bytes, words: str) -> None:
    save("a.png", 1)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_dataset(DataSpec(str(folder)))


def test_two_captions_of_one_picture_are_refused(save: Save, folder: Path) -> None:
    save("a.png", 1)
    (folder / "a.txt").write_text("one")
    jsonl(folder / "metadata.jsonl", {"file_name": "a.png", "text": "two"})
    with pytest.raises(ValueError, match=r"a caption in a\.txt and another in metadata\.jsonl"):
        open_dataset(DataSpec(str(folder)))
