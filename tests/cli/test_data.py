import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli import main


@pytest.fixture
def folder(here: Path) -> Path:
    """Ten grey pictures of two classes."""
    for number in range(10):
        path = here / "photos" / ("ant" if number % 2 else "[bold]bee") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(path)
    return here / "photos"


def test_a_sound_set_ends_with_status_0_and_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder)]) == 0
    told = capsys.readouterr()
    for words in ("photos/train: 10 pictures", "8x8", "[bold]bee", "0 of 10 pictures are bad"):
        assert words in told.out
    assert "\x1b" not in told.out
    assert told.err == ""


def test_too_many_bad_pictures_end_with_status_2_and_are_all_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"ant/odd\n\xff.png")
    (folder / name).write_bytes(b"broken")
    assert main(["data", "check", str(folder)]) == 2
    told = capsys.readouterr()
    assert r"bad: ant/odd\n\xff.png: it is none of JPEG" in told.out
    assert "1 of 11 pictures are bad (9.09 %)" in told.out
    assert told.err.startswith("unfog: training would not begin: 1 of the 11 pictures of photos/train")
    assert "max_bad=0.1 " in told.err


def test_a_declared_share_of_bad_pictures_ends_with_status_0(folder: Path) -> None:
    (folder / "ant/bad.png").write_bytes(b"broken")
    assert main(["data", "check", str(folder), "--max-bad", "0.1"]) == 0


@pytest.mark.parametrize("bad", [0, 1])
def test_checking_and_training_agree_by_their_status(
    folder: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], bad: int
) -> None:
    for number in range(bad):
        (folder / f"ant/bad{number}.png").write_bytes(b"broken")
    settings = [f"data.path={folder}", "data.size=8", "data.channels=1"]
    status = main(["data", "check", str(folder), "--size", "8", "--channels", "1"])
    assert main(["train", "digits", *tiny, *settings, "--dry-run"]) == status == 2 * bad


def test_pictures_of_differing_sizes_are_refused_without_a_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (9, 8)).save(folder / "ant" / "wide.png")
    assert main(["data", "check", str(folder)]) == 2
    assert "differ in size" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--size", "8"]) == 0


def test_json_holds_what_the_tables_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ant/bad.png").write_bytes(b"")
    assert main(["data", "check", str(folder), "--json"]) == 2
    (split,) = json.loads(capsys.readouterr().out)["splits"]
    assert split["bad"] == [{"name": "ant/bad.png", "reason": "it is empty (0 bytes)"}]
    assert (split["found"], split["sizes"], split["classes"]) == (11, {"8x8": 10}, {"[bold]bee": 5, "ant": 5})
    assert "1 of the 11 pictures" in split["refusals"][0]


def test_the_range_of_floats_is_given_as_two_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(here / "a.npy", np.linspace(-1, 1, 2 * 64).reshape(2, 8, 8))
    assert main(["data", "check", "a.npy", "--value-range", "-1,1"]) == 0
    assert main(["data", "check", "a.npy", "--value-range", "0,1"]) == 2
    assert "reach from -1.0 to 1.0, outside of value_range=(0.0, 1.0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--value-range", "0"], "--value-range: expected two numbers"),
        (["--background", "whitish"], "background"),
        (["--channels", "2"], "channels"),
        (["--size", "0"], "size"),
        (["--split", "valid"], "no split 'valid'"),
        (["--max-bad", "2"], "max_bad"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["data", "check", str(folder), *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err


def test_data_that_are_nowhere_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "nowhere"]) == 2
    assert "no data set 'nowhere'" in capsys.readouterr().err
