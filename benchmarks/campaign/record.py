"""The record of a finished job: one JSON file that says what was measured, on what, when and with what."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from unfog.checkpoint import write_atomically
from unfog.machine import processor

ROOT = Path(__file__).parents[2]
PACKAGES = ("unfog", "torch", "numpy", "diffusers", "denoising-diffusion-pytorch", "ema-pytorch", "accelerate")
FORMAT = 1


@dataclass(frozen=True)
class Places:
    """Where a campaign keeps things.

    Attributes:
        records: one JSON file a finished job, to be committed.
        work: weights, samples, logs and locks.
    """

    records: Path = ROOT / "benchmarks" / "records"
    work: Path = ROOT / "runs" / "campaign"

    def record(self, job: str) -> Path:
        """Return the file of a job's record."""
        return self.records / f"{job}.json"

    def folder(self, job: str) -> Path:
        """Return the folder of a job's files."""
        return self.work / job


@dataclass(frozen=True)
class Start:
    """What is known when a job begins."""

    at: str
    load: tuple[float, ...]

    @staticmethod
    def now() -> "Start":
        """Take the time and the load of the machine."""
        return Start(datetime.now(UTC).isoformat(timespec="seconds"), psutil.getloadavg())


def circumstances(start: Start) -> dict[str, Any]:
    """Return under what circumstances this process did what it began at a start."""
    return {
        "commit": commit(),
        "source": source(),
        "started": start.at,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "load_at_start": [round(load, 2) for load in start.load]},
        "versions": versions(),
    }


def write_record(path: Path, job: str, command: str, content: Mapping[str, Any]) -> None:
    """Write a record; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "id": job, "command": command, **content}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: if it is none, or of another format.
    """
    record: dict[str, Any] = json.loads(path.read_text())
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} is no record of format {FORMAT}: it says {record.get('format')!r}")
    return record


def machine() -> dict[str, Any]:
    """Describe the machine and what part of it this process may use."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "pinned_to": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what took part, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the sources, marked where files differ from it; empty outside a checkout."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def source() -> str:
    """Return the SHA-256 of our sources, so that records from one state of them can be told from others."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "unfog").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
