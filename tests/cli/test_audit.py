import json
from pathlib import Path

import pytest

from unfog.cli import audit, main
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig, feature_extractor

Capture = pytest.CaptureFixture[str]
FEW = ["--samples", "20", "--steps", "2"]


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge with the smallest of networks."""
    config = FeatureConfig(budget=Budget(steps=2, epochs=1, batch_size=8, width=2))

    def little(dataset: object, cache: Path, config_given: object = None, *, device: object = "cpu") -> object:
        return feature_extractor(dataset, cache, config, device=device)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "feature_extractor", little)


def test_an_audit_writes_numbers_and_a_page(run: Path, here: Path, capsys: Capture) -> None:
    assert main(["audit", str(run), *FEW, "--level", "0.5", "--out", "found"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-2:] == ["found/audit.json", "found/audit.html"]
    assert "by pictures:" in told.out
    numbers = json.loads(Path("found/audit.json").read_text())
    assert numbers["memorisation"]["samples"] == 20
    assert len(numbers["bias"]["attributes"][0]["values"]) == 10
    assert (
        f"unfog audit {run} --samples 20 --level 0.5 --seed 0 --steps 2 --out found"
        in Path("found/audit.html").read_text()
    )


def test_either_part_is_done_alone(run: Path, here: Path, capsys: Capture) -> None:
    assert main(["audit", str(run), *FEW, "--bias", "--out", "bias"]) == 0
    assert json.loads(Path("bias/audit.json").read_text())["memorisation"] == {"reason": "it was not asked for"}
    assert main(["audit", str(run), *FEW, "--memorisation", "--features", "--level", "0.5", "--out", "copies"]) == 0
    numbers = json.loads(Path("copies/audit.json").read_text())
    assert numbers["bias"] == {"reason": "it was not asked for"}
    assert len(numbers["memorisation"]["views"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "1"], "--samples: at least 2, got 1"),
        (["--bias", "--features"], "give --memorisation with it"),
        (["--bias", "--level", "0.2"], "--level is that of near-copies: give --memorisation with it"),
        (["--level", "0.0001", "--steps", "1", "--samples", "2"], "held-out examples or more"),
        (["--level", "2"], "strictly between 0 and 1; got 2"),
        (["--sampler", "ddimm"], "did you mean ddim?"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    run: Path, here: Path, arguments: list[str], words: str, capsys: Capture
) -> None:
    assert main(["audit", str(run), *arguments, "--out", "found"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "drawing" not in told  # it is refused before anything is drawn
    assert not Path("found/audit.json").exists()


def test_guidance_of_a_model_that_is_told_nothing_is_refused(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "condition.classes=false", "--out", "plain", "--no-report"]) == 0
    assert main(["audit", "plain", *FEW, "--bias", "--guidance", "3", "--out", "found"]) == 2
    assert "expected a guidance scale of 1, got 3.0" in capsys.readouterr().err
    assert main(["audit", "plain", *FEW, "--bias", "--out", "found"]) == 0
