"""Run what is missing of the campaign, list it, or render its results.

::

    make campaign                                       everything that is missing
    make campaign ONLY=equal CORES=0                    some of it, pinned to a core
    make campaign ONLY=score CORES=1                    beside it, on another core
    python -m benchmarks.campaign --list
    python -m benchmarks.campaign --adopt RUN JOB       take over a run that was trained elsewhere
    python -m benchmarks.campaign --render-only

It may be stopped or killed at any time; the same command goes on. Measurements that compare speeds want the other
cores idle, or evenly busy; each record keeps the load at its start.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.campaign.jobs import Effort, Job, Trained, queue
from benchmarks.campaign.queue import BusyError, chosen, missing, run_queue
from benchmarks.campaign.record import ROOT, Places
from benchmarks.campaign.render import render
from benchmarks.campaign.run import adopt, run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    options = _parser().parse_args(arguments)
    effort = Effort(**{field.name: getattr(options, field.name) for field in fields(Effort)})
    places = Places(options.records, options.work)
    jobs = queue()
    if options.job is not None:
        run_job(_named(jobs, options.job), effort, places)
        return 0
    pages = options.pages or (ROOT if places.records.resolve() == Places().records else None)
    if options.adopt is not None:
        return _adopt(jobs, Path(options.adopt[0]), options.adopt[1], places) or _render(places, pages)
    if options.render_only:
        return _render(places, pages)
    wanted = chosen(jobs, options.only)
    if not wanted:
        print(f"no job matches {options.only!r}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        _list(wanted, places)
        return 0
    try:
        failed = run_queue(wanted, lambda job: _command(job, effort, places), places, options.cores)
    except BusyError as busy:
        print(f"{busy}; wait for it, or give other --cores", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return _render(places, pages) or (1 if failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing")
    parser.add_argument(
        "--only", metavar="PATTERN", help="jobs of this name, beginning or pattern, such as equal or '*/seed-0'"
    )
    parser.add_argument(
        "--cores",
        type=_cores,
        default=sorted(os.sched_getaffinity(0)),
        metavar="0,1",
        help="pin to these cores, with as many threads",
    )
    parser.add_argument("--adopt", nargs=2, metavar=("RUN", "JOB"), help="make a record of a finished run folder")
    parser.add_argument("--render-only", action="store_true", help="write the pages from the records there are")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, default=Places().records, help="folder of the records")
    parser.add_argument("--work", type=Path, default=Places().work, help="folder of weights, samples, logs and locks")
    parser.add_argument(
        "--pages",
        type=Path,
        metavar="FOLDER",
        help="where README.md and docs are rendered; with other records than the project's, none unless given",
    )
    for field in fields(Effort):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            name, type=type(field.default), default=field.default, help="smaller only to try the campaign"
        )
    return parser


def _cores(text: str) -> list[int]:
    there = os.sched_getaffinity(0)
    cores = sorted({int(part) for part in text.split(",")})
    if not cores or not there.issuperset(cores):
        raise argparse.ArgumentTypeError(f"expected some of the cores {sorted(there)}, got {text!r}")
    return cores


def _named(jobs: Sequence[Job], name: str) -> Job:
    found = [job for job in jobs if job.id == name]
    if not found:
        raise SystemExit(f"there is no job {name!r}; --list names them")
    return found[0]


def _command(job: Job, effort: Effort, places: Places) -> list[str]:
    """Return the command line that does a job in this program."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(effort).items()]
    arguments += [f"--records={places.records.absolute()}", f"--work={places.work.absolute()}"]
    return [sys.executable, "-m", "benchmarks.campaign", "--job", job.id, *arguments]


def _render(places: Places, pages: Path | None) -> int:
    if pages is None:
        return 0
    try:
        render(queue(), places, pages)
    except ValueError as error:
        print(str(error), file=sys.stderr)
        return 2
    return 0


def _adopt(jobs: Sequence[Job], folder: Path, name: str, places: Places) -> int:
    job = _named(jobs, name)
    if not isinstance(job, Trained) or places.record(job.id).exists():
        print(f"{name} is no recipe's job, or has a record already", file=sys.stderr)
        return 2
    try:
        adopt(folder, job, places)
    except ValueError as error:
        print(str(error), file=sys.stderr)
        return 2
    return 0


def _list(jobs: Sequence[Job], places: Places) -> None:
    absent = missing(jobs, places)
    for job in jobs:
        print(f"{'missing' if job in absent else 'done':8} {job.id:34} {job.minutes:5.1f} min")
    print(
        f"{len(absent)} of {len(jobs)} jobs missing, about {sum(job.minutes for job in absent) / 60:.1f} h on one core"
    )


if __name__ == "__main__":
    sys.exit(main())
