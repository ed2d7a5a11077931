"""What needs a process of its own: the time of an import, and memory.

Each measurement starts an interpreter, in turns. Memory is the growth of the resident set from after the imports to its
peak, first over sampling, then over training, which needs more; the system's own account of the peak is read.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.bench.measure import Comparison, Plan, Quantity, Section, Unit, alternate

ROOT = Path(__file__).parents[2]
IMPORTS = {
    "torch": "import torch",
    "Unfog": "import unfog.api",
    "diffusers": "import benchmarks.peers.diffusers_peer",
    "ddpm-pytorch": "import benchmarks.peers.ddpm_pytorch_peer",
}
OTHERS = ("diffusers", "ddpm-pytorch")
KINDS = ("sampling", "training")
KEPT = (("mnist-small", 1, 28, 8), ("cifar10-small", 3, 32, 4), ("flowers128-small", 3, 128, 16))
"""Recipes trained with and without keeping memory: name, channels, size and steps."""


def python(arguments: Sequence[str]) -> str:
    """Run an interpreter in the root of the project and return what it prints.

    Raises:
        RuntimeError: if it fails; with what it wrote.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _told(module: str, *arguments: str) -> dict[str, float]:
    """Run a module beside this one in a process of its own, and return the JSON that it prints last."""
    told: dict[str, float] = json.loads(python(["-m", f"benchmarks.bench.{module}", *arguments]).splitlines()[-1])
    return told


def imports(plan: Plan) -> Section:
    """Time the imports that training and sampling want, each in a fresh interpreter."""
    works = {name: partial(python, ["-c", line]) for name, line in IMPORTS.items()}
    seconds = alternate(works, plan.repeats)
    return Section(
        comparisons=tuple(
            Comparison("import", "Unfog", other, Unit.SECONDS, seconds["Unfog"], seconds[other]) for other in OTHERS
        ),
        quantities=(Quantity("import torch alone", "s", seconds["torch"]),),
        notes=("A fresh interpreter from start to end, all that training and sampling want being imported.",),
    )


def memory(plan: Plan) -> Section:
    """Measure the peak of memory in sampling and in training DDPM's network, the same module on both sides."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(min(plan.repeats, 5)):
        for other in OTHERS:
            for who in ("theirs", "ours"):
                size = str(plan.of(32, 16))
                told = _told("child", other, who, size)
                for kind in KINDS:
                    found.setdefault((kind, other, who), []).append(told[kind])
    return Section(
        comparisons=tuple(
            Comparison(
                f"{kind}, DDPM's network, the same module",
                "Unfog",
                other,
                Unit.MEBIBYTES,
                tuple(found[kind, other, "ours"]),
                tuple(found[kind, other, "theirs"]),
                goal=1.0,
            )
            for kind in KINDS
            for other in OTHERS
        ),
        notes=(
            "Growth of the resident set from after the imports to its peak, in a fresh process; the network included.",
        ),
    )


def kept(plan: Plan) -> Section:
    """Train small recipes in processes that keep the memory they free, and in such that hand it back."""
    comparisons: list[Comparison] = []
    for name, channels, size, steps in KEPT:
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(plan.repeats):
            for mode in ("return", "keep"):
                told = _told("kept", name, str(channels), str(size), mode, str(plan.of(steps, 1)))
                for what, value in told.items():
                    found.setdefault((what, mode), []).append(value)
        comparisons += [
            Comparison(
                f"{words}, recipe {name}",
                "memory kept",
                "memory handed back",
                unit,
                tuple(found[what, "keep"]),
                tuple(found[what, "return"]),
            )
            for what, words, unit in (
                ("seconds", "training", Unit.SECONDS_A_SAMPLE),
                ("peak", "peak of memory", Unit.MEBIBYTES),
            )
        ]
    return Section(
        tuple(comparisons),
        notes=(
            "What the command line gains by keeping the memory that it frees (`unfog.memory`).",
            "Processor time of one thread, without classes, each in a fresh process; the peak is of the whole process.",
            "No other section of this page makes use of it.",
        ),
    )
