"""Runs that are killed and resumed; kill_runner.py makes them, these tests look at what they left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unfog.training.log import TIMING, read_log


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("kill")
    script = Path(__file__).with_name("kill_runner.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_twenty_runs_were_killed_and_the_last_one_ended(runs: tuple[Path, dict[str, object]]) -> None:
    ends = runs[1]
    assert (ends["plain"], ends["finished"]) == (0, 0)
    assert ends["killed"] == [-signal.SIGKILL] * 20


def test_a_run_was_killed_at_each_of_twenty_points_of_its_saves(runs: tuple[Path, dict[str, object]]) -> None:
    assert runs[1]["saves"] == [-signal.SIGKILL] * 20 + [0]


def test_runs_killed_by_a_clock_ended_too(runs: tuple[Path, dict[str, object]]) -> None:
    timed = runs[1]["timed"]
    assert isinstance(timed, list)
    assert set(timed[:-1]) == {-signal.SIGALRM}
    assert timed[-1] == 0


@pytest.mark.parametrize("part", ["checkpoints", "ema"])
@pytest.mark.parametrize("name", ["killed", "saves", "timed"])
def test_the_files_equal_those_of_a_run_that_was_not_killed(
    tiny: ModuleType, runs: tuple[Path, dict[str, object]], name: str, part: str
) -> None:
    found, expected = (tiny.read_folder(runs[0] / run / part) for run in (name, "plain"))
    assert expected
    assert found.keys() == expected.keys()
    assert [path for path in found if found[path] != expected[path]] == []


@pytest.mark.parametrize("name", ["killed", "saves", "timed"])
def test_the_log_equals_that_of_a_run_that_was_not_killed(runs: tuple[Path, dict[str, object]], name: str) -> None:
    found, expected = (
        [{k: v for k, v in line.items() if k not in TIMING} for line in read_log(runs[0] / run / "log.jsonl")]
        for run in (name, "plain")
    )
    assert len(expected) == 40
    assert found == expected
