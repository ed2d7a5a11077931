"""``unfog doctor``: whether this machine and this installation train correctly."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from unfog.cli import environment
from unfog.cli.console import output
from unfog.cli.errors import refusing
from unfog.cli.sources import find_recipe
from unfog.data.dataset import ArrayDataset
from unfog.recipe.build import fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.estimate import disk_of, memory_of, shapes_of
from unfog.recipe.load import override
from unfog.recipe.schema import Recipe
from unfog.recipe.soundness import (
    Finding,
    Outcome,
    Subject,
    check_loss,
    check_precision,
    check_saving,
    check_seeds,
    guarded,
)
from unfog.recipes import named

OVERFIT_SECONDS = 30.0

_MARK = {Outcome.PASS: "pass", Outcome.FAIL: "FAIL", Outcome.SKIP: "skip"}


def run(which: str | None, out: Path, *, compiled: bool, as_json: bool) -> int:
    """Check; see ``commands.running.doctor``."""
    recipe = _small() if which is None else find_recipe(which).recipe
    began, findings = time.perf_counter(), []
    for finding in _findings(recipe, which is not None, out, compiled):
        findings.append(finding)
        if not as_json:
            _show(finding)
    failed = sum(finding.outcome is Outcome.FAIL for finding in findings)
    if as_json:
        checks = [{**asdict(finding), "outcome": finding.outcome.value} for finding in findings]
        output().print(json.dumps({"failed": failed, "checks": checks}, indent=1), markup=False, soft_wrap=True)
    else:
        seconds = time.perf_counter() - began
        total = (
            f"all {len(findings)} checks passed or were skipped"
            if not failed
            else f"{failed} of {len(findings)} failed"
        )
        output().print(f"{total}, in {seconds:.0f} s", markup=False)
    return int(failed > 0)


def _findings(recipe: Recipe, chosen: bool, out: Path, compiled: bool) -> Iterator[Finding]:
    network = shapes_of(recipe)
    needed = max(memory_of(recipe, network).total, environment.LEAST_MEMORY)
    room = max(disk_of(recipe, network).most, environment.LEAST_DISK)
    yield from guarded("versions", environment.check_versions)
    yield from guarded("processor", environment.check_processor)
    yield from guarded("accelerator", environment.check_accelerator)
    yield from guarded("memory", partial(environment.check_memory, needed))
    yield from guarded("disk", partial(environment.check_disk, out, room))
    yield from guarded("folders", partial(environment.check_folders, recipe.data.path if chosen else None))
    yield from guarded("threads", environment.check_threads)
    yield from _soundness(recipe, chosen, out, compiled)
    yield from guarded("two processes", environment.check_processes)


def _soundness(recipe: Recipe, chosen: bool, out: Path, compiled: bool) -> Iterator[Finding]:
    try:
        dataset = open_data(recipe.data).train if chosen else _rectangles()
        card = DataCard.of(dataset.info)
        subject = Subject(fit_to_data(recipe, card), dataset)
    except (ValueError, OSError, ImportError) as error:
        yield Finding("training", Outcome.FAIL, str(error), "its checks need the data: bring them here first")
        return
    learned = []

    def loss() -> list[Finding]:
        findings, network = check_loss(subject, OVERFIT_SECONDS)
        learned.append(network)
        return findings

    yield from guarded("one-batch overfit", loss)
    for network in learned:
        yield from guarded("precision", partial(check_precision, subject, network, compiled=compiled))
        yield from guarded("seeds", partial(check_seeds, subject, network))
    yield from guarded("save, load, sample", partial(_saving, subject, out))


def _saving(subject: Subject, out: Path) -> list[Finding]:
    """Save where runs will lie, if that is there already, and clean up."""
    with tempfile.TemporaryDirectory(dir=out if out.is_dir() else None) as folder:
        return check_saving(subject, Path(folder))


def _small() -> Recipe:
    """Return ``digits`` with a network of 0.3 M parameters."""
    with refusing():
        return override(named("digits"), ["network.widths=[32,32]", "data.path=rectangles"])


def _rectangles() -> ArrayDataset:
    """Return pictures with something to learn that need no library: rectangles, one class a kind."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((64, 1, 8, 8), np.uint8)
    labels = np.arange(64) % 10
    for picture, label in zip(pixels, labels, strict=True):
        top, left = rng.integers(0, 4, 2)
        picture[0, top : top + 2 + label % 3, left : left + 2 + label // 3] = 255 - 15 * label
    return ArrayDataset(pixels, labels, name="rectangles")


def _show(finding: Finding) -> None:
    out = output()
    out.print(f"{_MARK[finding.outcome]}  {finding.name}: {finding.measured}", markup=False, soft_wrap=True)
    if finding.advice:
        out.print(f"      {finding.advice}", markup=False, soft_wrap=True)
