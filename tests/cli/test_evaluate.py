import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from unfog.cli import evaluate, main
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig
from unfog.evaluation.measure import Effort, measure

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Measure with the smallest of networks."""
    budget = Budget(steps=2, epochs=1, batch_size=8, width=2)
    effort = Effort(FeatureConfig(budget=budget), budget, resamples=20, loss_examples=8)
    little = partial(measure, effort=effort)
    monkeypatch.setattr(evaluate, "measure", little)
    return little


def test_training_ends_with_a_report(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "evaluation.samples=30", "--out", "run"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "run/report.html"
    assert "precision" in told
    page = Path("run/report.html").read_text()
    assert "unfog train digits train.steps=4" in page
    assert "learning rate" in page.lower()
    numbers = json.loads(Path("run/evaluation.json").read_text())
    assert numbers["samples"] == 30
    assert numbers["origin"]["step"] == 4
    assert numbers["machine"]["torch"]
    assert "measuring" not in told + page.split("<h3>Machine</h3>")[1].split("</dl>")[0]
    manifest = json.loads(Path("run/manifest.json").read_text())
    manifest["machine"]["threads"] = "64"
    Path("run/manifest.json").write_text(json.dumps(manifest))
    assert main(["evaluate", "run", "--samples", "10"]) == 0
    page = Path("run/report.html").read_text()
    assert "threads, measuring" in page
    assert "torch, measuring" not in page


def test_what_samples_show_of_what_was_asked_for_is_printed_and_reported(here: Path, capsys: Capture) -> None:
    small = ["network.dim=16", "network.depth=1", "network.heads=2", "train.steps=2", "train.batch_size=8"]
    data = ["data.path=shapes:train=40,test=20", "evaluation.samples=20", "sample.steps=2"]
    assert main(["train", "shapes-small", *small, *data, "--out", "run"]) == 0
    told = capsys.readouterr()
    page = Path("run/report.html").read_text()
    errors = json.loads(Path("run/evaluation.json").read_text())["adherence"]["reading_error"]
    for text in ("all attributes", "all, 1 object", "binding of two objects", "colour 1"):
        assert text in told.out
        assert text in page
    for name in errors:
        assert name in told.err
        assert name in page


def test_a_run_is_measured_again_with_other_settings(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "--out", "run", "--no-report"]) == 0
    arguments = ["--samples", "20", "--guidance", "2", "--steps", "2", "--sampler", "ddim", "--average", "last"]
    assert main(["evaluate", "run", *arguments]) == 0
    numbers = json.loads(Path("run/evaluation.json").read_text())
    assert numbers["samples"] == 20
    assert numbers["guidance"] == 2
    assert numbers["origin"]["weights"] == "model"
    assert "DDIM" in numbers["settings"]


def test_few_samples_leave_out_the_distance_and_say_so(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "--out", "run", "--no-report"]) == 0
    assert main(["evaluate", "run", "--samples", "4", "--steps", "1"]) == 0
    printed = capsys.readouterr()
    reason = json.loads(Path("run/evaluation.json").read_text())["scores"]["samples"]["frechet"]["reason"]
    assert "of samples there are 4" in reason
    assert f"left out: Fréchet distance and Fréchet distance at infinite counts: {reason}" in printed.err
    assert reason in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "0"], "samples of at least 1, got 0"),
        (["--sampler", "ddimm"], "did you mean ddim?"),
        (["--average", "0.2"], "one of the averages"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Path, arguments: list[str], words: str, capsys: Capture) -> None:
    assert main(["evaluate", str(run), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_a_run_that_has_saved_nothing_cannot_be_measured(run: Path, here: Path, capsys: Capture) -> None:
    (here / "new").mkdir()
    for name in ("recipe.yaml", "manifest.json"):
        (here / "new" / name).write_bytes((run / name).read_bytes())
    assert main(["evaluate", "new"]) == 2
    assert "no checkpoint in new" in capsys.readouterr().err
