"""Checks of the machine and the installation, for ``unfog doctor``."""

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor

from unfog.cli.costs import count
from unfog.data.cache import cache_folder
from unfog.data.sources import find
from unfog.machine import extensions, processor, usable_cores
from unfog.recipe.probe import available_memory
from unfog.recipe.soundness import Finding, Outcome

WRITTEN = 32 * 2**20
"""Bytes of the file that the disk is tried with."""

SLOWEST_DISK = 5e6
"""Bytes a second below which saving would hold up training."""

LEAST_MEMORY, LEAST_DISK = 1 << 30, 1 << 30

SLOWER = 1.1
"""How much longer a product may take with all threads than with one: more is contention, less is noise."""

AGREEMENT = 1e-10
"""Bound on the difference of float64 gradients of one process and of two: some ten sums are rounded otherwise."""


def check_versions() -> list[Finding]:
    """Compare what is installed with what Unfog asks for; optional packages that are missing are no fault."""
    wrong, optional = [], []
    for text in importlib.metadata.requires("unfog") or []:
        wanted = Requirement(text)
        extra = next((name for name in _extras() if wanted.marker and wanted.marker.evaluate({"extra": name})), "")
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            optional.append(f"{wanted.name} missing: pip install 'unfog[{extra}]'")
            if not extra:
                wrong.append(f"{wanted.name} is missing")
            continue
        if extra:
            optional.append(f"{wanted.name} {found}")
        # A local version such as 2.13.0+cpu counts as the release that it is built from.
        if not wanted.specifier.contains(Version(Version(found).public), prereleases=True):
            wrong.append(f"{wanted.name} {found}, but {wanted.specifier} is needed")
    core = f"Python {platform.python_version()}, torch {torch.__version__}, Unfog {importlib.metadata.version('unfog')}"
    return [
        Finding.of(
            "versions", not wrong, "; ".join([core, *wrong]), "pip install --upgrade unfog in a fresh environment"
        ),
        Finding("optional packages", Outcome.PASS, "; ".join(optional)),
    ]


def _extras() -> list[str]:
    return importlib.metadata.metadata("unfog").get_all("Provides-Extra") or []


def check_processor() -> list[Finding]:
    """Tell what the processor is, and whether torch has the library that makes convolutions fast on it."""
    libraries = {"oneDNN": _has(torch.backends.mkldnn), "MKL": _has(torch.backends.mkl)}
    there = ", ".join(name for name, is_there in libraries.items() if is_there) or "neither oneDNN nor MKL"
    kinds = " ".join(extensions()) or "no extensions told of"
    measured = f"{processor()}, {usable_cores()} cores usable; {kinds}; torch has {there}"
    return [
        Finding.of(
            "processor",
            libraries["oneDNN"],
            measured,
            "convolutions will be several times slower: install torch from PyPI or pytorch.org for this processor",
        )
    ]


def _has(library: Any) -> bool:
    return bool(library.is_available())


def check_memory(needed: int = LEAST_MEMORY) -> list[Finding]:
    """Check that there is memory.

    Args:
        needed: bytes that a run holds all the time.
    """
    free = available_memory()
    return [
        Finding.of(
            "memory",
            free >= needed,
            f"{count(free)}B free, {count(needed)}B needed",
            "end other programs, or choose a smaller network",
        )
    ]


