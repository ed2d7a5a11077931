"""Measure Unfog beside diffusers and denoising-diffusion-pytorch, record it, and render docs/benchmarks.md.

make bench
python -m benchmarks.bench --only host,import --quick
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

os.environ.setdefault("TQDM_DISABLE", "1")  # the others' progress bars are not part of what is compared
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.bench import curves, fresh, host, machine, page, precision, profiles, record, sampling, training
from benchmarks.bench.measure import Plan, Section
from benchmarks.pages import insert

SECTIONS: dict[str, Callable[[Plan], Section]] = {
    "machine": machine.measure,
    "training": training.ddpm,
    "sampling": sampling.ddpm,
    "precision": precision.measure,
    "laptop-training": training.laptop,
    "laptop-sampling": sampling.laptop,
    "curves": curves.measure,
    "host": host.measure,
    "import": fresh.imports,
    "memory": fresh.memory,
    "kept": fresh.kept,
    "profile": profiles.measure,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help=f"sections with commas between: {', '.join(SECTIONS)}"
    )
    parser.add_argument("--repeats", type=int, default=6, help="rounds in which each contender has its turn (6)")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--render-only", action="store_true", help="write the page from the records there are")
    found = parser.parse_args()
    found.only = [name.strip() for name in found.only.split(",")]
    if unknown := [name for name in found.only if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if found.repeats < 1:
        parser.error(f"expected at least one repeat, not {found.repeats}")
    return found


def main() -> None:
    """Measure the sections asked for."""
    asked = arguments()
    if asked.render_only:
        insert(page.PAGE, page.render(record.load_all()), page.COMMAND)
        return
    plan = Plan(1, quick=True) if asked.quick else Plan(asked.repeats)
    began, where = datetime.now(UTC).isoformat(timespec="seconds"), machine.describe()
    found = record.Record(began, plan.quick, plan.repeats, where, {}, {})
    for name in asked.only:
        start = time.perf_counter()
        found.sections[name] = SECTIONS[name](plan)
        found.seconds[name] = time.perf_counter() - start
        # What is measured is kept, whatever becomes of the sections that follow.
        path = record.save(found)
        print(f"{name}: {found.seconds[name]:.0f} s, recorded in {path}", file=sys.stderr, flush=True)
    print("\n".join(page.render([found])))
    if not plan.quick:
        insert(page.PAGE, page.render(record.load_all()), page.COMMAND)
        print(f"rendered {page.PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
