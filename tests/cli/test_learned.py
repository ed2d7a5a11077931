"""A schedule that is learned, from training to sampling, by the command line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unfog.checkpoint import list_checkpoints
from unfog.cli import main
from unfog.diffusion.curves import Spline
from unfog.recipe.run import Run

Capture = pytest.CaptureFixture[str]
SETTINGS = ["schedule={kind: learned, parts: 8}", "sample.grid=trailing"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run with a learned schedule, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "learned"
    assert main(["train", "digits", *tiny, *SETTINGS, "--out", str(folder), "--no-report"]) == 0
    return folder


def test_the_schedule_is_learned_averaged_and_saved_with_the_network(learned: Path) -> None:
    newest = list_checkpoints(learned)[0]
    for group in ("model", "ema-0.050"):
        tensors = load_file(newest / f"{group}.safetensors")
        assert tensors["learner.logits"].abs().max() > 0
        assert tensors["learner.ends"].tolist() != pytest.approx([13.3, -5.0], abs=1e-7)


def test_the_log_has_the_bound_and_its_parts(learned: Path) -> None:
    last = Run.open(learned).log()[-1]
    parts = last["parts"]
    assert isinstance(parts, dict)
    total = sum(float(str(parts[name])) for name in ("diffusion", "prior", "reconstruction"))
    assert total == pytest.approx(last["loss"])
    assert parts["log_snr_max"] != parts["log_snr_min"]


def test_samples_are_drawn_with_the_schedule_that_was_learned(learned: Path, here: Path) -> None:
    pipeline = Run.open(learned).pipeline()
    schedule = pipeline.denoiser.process.schedule
    assert isinstance(schedule, Spline)
    assert schedule.log_snr_max != 13.3
    assert main(["sample", str(learned), "-n", "2", "--steps", "2", "--out", "drawn"]) == 0
    assert Path("drawn/000001.png").exists()


def test_what_was_learned_is_shown(learned: Path, capsys: Capture) -> None:
    assert main(["inspect", "schedule", str(learned)]) == 0
    assert "spline(log_snr_max=13." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("weight=min_snr", "expected weight=constant with schedule=learned"),
        ("times=log_normal", "the schedule itself learns how often each noise level is drawn"),
        ("train.parallel=shard", "expected train.parallel=replicate with schedule=learned"),
        ("schedule={kind: shifted, schedule: learned, scale: 0.5}", "a shifted one would not be learned"),
        ("schedule={kind: learned, log_snr_max: -9}", "log_snr_min < log_snr_max"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(setting: str, told: str, tiny: list[str], capsys: Capture) -> None:
    chosen = [setting] if setting.startswith("schedule=") else ["schedule=learned", setting]
    assert main(["train", "digits", *tiny, *chosen, "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_the_bound_of_a_run_is_printed_and_stored(learned: Path, here: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(learned), "--bound", "4", "--seed", "5"]) == 0
    stored = json.loads((learned / "bound.json").read_text())
    assert (stored["count"], stored["seed"], stored["dimensions"]) == (4, 5, 64)
    assert [bound["method"] for bound in stored["bounds"]] == ["continuous time", "posterior variance", "beta variance"]
    total = stored["bounds"][0]["total"]
    assert total["low"] < total["value"] < total["high"]
    assert stored["origin"]["step"] == 4
    told = capsys.readouterr().out
    assert "4 examples of digits/test, 64 dimensions, given label, 32 times each, seed 5" in told
    assert f"{total['value']:.4g}" in told
    assert not (learned / "report.html").exists()


def test_the_likelihood_of_a_run_is_printed_and_stored(learned: Path, here: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(learned), "--likelihood", "2", "--seed", "5"]) == 0
    stored = json.loads((learned / "likelihood.json").read_text())
    assert (stored["count"], stored["effort"]["seed"], stored["dimensions"]) == (2, 5, 64)
    assert f"{stored['bits']['value']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--bound", "4", "--likelihood", "4"], "two measurements"),
        (["--likelihood", "1"], "at least 2 examples"),
        (["--likelihood", "4", "--steps", "9"], "--likelihood draws no samples, so --steps means nothing"),
        (["--bound", "1"], "at least 2 examples"),
        (["--bound", "4", "--samples", "9"], "--bound draws no samples, so --samples means nothing"),
        (["--bound", "4", "--guidance-w", "1"], "so --guidance-w means nothing"),
        (["--bound", "4", "--features", "inception"], "so --features means nothing"),
        (["--likelihood", "4", "--weights", "x.pth"], "so --weights means nothing"),
        (["--bound", "4", "--average", "0.2"], "one of the averages"),
    ],
)
def test_what_cannot_be_bounded_is_refused(arguments: list[str], told: str, learned: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(learned), *arguments]) == 2
    assert told in capsys.readouterr().err
