"""What this machine is, in words."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch


def machine() -> dict[str, str]:
    """Return processor, accelerator, threads, versions and date, by name."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": f"{processor()}, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores",
        "accelerator": accelerator,
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unfog": version("unfog"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """Return the name of the processor, or of its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def extensions() -> list[str]:
    """Return those extensions of the processor that matter here, where the system tells."""
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in known if name in flags]


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def _cpuinfo(field: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
