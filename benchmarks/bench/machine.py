"""The machine: what it is, and how fast it multiplies matrices and convolves."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version

import psutil
import torch
import torch.nn.functional as F

from benchmarks.bench.measure import Plan, Quantity, Section, alternate
from unfog.machine import processor

LIBRARIES = ("unfog", "torch", "diffusers", "denoising-diffusion-pytorch", "accelerate", "ema-pytorch", "numpy")
SIDE = 2048
CHANNELS, PIXELS, BATCH = 256, 16, 16


def describe() -> dict[str, str]:
    """Return what a reader of the figures must know of the machine, by name."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{processor()}, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f} processes on average in the minute before",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return a matrix product and its operations in GFLOP."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * SIDE**3 / 1e9


def convolution(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return a 3x3 convolution in channels-last order, as in the middle of DDPM's network, and its GFLOP."""
    x = torch.randn(BATCH, CHANNELS, PIXELS, PIXELS).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(dtype, memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1), 2 * 9 * BATCH * (CHANNELS * PIXELS) ** 2 / 1e9


def measure(plan: Plan) -> Section:
    """Measure the machine's rates in both precisions."""
    works = {
        f"{kind} in {str(dtype).removeprefix('torch.')}": make(dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for kind, make in (
            (f"matrix product, side {SIDE}", product),
            (f"3x3 convolution, {CHANNELS} channels", convolution),
        )
    }
    with torch.inference_mode():
        seconds = alternate({name: work for name, (work, _) in works.items()}, max(plan.repeats, plan.of(15, 1)))
    quantities = tuple(
        Quantity(name, "GFLOP/s", tuple(gflop / s for s in seconds[name])) for name, (_, gflop) in works.items()
    )
    return Section(quantities=quantities)
