import json
from pathlib import Path

import pytest

from unfog.cli import guidance, main
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig, feature_extractor

Capture = pytest.CaptureFixture[str]
FEW = ["--samples", "12", "--steps", "1", "--out", "found"]


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge with the smallest of networks."""
    config = FeatureConfig(budget=Budget(steps=2, epochs=1, batch_size=8, width=2))

    def little(dataset: object, cache: Path, config_given: object = None, *, device: object = "cpu") -> object:
        return feature_extractor(dataset, cache, config, device=device)  # type: ignore[arg-type]

    monkeypatch.setattr(guidance, "feature_extractor", little)


def test_the_curve_is_measured_written_and_drawn(run: Path, here: Path, capsys: Capture) -> None:
    assert main(["guidance", str(run), "--scales", "3,1", *FEW]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-3:] == ["found/guidance.json", "found/guidance.png", "found/guidance.svg"]
    assert told.err.index("scale 1:") < told.err.index("scale 3:")
    assert sorted(path.name for path in Path("found").iterdir()) == ["guidance.json", "guidance.png", "guidance.svg"]


def test_scales_that_are_known_are_not_measured_again(
    run: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def noting(*arguments: object) -> object:
        measured.append(arguments[3])
        return original(*arguments)  # type: ignore[arg-type]

    original = guidance.measure_scale
    monkeypatch.setattr(guidance, "measure_scale", noting)
    assert main(["guidance", str(run), "--scales", "1,2", *FEW]) == 0
    assert main(["guidance", str(run), "--scales", "1,2,3", *FEW]) == 0
    assert [one.guidance for one in measured] == [1, 2, 3]  # type: ignore[attr-defined]
    assert main(["guidance", str(run), "--scales", "2", "--interval", "0.2,3", *FEW]) == 0
    assert measured[-1].interval == (0.2, 3)  # type: ignore[attr-defined]
    assert main(["guidance", str(run), "--scales", "2", "--seed", "1", *FEW]) == 0
    assert len(measured) == 5
    assert len(json.loads(Path("found/guidance.json").read_text())["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scales", "1,x"], "--scales: expected numbers"),
        (["--guidance", "2"], "give the scales of guidance with --scales"),
        (["--samples", "9"], "--samples: at least 10, got 9"),
        (["--interval", "3,1"], "an interval of noise levels"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Path, here: Path, arguments: list[str], words: str, capsys: Capture
) -> None:
    assert main(["guidance", str(run), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (run / "guidance").exists()


def test_a_file_that_is_something_else_is_refused(run: Path, here: Path, capsys: Capture) -> None:
    Path("found").mkdir()
    Path("found/guidance.json").write_text("[1")
    assert main(["guidance", str(run), "--scales", "1,2", *FEW]) == 2
    assert "delete it, or give --out" in capsys.readouterr().err
