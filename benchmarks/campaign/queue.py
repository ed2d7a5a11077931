"""The queue: what is missing is run, one job at a time, each in a fresh process.

Records say what is done, so there is no other state to keep in step. A campaign may be killed at any instant: a job
writes its record last and at once. Locks belong to cores, so that one core never serves two campaigns, and to jobs.
They are held by open files, which a killed process lets go of, and are shared with the job's process: as long as one of
the two lives, the core is taken.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import IO, Protocol, TypeVar

from benchmarks.campaign.record import ROOT, Places


class Work(Protocol):
    """What the queue has to know of a job."""

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        ...

    @property
    def minutes(self) -> float:
        """Expected time."""
        ...


W = TypeVar("W", bound=Work)


class BusyError(RuntimeError):
    """Another campaign holds what is needed."""


def chosen(jobs: Sequence[W], pattern: str | None) -> list[W]:
    """Return the jobs whose name is, begins with, or matches a pattern; all without one."""
    if pattern is None:
        return list(jobs)
    return [job for job in jobs if fnmatch(job.id, pattern) or job.id.startswith(f"{pattern.rstrip('/')}/")]


def missing(jobs: Sequence[W], places: Places) -> list[W]:
    """Return the jobs that have no record."""
    return [job for job in jobs if not places.record(job.id).exists()]


def lock(path: Path) -> IO[str]:
    """Take a lock until the returned file is closed.

    Raises:
        BusyError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BusyError(f"another campaign holds {path}") from None
    os.set_inheritable(file.fileno(), True)
    return file


def run_queue(
    jobs: Sequence[W], command: Callable[[W], Sequence[str]], places: Places, cores: Sequence[int]
) -> list[str]:
    """Run what is missing of the jobs, in order, on the given cores.

    Args:
        jobs: what is wanted.
        command: the program that does a job and writes its record, with its arguments.
        places: where records and files go.
        cores: processors to be pinned to; as many threads are used.

    Returns:
        The names of the jobs that failed or could not be started.

    Raises:
        BusyError: if another campaign uses one of the cores.
    """
    failed = []
    with ExitStack() as held:
        locks = [held.enter_context(lock(places.work / f"core-{core}.lock")) for core in sorted(cores)]
        held.enter_context(_pinned(cores))
        for job in missing(jobs, places):
            if lacking := [need for need in job.needs if not places.record(need).exists()]:
                print(f"{job.id}: waits for {', '.join(lacking)}", flush=True)
                failed.append(job.id)
                continue
            try:
                claim = lock(places.folder(job.id) / ".lock")
            except BusyError as busy:
                print(f"{job.id}: {busy}", flush=True)
                continue
            with claim:
                # Another campaign may have finished it since the list was made.
                if missing([job], places) and not _run(job, command(job), places, len(cores), [*locks, claim]):
                    failed.append(job.id)
    return failed


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _run(job: Work, command: Sequence[str], places: Places, threads: int, locks: Sequence[IO[str]]) -> bool:
    """Run one job in a process of its own and say whether it left its record."""
    began = time.monotonic()
    print(f"{job.id}: about {job.minutes:.0f} min", flush=True)
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with (places.folder(job.id) / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[held.fileno() for held in locks],
        )
        status = _wait(process)
    minutes = (time.monotonic() - began) / 60
    if status == 0:
        print(f"{job.id}: done in {minutes:.1f} min", flush=True)
        return True
    tail = (places.folder(job.id) / "output.txt").read_text().splitlines()[-15:]
    print(f"{job.id}: ended with status {status} after {minutes:.1f} min\n  " + "\n  ".join(tail), flush=True)
    return False


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a job; what ends this process first ends the job, too."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A shell that starts a command in the background has it ignore SIGINT, hence a handler for that one too.
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
