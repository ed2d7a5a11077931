"""What the command line says when a run goes wrong: one message, and a status that scripts can rely on."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from unfog.checkpoint import list_checkpoints, load_checkpoint, read_checkpoint
from unfog.cli import main
from unfog.recipe.run import RECIPE
from unfog.training.lock import RunLock
from unfog.training.log import read_log

TINY = [
    "train.steps=4",
    "train.batch_size=8",
    "network.widths=[32]",
    "network.blocks=[0]",
    "network.attention=[]",
    "network.middle_attention=false",
    "data.limit=40",
    "save.checkpoint_every=1",
    "save.log_every=1",
]
Capture = pytest.CaptureFixture[str]

# Warnings are printed here, as they are for users; elsewhere in the tests they are errors.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def train(folder: Path, *arguments: str) -> int:
    return main(["train", "digits", "--out", str(folder), "--no-report", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(folder, *TINY) == 0
    return folder


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    shutil.copytree(trained, here / "run")
    return here / "run"


def message(capsys: Capture) -> str:
    """Return the one line that an error is."""
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("unfog: ")
    return last.removeprefix("unfog: ")


def test_bad_steps_are_told_one_by_one_and_the_third_ends_with_status_1(here: Path, capsys: Capture) -> None:
    assert train(here / "run", *TINY, "train.optimizer.lr=1e30", "train.optimizer.warmup_examples=0") == 1
    lines = capsys.readouterr().err.splitlines()
    warned = [line for line in lines if line.startswith("unfog: warning: not applied: ")]
    assert [re.search(r"in step (\d)", line)[1] for line in warned] == ["2", "3"]  # type: ignore[index]
    assert "log-SNR" in warned[0]
    assert lines[-1].startswith("unfog: 3 steps in a row, up to step 4, had a loss or gradient that is not finite")
    assert max(path.name for path in (here / "run" / "failures").iterdir()) == "step-00000004.json"
    assert read_log(here / "run" / "log.jsonl")[-1]["step"] == 4
    assert read_checkpoint(here / "run").numbers["skipped"] == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="paths of handles are looked up in /proc")
def test_a_full_disk_ends_with_how_to_go_on(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        if "step-00000003" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert train(here / "run", *TINY) == 1
    told = message(capsys)
    assert "could not be written: No space left on device (" in told
    assert told.endswith(f"go on from the last checkpoint with: unfog train digits --out {here / 'run'} --resume")
    monkeypatch.setattr(os, "fsync", real)
    assert train(here / "run", "--resume") == 0
    assert read_checkpoint(here / "run").step == 4


def test_a_second_trainer_is_told_who_the_first_is(run: Path, capsys: Capture) -> None:
    recipe = (run / RECIPE).read_bytes()
    with RunLock(run):
        assert train(run, "--resume", "train.steps=6") == 2
    assert f"is being trained in already, by process {os.getpid()} on " in message(capsys)
    assert (run / RECIPE).read_bytes() == recipe  # the first one's recipe is not touched


def test_a_longer_run_says_how_the_rate_changes(run: Path, capsys: Capture) -> None:
    assert train(run, "--resume", "train.steps=8") == 0
    told = re.search(r"8 steps instead of 4: from step 5 on .* goes from (\S+) to (\S+) there", capsys.readouterr().err)
    assert told is not None
    rates = {line["step"]: line["lr"] for line in read_log(run / "log.jsonl")}
    assert (told[1], told[2]) == (f"{rates[4]:.3g}", f"{rates[5]:.3g}")


def test_resuming_with_the_same_length_says_nothing_of_the_rate(run: Path, capsys: Capture) -> None:
    assert train(run, "--resume") == 0
    assert "learning rate" not in capsys.readouterr().err


def test_a_shorter_run_is_refused_and_its_recipe_kept(run: Path, capsys: Capture) -> None:
    recipe = (run / RECIPE).read_bytes()
    assert train(run, "--resume", "train.steps=3") == 2
    assert "at least the 4 steps that " in message(capsys)
    assert (run / RECIPE).read_bytes() == recipe


@pytest.mark.parametrize("setting", ["train.seed=1", "train.batch_size=4", "schedule=rectified_flow", "data.flip=true"])
def test_another_setting_is_refused_on_resuming(run: Path, setting: str, capsys: Capture) -> None:
    assert train(run, "--resume", setting) == 2
    told = message(capsys)
    assert "a run that is resumed keeps its recipe, save train.steps, " in told
    assert f"; {setting.partition('=')[0]} would change: start another run for that, or leave it out" in told


def test_a_recipe_that_was_changed_by_hand_does_not_get_the_checkpoints_of_the_old(run: Path, capsys: Capture) -> None:
    text = (run / RECIPE).read_text()
    assert "\n    lr: " in text
    (run / RECIPE).write_text(re.sub(r"\n    lr: .*", "\n    lr: 0.5", text))
    for command in (["train", "digits", "--out", str(run), "--resume", "--no-report"], ["sample", str(run), "-n", "1"]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "unfog: the checkpoint is of a run with other settings" in told
        assert re.search(r"\n  train.optimizer.lr: \S+ there, 0.5 here\n$", told)


def test_checkpoints_of_another_run_are_refused(run: Path, here: Path, capsys: Capture) -> None:
    assert train(here / "other", *TINY, "schedule=rectified_flow") == 0
    capsys.readouterr()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(here / "other" / "checkpoints", run / "checkpoints")
    assert main(["sample", str(run), "-n", "1"]) == 2
    assert "\n  schedule.kind: 'rectified_flow' there, 'cosine' here\n" in capsys.readouterr().err


def test_sampling_from_a_damaged_run_names_the_file_and_uses_the_previous_checkpoint(
    run: Path, capsys: Capture
) -> None:
    (list_checkpoints(run)[0] / "ema-0.050.safetensors").write_bytes(b"\x80\x04pickle")
    assert main(["sample", str(run), "-n", "1", "--steps", "2"]) == 0
    told = capsys.readouterr().err
    assert "unfog: warning: using the checkpoint step-00000003 of " in told
    assert "step-00000004/ema-0.050.safetensors has 8 bytes; the manifest says" in told
    assert "from step 3 (ema-0.050)" in told


def test_sampling_from_a_run_that_is_damaged_throughout_ends_with_status_2(run: Path, capsys: Capture) -> None:
    for path in list_checkpoints(run):
        (path / "manifest.json").unlink()
    assert main(["sample", str(run), "-n", "1"]) == 2
    assert "unfog: no whole checkpoint in " in capsys.readouterr().err


def test_a_recipe_with_python_in_it_ends_with_status_2(run: Path, capsys: Capture) -> None:
    (run / RECIPE).write_text("name: !!python/object/apply:os.system ['touch mark']\n")
    assert train(run, "--resume") == 2
    assert f"{RECIPE} is damaged: " in message(capsys)
    assert not Path("mark").exists()


def test_a_checkpoint_says_of_which_settings_it_is(run: Path) -> None:
    settings = load_checkpoint(list_checkpoints(run)[0], ()).numbers["settings"]
    assert isinstance(settings, dict)
    assert sorted(settings) == [
        *(
            "augmentation",
            "condition",
            "coupling",
            "data",
            "energy",
            "network",
            "parameterization",
            "schedule",
            "times",
        ),
        *("train", "variance", "weight"),
    ]
    assert "steps" not in json.dumps(settings["train"])
