import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unfog.checkpoint import list_checkpoints
from unfog.cli import main
from unfog.recipe.load import load, override
from unfog.recipe.run import MANIFEST, Run
from unfog.recipes import named
from unfog.training.log import read_log

Capture = pytest.CaptureFixture[str]


def train(folder: Path, *arguments: str) -> int:
    return main(["train", "digits", "--out", str(folder), "--no-report", *arguments])


def newest(folder: Path) -> dict[str, bytes]:
    checkpoint = list_checkpoints(folder)[0]
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {f"{checkpoint.name}/{path.relative_to(checkpoint)}": path.read_bytes() for path in files}


def start_process(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start training and return once the first step is told of."""
    command = [sys.executable, "-m", "unfog", "train", "digits", "--out", str(folder), "--no-report", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("step 1/"):
            return process
    process.communicate()
    raise AssertionError(f"it ended before its first step: {told}")


def test_a_run_holds_what_is_needed_to_use_it(run: Path) -> None:
    opened = Run.open(run)
    assert opened.recipe.train.steps == 4
    assert opened.manifest.command.startswith("unfog train digits train.steps=4 ")
    assert [record["step"] for record in opened.log()] == [1, 2, 3, 4]
    assert opened.weights().step == 4


def test_progress_is_told_in_lines_on_standard_error(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert train(here / "run", *tiny) == 0
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith("step 4/4  loss ")
    for words in ("samples/s", "0:00:00 left", "of memory", "waiting for data"):
        assert words in last


def test_a_run_that_was_killed_and_resumed_ends_like_one_that_was_not(here: Path, tiny: list[str]) -> None:
    settings = [*tiny[1:], "train.steps=8"]
    process = start_process(here / "killed", *settings)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list_checkpoints(here / "killed")[0].name < "step-00000008"
    assert train(here / "killed", "--resume") == 0
    assert train(here / "whole", *settings) == 0
    assert newest(here / "killed") == newest(here / "whole")
    times = {"seconds", "waited"}
    logs = [read_log(here / name / "log.jsonl") for name in ("killed", "whole")]
    killed, whole = [[{k: v for k, v in line.items() if k not in times} for line in log] for log in logs]
    assert killed == whole


def test_a_request_to_end_saves_and_says_how_to_go_on(here: Path, tiny: list[str]) -> None:
    rare = [setting for setting in tiny if not setting.startswith(("train.steps", "save.checkpoint_every"))]
    process = start_process(here / "run", *rare, "train.steps=100000")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    last = told.splitlines()[-1]
    assert last.startswith("unfog: SIGTERM: saved after step ")
    assert last.endswith(f"go on with: unfog train digits --out {here / 'run'} --resume")
    step = int(last.split(" after step ")[1].split()[0])
    assert train(here / "run", "--resume", f"train.steps={step + 2}") == 0
    assert Run.open(here / "run").weights().step == step + 2


def test_a_dry_run_prints_a_recipe_and_starts_nothing(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert load(told) == override(named("digits"), tiny)
    assert "# network: " in told
    assert "FLOP an image" in told
    assert list(here.iterdir()) == []


def test_a_recipe_is_read_from_a_file(here: Path, tiny: list[str], capsys: Capture) -> None:
    main(["train", "digits", *tiny, "name=mine", "--dry-run"])
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "mine.yaml", "train.steps=1", "--no-report"]) == 0
    assert Run.open(Path("runs/mine")).recipe.train.steps == 1


def test_a_run_is_not_started_over_another(run: Path, tiny: list[str], capsys: Capture) -> None:
    before = newest(run)
    assert train(run, *tiny) == 2
    assert "holds a run already: continue a run with --resume, or give another folder with --out" in (
        capsys.readouterr().err
    )
    assert newest(run) == before


def test_a_finished_run_may_be_made_longer(here: Path, tiny: list[str]) -> None:
    assert train(here / "run", *tiny) == 0
    assert train(here / "run", "--resume", "train.steps=5", "save.keep=1") == 0
    assert [path.name for path in list_checkpoints(here / "run")] == ["step-00000005"]
    assert Run.open(here / "run").recipe.save.keep == 1


@pytest.mark.parametrize("setting", ["train.optimizer.lr=1", "network.dropout=0.3", "data.limit=30"])
def test_nothing_else_of_a_run_may_change_when_it_is_resumed(run: Path, setting: str, capsys: Capture) -> None:
    before = (run / "recipe.yaml").read_text()
    assert train(run, "--resume", "train.steps=9", setting) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert (run / "recipe.yaml").read_text() == before


def test_a_dry_run_of_a_resumed_run_writes_nothing(run: Path, capsys: Capture) -> None:
    before = (run / "recipe.yaml").read_text()
    assert train(run, "--resume", "train.steps=9", "--dry-run") == 0
    assert load(capsys.readouterr().out).train.steps == 9
    assert (run / "recipe.yaml").read_text() == before


def test_data_that_changed_stop_a_run_from_being_resumed(here: Path, tiny: list[str], capsys: Capture) -> None:
    pictures = np.zeros((20, 8, 8), np.uint8)
    np.save(here / "pictures.npy", pictures)
    settings = [*tiny, f"data.path={here / 'pictures.npy'}", "condition.classes=false", "data.holdout=0.5"]
    assert train(here / "run", *settings) == 0
    np.save(here / "pictures.npy", pictures + 1)
    assert train(here / "run", "--resume") == 2
    assert "have changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], "did you mean digits?"),
        (["missing.yaml"], "there is no file missing.yaml"),
        (["digits", "train.lr=1"], "train.lr: there is no such setting; did you mean train.optimizer.lr?"),
        (["digits", "train.steps=1.5"], "train.steps: expected a whole number, got 1.5"),
        (["digits", "data.path=digts"], "digts"),
        (["digits", "--resume"], "there is no run in runs/digits to resume"),
        (["digits", "network.widths=[30, 30]"], "network.head_dim: head_dim 32 does not divide width 30"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    arguments: list[str], words: str, here: Path, capsys: Capture
) -> None:
    assert main(["train", *arguments]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert list(here.iterdir()) == []


def test_a_run_is_resumed_with_its_own_recipe_only(run: Path, capsys: Capture) -> None:
    assert main(["train", "mnist", "--out", str(run), "--resume"]) == 2
    assert "is of the recipe 'digits', not 'mnist'" in capsys.readouterr().err


def test_a_broken_recipe_file_is_named(here: Path, capsys: Capture) -> None:
    (here / "mine.yaml").write_text("name: x\n")
    assert main(["train", "mine.yaml"]) == 2
    assert capsys.readouterr().err.startswith("unfog: mine.yaml is not a recipe: description: missing")


def test_a_loss_that_is_not_finite_ends_with_its_reason(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert train(here / "run", *tiny, "train.optimizer.lr=1e30", "train.optimizer.warmup_examples=0") == 1
    assert "had a loss or gradient that is not finite" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(
    here: Path, tiny: list[str], capsys: Capture
) -> None:
    assert train(here / "run", *tiny) == 0
    path = list_checkpoints(here / "run")[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["sample", str(here / "run"), "-n", "1", "--average", "last"]) == 0
    assert "unfog: warning: using the checkpoint step-00000003" in capsys.readouterr().err


def test_the_manifest_names_data_and_versions(run: Path) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    assert manifest["data"]["name"] == "digits/train"
    assert manifest["data"]["count"] == 40
    assert {"unfog", "torch", "python", "created"} <= manifest.keys()
