"""Measure every sampler's order and errors beside diffusers' and k-diffusion's, and render docs/mathematics/orders.md.

make orders
python -m benchmarks.orders --render
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.orders import cases as problems
from benchmarks.orders import page, record
from benchmarks.orders.measure import BUDGETS, REFINED, jump, of_ours, of_peer
from benchmarks.orders.methods import Method, methods
from benchmarks.pages import insert


def main() -> None:
    """Measure and render."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders", description=__doc__.partition("\n")[0])
    parser.add_argument("--render", action="store_true", help="measure nothing: render what is recorded")
    if not parser.parse_args().render:
        torch.set_num_threads(1)  # a hundred points in the plane leave nothing to share
        record.save(measured())
        print(f"recorded in {record.PATH}", file=sys.stderr)
    insert(page.PAGE, list(page.render(record.load())), page.COMMAND)
    print(f"rendered {page.PAGE}", file=sys.stderr)


def measured() -> record.Record:
    """Return what is found of every method on every case."""
    every, found = list(problems.cases()), []
    listed = methods()
    for number, method in enumerate(listed, start=1):
        began = time.perf_counter()
        found.append(_row(method, every))
        seconds = time.perf_counter() - began
        print(f"{number}/{len(listed)} {method.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return record.Record(_versions(), list(BUDGETS), list(REFINED), found, list(_jumps(every)))


def _row(method: Method, every: list[problems.Case]) -> record.Row:
    entries = []
    if method.ours is not None:
        ours = method.ours
        name = repr(ours)
        entries.append(record.Entry("Unfog", name, ours.claimed_order, _by_case(every, partial(of_ours, ours))))
    for library, peer in (("diffusers", method.diffusers), ("k-diffusion", method.k_diffusion)):
        if peer is not None:
            by_case = _by_case(every, partial(of_peer, peer))
            entries.append(record.Entry(library, peer.name, peer.claimed, by_case))
    noisy = method.ours is not None and every[0].laboratory.is_noisy(method.ours)
    return record.Row(method.name, noisy, entries)


def _by_case(
    every: list[problems.Case], measure: Callable[[problems.Case], record.Found]
) -> dict[str, dict[str, record.Found]]:
    found: dict[str, dict[str, record.Found]] = {}
    for case in every:
        found.setdefault(case.mixture, {})[case.where] = measure(case)
    return found


def _jumps(every: list[problems.Case]) -> Iterator[record.Jump]:
    for case in every:
        usual = [case.usual.times(case.schedule, steps)[-2].item() for steps in BUDGETS]
        errors = [jump(case, last) for last in usual]
        yield record.Jump(case.mixture, case.where, jump(case, None), errors)


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "diffusers", "k-diffusion"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    main()