def check_disk(folder: Path, needed: int = LEAST_DISK) -> list[Finding]:
    """Write and sync a file where runs will lie.

    Args:
        folder: where; need not be there yet.
        needed: bytes that a run takes.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    content = os.urandom(WRITTEN)
    with tempfile.TemporaryFile(dir=place) as file:
        began = time.perf_counter()
        file.write(content)
        file.flush()
        written = time.perf_counter()
        os.fsync(file.fileno())
        ended = time.perf_counter()
        file.seek(0)
        same = file.read() == content
    rate = WRITTEN / (ended - began)
    measured = (
        f"{place}: {count(free)}B free, {count(needed)}B needed; written with {count(rate)}B/s, of which syncing took "
        f"{(ended - written) / (ended - began):.0%}"
    )
    if not same:
        return [Finding("disk", Outcome.FAIL, f"{measured}; it reads back otherwise", "this disk is failing")]
    advice = "make room" if free < needed else "saving will hold up training: choose another disk with --out"
    return [Finding.of("disk", free >= needed and rate >= SLOWEST_DISK, measured, advice)]


def check_folders(data: str | None = None) -> list[Finding]:
    """Check the folders that data are read from and decoded to.

    Args:
        data: name or path of the data of a recipe; None if no recipe is meant.
    """
    named = [part for part in os.environ.get("UNFOG_DATA", "").split(os.pathsep) if part]
    missing = [part for part in named if not Path(part).expanduser().is_dir()]
    listed = ", ".join(named) or "not set"
    findings = [
        Finding.of(
            "UNFOG_DATA",
            not missing,
            f"{listed}; missing: {', '.join(missing)}" if missing else listed,
            "name folders that are there, with : between them",
        ),
        _check_cache(cache_folder()),
    ]
    if data is not None and data != "digits" and not data.startswith("hf:"):
        try:
            findings.append(Finding("data", Outcome.PASS, str(find(data))))
        except ValueError as error:
            findings.append(Finding("data", Outcome.FAIL, str(error), "set UNFOG_DATA, or data.path"))
    return findings


def _check_cache(folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("cache", Outcome.FAIL, str(error), "set UNFOG_CACHE to a folder that can be written to")
    return Finding("cache", Outcome.PASS, f"{folder} can be written to")


def check_accelerator() -> list[Finding]:
    """Compare a matrix product on the accelerator with one on the processor."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            told = f"this machine has an NVIDIA driver, but torch {torch.__version__} sees no device"
            return [Finding("accelerator", Outcome.FAIL, told, "install torch for CUDA from pytorch.org")]
        return [Finding("accelerator", Outcome.SKIP, "none", "everything runs on the processor")]
    a = torch.randn(512, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = float(((a.cuda() @ a.cuda()).cpu() - a @ a).norm() / (a @ a).norm())
    free, total = torch.cuda.mem_get_info()
    names = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return [
        Finding.of(
            "accelerator",
            error <= 1e-12,
            f"{names}; {count(free)}B of {count(total)}B free; a float64 product differs by {error:.0e}",
            "the device computes wrongly: look at the driver, and at its memory's error counters",
        )
    ]


def check_threads() -> list[Finding]:
    """Check that the threads have cores, and that they help."""
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads == 1 or threads > cores:
        return [judge_threads(threads, cores, (), ())]
    many, one = [], []
    try:
        for _ in range(7):  # in turn, so that what else the machine does hits both
            torch.set_num_threads(threads)
            many.append(_product())
            torch.set_num_threads(1)
            one.append(_product())
    finally:
        torch.set_num_threads(threads)
    return [judge_threads(threads, cores, one, many)]


def judge_threads(threads: int, cores: int, one: Sequence[float], many: Sequence[float]) -> Finding:
    """Judge the number of threads.

    Args:
        threads: that torch uses.
        cores: that this process may run on.
        one: seconds of matrix products with one thread; empty if not measured.
        many: the same with all threads.
    """
    if threads > cores:
        told = f"{threads} threads on {cores} cores"
        return Finding("threads", Outcome.FAIL, told, f"they wait for each other: set OMP_NUM_THREADS={cores}")
    if threads == 1:
        return Finding("threads", Outcome.PASS, f"1 thread on {cores} cores")
    ratio = statistics.median(many) / statistics.median(one)
    return Finding.of(
        "threads",
        ratio <= SLOWER,
        f"a matrix product takes {ratio:.2f} times as long with {threads} threads as with one",
        "something else uses the cores: end it, or set OMP_NUM_THREADS to the number of cores that are free",
    )


def _product() -> float:
    a = torch.ones(1024, 1024)
    began = time.perf_counter()
    a @ a
    return time.perf_counter() - began


def check_processes(gradient_of_two: Callable[[Path], list[float]] | None = None) -> list[Finding]:
    """Compare a gradient that two processes form together with that of one.

    Args:
        gradient_of_two: starts them in a folder and returns what they agree on; gloo on this machine unless given.
    """
    if not torch.distributed.is_available():
        return [Finding("two processes", Outcome.SKIP, "torch was built without torch.distributed", "none can be used")]
    with tempfile.TemporaryDirectory() as folder:
        together = torch.tensor((gradient_of_two or _gradient_of_two)(Path(folder)), dtype=torch.float64)
    apart = float((together - _gradient(slice(None))).abs().max())
    return [
        Finding.of(
            "two processes",
            apart <= AGREEMENT,
            f"their gradient differs from that of one by {apart:.0e}; at most {AGREEMENT:.0e}",
            "torch.distributed adds up wrongly here: train with one process, and update torch",
        )
    ]


def _gradient(examples: slice) -> Tensor:
    """Return the gradient of the sum of errors of some of eight examples, ``(6,)`` float64."""
    x = torch.linspace(-1.0, 1.0, 48, dtype=torch.float64).view(8, 6)
    weight = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((x[examples] @ weight).tanh().square().sum(), [weight])
    return gradient


def _gradient_of_two(folder: Path) -> list[float]:
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    alive = [worker for worker in workers if worker.is_alive()]
    for worker in alive:
        worker.kill()
    codes = [worker.exitcode for worker in workers]
    if alive or any(codes):
        raise RuntimeError(f"two processes did not find each other with gloo in a minute (exit codes {codes})")
    told: list[float] = json.loads((folder / "gradient.json").read_text())
    return told


def _worker(rank: int, folder: str) -> None:
    # What goes wrong here is told by the exit code; a traceback between the checks would hide them.
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - it lasts as long as the process
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    gradient = _gradient(slice(4 * rank, 4 * rank + 4))
    torch.distributed.all_reduce(gradient)
    if rank == 0:
        (Path(folder) / "gradient.json").write_text(json.dumps(gradient.tolist()))
    torch.distributed.destroy_process_group()
