"""One hundred random kills, by the clock, at changes on the disk and within saves: not a bit may differ.

``RUNNERS`` lists the programs that kill; each is called with a folder, leaves ``plain/`` and ``killed-0/``,
``killed-1/``, ... there, and prints how many were killed, by their kind. Runs of several processes belong in this list.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unfog.training.log import TIMING, read_log

RUNNERS = {"one process": [str(Path(__file__).parents[1] / "training" / "kill_runner.py"), "hundred"]}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RUNNERS)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hundred")
    script, *arguments = RUNNERS[request.param]
    done = subprocess.run(
        [sys.executable, script, str(folder), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    kept = {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("checkpoints", "ema", "failures")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }
    log = [{k: v for k, v in line.items() if k not in TIMING} for line in read_log(folder / "log.jsonl")]
    return {**kept, "log.jsonl": json.dumps(log).encode()}


def test_one_hundred_were_killed_in_every_way(killed: tuple[Path, dict[str, Any]]) -> None:
    kills = killed[1]["kills"]
    assert sum(kills.values()) == 100
    assert min(kills.values()) >= 10


def test_not_a_bit_differs_from_the_run_that_was_left_alone(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, told = killed
    expected = contents(folder / "plain")
    for number in range(told["rounds"]):
        found = contents(folder / f"killed-{number}")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
