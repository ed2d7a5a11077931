import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.campaign.jobs import Equal, Scored, System, queue
from benchmarks.campaign.queue import BusyError, chosen, lock, missing, run_queue
from benchmarks.campaign.record import ROOT, Places

CORE = min(os.sched_getaffinity(0))
WRITE = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True, exist_ok=True); "

QUEUE_OF_ONE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from benchmarks.campaign.queue import run_queue
from benchmarks.campaign.record import Places

records, work, began, core = sys.argv[1:]
code = "import os, signal, sys; open(sys.argv[1], 'w').write(str(os.getpid())); signal.pause()"
job = SimpleNamespace(id="a", needs=(), minutes=0)
command = [sys.executable, "-S", "-c", code, began]
try:
    run_queue([job], lambda job: command, Places(Path(records), Path(work)), [int(core)])
except KeyboardInterrupt:
    sys.exit(130)
"""


@dataclass(frozen=True)
class Fake:
    id: str
    needs: tuple[str, ...] = ()
    minutes: float = 0.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "records", tmp_path / "work")


def program(code: str, places: Places) -> Callable[[Fake], Sequence[str]]:
    """A command that runs code with the path of the job's record, ``p``; -S starts Python without site-packages."""
    return lambda job: [sys.executable, "-S", "-c", WRITE + code, str(places.record(job.id))]


def test_jobs_are_run_in_order_and_only_once(places: Places, tmp_path: Path) -> None:
    jobs = [Fake("a/1"), Fake("a/2"), Fake("b")]
    note = program(f"p.write_text('{{}}'); open({str(tmp_path / 'order')!r}, 'a').write(p.stem + ' ')", places)
    assert run_queue(jobs[:2], note, places, [CORE]) == []
    assert run_queue(jobs, note, places, [CORE]) == []
    assert (tmp_path / "order").read_text() == "1 2 b "


def test_a_job_killed_in_the_middle_leaves_no_record_and_is_done_by_the_next_run(places: Places) -> None:
    job = Fake("long")
    killed = program("import os; open(p.parent / 'half', 'w').write('half'); os.kill(os.getpid(), 9)", places)
    assert run_queue([job], killed, places, [CORE]) == ["long"]
    assert missing([job], places) == [job]
    assert run_queue([job], program("p.write_text('{}')", places), places, [CORE]) == []
    assert missing([job], places) == []


def test_a_job_that_fails_does_not_stop_those_after_it(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    code = "sys.exit('no such data') if p.stem == 'bad' else p.write_text('{}')"
    assert run_queue([Fake("bad"), Fake("good")], program(code, places), places, [CORE]) == ["bad"]
    assert missing([Fake("good")], places) == []
    assert "no such data" in capsys.readouterr().out


def test_a_job_waits_for_what_it_needs(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Fake("first"), Fake("second", needs=("first",))
    write = program("p.write_text('{}')", places)
    assert run_queue([second], write, places, [CORE]) == ["second"]
    assert "second: waits for first" in capsys.readouterr().out
    assert run_queue([first, second], write, places, [CORE]) == []


def test_one_core_serves_one_campaign(places: Places) -> None:
    with lock(places.work / f"core-{CORE}.lock"), pytest.raises(BusyError, match=f"core-{CORE}"):
        run_queue([Fake("a")], program("p.write_text('{}')", places), places, [CORE])
    assert missing([Fake("a")], places) == [Fake("a")]


def test_a_job_that_another_campaign_does_is_left_to_it(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    with lock(places.folder("a") / ".lock"):
        assert run_queue([Fake("a")], program("p.write_text('{}')", places), places, [CORE]) == []
    assert missing([Fake("a")], places) == [Fake("a")]
    assert "another campaign holds" in capsys.readouterr().out


def test_jobs_run_on_the_cores_that_were_asked_for_and_the_queue_goes_back_to_its_own(places: Places) -> None:
    before = os.sched_getaffinity(0)
    code = "import os, json; p.write_text(json.dumps([sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS']]))"
    run_queue([Fake("a")], program(code, places), places, [CORE])
    assert json.loads(places.record("a").read_text()) == [[CORE], "1"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_queue_that_is_stopped_takes_its_job_with_it_and_lets_go_of_the_core(
    places: Places, tmp_path: Path, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "began")
    process = subprocess.Popen(
        [sys.executable, "-c", QUEUE_OF_ONE, str(places.records), str(places.work), str(tmp_path / "began"), str(CORE)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    job = int((tmp_path / "began").read_text())  # waits until the job runs
    process.send_signal(number)
    assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)
    lock(places.work / f"core-{CORE}.lock").close()
    assert missing([Fake("a")], places) == [Fake("a")]


def test_a_name_a_beginning_or_a_pattern_chooses_jobs() -> None:
    jobs = queue()
    assert [job.id for job in chosen(jobs, "floor/mnist")] == ["floor/mnist"]
    assert {job.id.split("/")[0] for job in chosen(jobs, "equal")} == {"equal"}
    assert {job.id.split("/")[1] for job in chosen(jobs, "*/unfog/seed-?")} == {"unfog"}
    assert chosen(jobs, "equ") == []
    assert chosen(jobs, None) == list(jobs)


def test_every_job_has_a_name_of_its_own_and_comes_after_what_it_needs() -> None:
    names = [job.id for job in queue()]
    assert len(set(names)) == len(names)
    for k, job in enumerate(queue()):
        assert set(job.needs) <= set(names[:k])


def test_the_systems_take_turns_within_each_seed() -> None:
    trained = [(job.seed, job.system) for job in queue() if isinstance(job, Equal)]
    assert trained == [(seed, system) for seed in (0, 1, 2) for system in System]
    scored = [(job.seed, job.system) for job in queue() if isinstance(job, Scored)]
    assert scored == trained
