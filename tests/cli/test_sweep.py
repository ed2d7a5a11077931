import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from unfog.cli import main, sweep
from unfog.cli.sweep_book import writing
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig
from unfog.evaluation.sweep import Judge, measure_setting
from unfog.recipe.fitted import FittedCard, Gain, store_fitted
from unfog.recipe.run import Run
from unfog.sampling.fitted import Fitted
from unfog.sampling.gaussian import DDIM

Capture = pytest.CaptureFixture[str]
LITTLE = {"--samples": "12", "--noises": "4", "--accurate-steps": "8", "--batch-size": "12"}


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with the smallest of networks."""
    config = FeatureConfig(budget=Budget(steps=2, epochs=1, batch_size=8, width=2))
    monkeypatch.setattr(Judge, "of", staticmethod(partial(Judge.of, config=config)))


def run_sweep(run: Path, *arguments: str) -> int:
    given = {**LITTLE, **dict(zip(arguments[::2], arguments[1::2], strict=True))}
    return main(["sweep", str(run), "--out", "found", *(word for option in given.items() for word in option)])


def book() -> dict[str, object]:
    sweeps = json.loads(Path("found/sweep.json").read_text())["sweeps"]
    assert len(sweeps) == 1
    made: dict[str, object] = next(iter(sweeps.values()))
    return made


def test_a_sweep_prints_a_table_and_writes_numbers_and_a_picture(run: Path, here: Path, capsys: Capture) -> None:
    assert run_sweep(run, "--samplers", "ddim,{kind: ddim, eta: 0.5}", "--steps", "1,3", "--guidance", "1,2") == 0
    printed = capsys.readouterr()
    assert "8 settings; " in printed.err
    told = book()
    assert told["origin"]["step"] == 4  # type: ignore[index]
    found = [entry["found"] for entry in told["settings"]]  # type: ignore[attr-defined]
    assert [(p["sampler"], p["steps"], p["guidance"], p["evaluations"]) for p in found] == [
        ("ddim", 1, 1.0, 1),
        ("ddim", 3, 1.0, 3),
        ("{kind: ddim, eta: 0.5}", 1, 1.0, 1),
        ("{kind: ddim, eta: 0.5}", 3, 1.0, 3),
        ("ddim", 1, 2.0, 2),
        ("ddim", 3, 2.0, 6),
        ("{kind: ddim, eta: 0.5}", 1, 2.0, 2),
        ("{kind: ddim, eta: 0.5}", 3, 2.0, 6),
    ]
    # One step to the data injects nothing, three do.
    assert ["reason" in p["distance"] for p in found[:4]] == [False, False, False, True]
    assert set(told["accurate"]) == {"1", "2"}  # type: ignore[call-overload]
    assert Path("found/sweep.png").stat().st_size > 1000
    assert "recommended: --sampler " in printed.out
    assert told["recommended"]["found"]["sampler"] in printed.out  # type: ignore[index]
    assert not (run / "sweep").exists()


def test_what_is_known_is_not_measured_again(
    run: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def noted(*arguments: object) -> object:
        measured.append(arguments[2][0])  # type: ignore[index]
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure_setting(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "measure_setting", noted)
    assert run_sweep(run, "--samplers", "ddim,dpmpp", "--steps", "2") == 130
    assert len(book()["settings"]) == 1  # type: ignore[arg-type]
    assert run_sweep(run, "--samplers", "ddim,dpmpp", "--steps", "2") == 0
    assert "1 known from found/sweep.json" in capsys.readouterr().err
    assert measured == ["ddim", "dpmpp", "dpmpp"]
    assert run_sweep(run, "--samplers", "ddim,dpmpp", "--steps", "2") == 0
    assert len(measured) == 3


def test_other_counts_are_kept_apart(run: Path, here: Path) -> None:
    assert run_sweep(run, "--samplers", "ddim", "--steps", "1") == 0
    assert run_sweep(run, "--samplers", "ddim", "--steps", "1", "--samples", "0") == 0
    sweeps = json.loads(Path("found/sweep.json").read_text())["sweeps"].values()
    assert [len(part["settings"]) for part in sweeps] == [1, 1]
    assert [part["amount"]["samples"] for part in sweeps] == [12, 0]


def test_a_dry_run_tells_the_cost_and_writes_nothing(run: Path, here: Path, capsys: Capture) -> None:
    options = [word for option in LITTLE.items() for word in option]
    arguments = ["--samplers", "ddim,heun", "--steps", "2,3", "--dry-run", "--out", "found"]
    assert main(["sweep", str(run), *options, *arguments]) == 0
    # 12 samples with 2 + 3 + 3 + 5 evaluations, and 4 noises with 8 + 4 accurate ones.
    assert "4 settings; 204 evaluations of the network at " in capsys.readouterr().err
    assert not Path("found").exists()


def test_without_samples_the_distance_alone_is_measured_and_nothing_recommended(
    run: Path, here: Path, capsys: Capture
) -> None:
    assert run_sweep(run, "--samplers", "ddim", "--steps", "1,2", "--samples", "0") == 0
    printed = capsys.readouterr()
    assert "nothing is recommended: no setting has a Fréchet distance: no samples were asked for" in printed.out
    assert book()["floor"] is None


def test_the_same_seed_gives_the_same_distances(run: Path, here: Path) -> None:
    assert run_sweep(run, "--samplers", "ddim", "--steps", "2", "--samples", "0") == 0
    first = book()["settings"][0]["found"]["distance"]  # type: ignore[index]
    Path("found/sweep.json").unlink()
    assert run_sweep(run, "--samplers", "ddim", "--steps", "2", "--samples", "0", "--batch-size", "3") == 0
    # Another batch size may round differently.
    assert book()["settings"][0]["found"]["distance"]["value"] == pytest.approx(first["value"], rel=1e-4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samplers", "ddimm"], "did you mean ddim?"),
        (["--samplers", ""], "--samplers: expected a list such as a,b,c"),
        (["--samplers", "{kind: ddim, eta: 2}"], "eta in [0, 1]"),
        (["--steps", "4,x"], "--steps: expected whole numbers of at least 1 such as 4,6,8, got 'x'"),
        (["--steps", "0"], "--steps: expected whole numbers of at least 1 such as 4,6,8, got 0"),
        (["--guidance", "high"], "--guidance: expected numbers such as 1,2,4, got 'high'"),
        (["--grids", "karass"], "did you mean karras?"),
        (["--grids", "leading", "--steps", "2000"], "ddim on leading, 2,000 steps, guidance 1: expected at most 1000"),
        (["--noises", "1"], "noises of 0, or of at least 2"),
        (["--accurate-steps", "7"], "--accurate-steps: an even number of at least 2, got 7"),
        (["--average", "0.2"], "one of the averages"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(
    run: Path, here: Path, arguments: list[str], words: str, capsys: Capture
) -> None:
    assert run_sweep(run, "--samplers", "ddim", *arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    assert not Path("found").exists()


def test_a_fitted_sampler_goes_on_its_own_grid(run: Path, here: Path, capsys: Capture) -> None:
    shutil.copytree(run, here / "run")
    assert run_sweep(here / "run", "--samplers", "ddim,fitted", "--steps", "3", "--samples", "0") == 2
    assert "has no sampler fitted for 3 steps at guidance 1" in capsys.readouterr().err
    opened = Run.open(here / "run")
    schedule, own = opened.recipe.schedule, opened.recipe.sample
    table = Fitted.like(DDIM(), schedule, own.grid.times(schedule, 3))
    settings = replace(own, sampler=table, grid=table.grid, steps=3)
    store_fitted(opened, FittedCard.of(settings, opened.weights(), Gain(0.1, 0.2, "ddim", 4, 0, 1.0)))
    assert run_sweep(here / "run", "--samplers", "ddim,fitted", "--steps", "3", "--samples", "0") == 0
    ddim, fitted = (entry["found"] for entry in book()["settings"])  # type: ignore[attr-defined]
    assert (fitted["sampler"], fitted["grid"]) == ("fitted", "its own")
    assert fitted["distance"]["value"] == pytest.approx(ddim["distance"]["value"], rel=1e-5)
    assert run_sweep(here / "run", "--samplers", "fitted", "--grids", "karras", "--steps", "3", "--samples", "0") == 2
    assert "--grids=karras means nothing to fitted samplers alone" in capsys.readouterr().err


def test_a_file_of_something_else_is_not_written_over(run: Path, here: Path, capsys: Capture) -> None:
    Path("found").mkdir()
    Path("found/sweep.json").write_text("[1, 2]")
    assert run_sweep(run, "--samplers", "ddim", "--steps", "1") == 2
    assert "was not written by unfog sweep" in capsys.readouterr().err
    assert Path("found/sweep.json").read_text() == "[1, 2]"


def test_a_second_sweep_into_the_same_file_is_refused(run: Path, here: Path, capsys: Capture) -> None:
    with writing(Path("found/sweep.json")):
        assert run_sweep(run, "--samplers", "ddim", "--steps", "1") == 2
    assert "another sweep is writing found/sweep.json" in capsys.readouterr().err


def test_several_processes_are_refused(run: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run_sweep(run) == 2
    assert "start it without torchrun" in capsys.readouterr().err
