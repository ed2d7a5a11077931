import json
from pathlib import Path
from typing import Any

import pytest

from unfog.cli import environment, main
from unfog.data.dataset import ArrayDataset
from unfog.recipe import soundness

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what starts processes, and what depends on this machine's disk and load."""
    whole = environment._gradient(slice(None)).tolist()
    monkeypatch.setattr(environment, "_gradient_of_two", lambda folder: whole)
    monkeypatch.setattr(environment, "WRITTEN", 1 << 16)
    monkeypatch.setattr(environment, "SLOWEST_DISK", 0.0)
    monkeypatch.setattr(environment, "LEAST_DISK", 0)
    monkeypatch.setattr(environment, "LEAST_MEMORY", 0)


def checks(told: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(told)["checks"]}


def test_a_sound_machine_passes(here: Path, capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("versions", "processor", "memory", "disk", "threads", "one-batch overfit", "seeds", "stop, resume"):
        assert any(line.startswith(f"pass  {name}: ") for line in lines), name
    assert lines[-1].startswith("all 19 checks passed or were skipped, in ")
    assert [path.name for path in here.iterdir()] == ["cache"]


def test_a_fault_ends_with_status_1_and_advice(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "BFLOAT16", 1e-9)
    monkeypatch.setattr(environment, "check_threads", lambda: 1 / 0)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert [line.split(": ")[0] for line in failed] == ["FAIL  threads", "FAIL  bfloat16 against float32"]
    assert lines[lines.index(failed[1]) + 1].strip().startswith("kernels here are less precise")
    assert lines[-1].startswith("2 of 19 failed")


def test_a_recipe_is_checked_with_its_own_network_and_data(here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["train", "digits", *tiny, "--dry-run"]) == 0
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["doctor", "--recipe", "mine.yaml", "--json"]) == 0
    told = checks(capsys.readouterr().out)
    assert told["save, load, sample"]["outcome"] == "pass"
    assert told["compiled against plain"]["outcome"] == "skip"


def test_a_recipe_without_its_data_fails(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFOG_DATA", str(here))
    assert main(["doctor", "--recipe", "mnist-small", "--json"]) == 1
    told = checks(capsys.readouterr().out)
    assert told["data"]["outcome"] == told["training"]["outcome"] == "fail"
    assert "one-batch overfit" not in told


def test_an_unknown_recipe_is_refused(capsys: Capture) -> None:
    assert main(["doctor", "--recipe", "mnist-smal"]) == 2
    assert "did you mean mnist-small?" in capsys.readouterr().err


def test_the_built_in_pictures_need_no_library() -> None:
    from unfog.cli.doctor import _rectangles

    made = _rectangles()
    assert isinstance(made, ArrayDataset)
    assert made.info.classes is not None
    assert len(made.info.classes) == 10
