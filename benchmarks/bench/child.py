"""Measures memory in a process of its own: ``python -m benchmarks.bench.child diffusers ours 32`` prints JSON, in MiB.

Linux tells the peak of the resident set, and lets a process begin it anew.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench.contenders import DDPM_BATCH, SEED, entrants, images, trainer_of
from benchmarks.bench.sampling import EVALUATIONS, draw, pipeline_of
from benchmarks.bench.training import STEPS
from unfog.sampling.gaussian import DDIM

COUNT, TRAINED = 4, 2


def resident(field: str) -> float:
    """Return ``VmRSS`` (now) or ``VmHWM`` (at its peak), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Sample and then train with one library; print how far memory grew."""
    other, who, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    entrant = next(entrant for entrant in entrants(3, size) if entrant.peer.name == other)
    pictures = images(2 * DDPM_BATCH, 3, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: imports do not count
    before = resident("VmRSS")
    network = entrant.peer.ddpm_network()
    sample: Callable[[], object]
    step: Callable[[], object]
    if who == "ours":
        denoiser = entrant.denoiser(network)
        sample = partial(draw, pipeline_of(denoiser, 3, size, DDIM()), COUNT)
    else:
        sample = partial(entrant.peer.sample, network, COUNT, EVALUATIONS, SEED)
    sample()
    sampling = resident("VmHWM") - before
    if who == "ours":
        step = trainer_of(denoiser, pictures, DDPM_BATCH).advance
    else:
        step = entrant.peer.trainer(network, pictures, SEED, STEPS).step
    for _ in range(TRAINED):
        step()
    print(json.dumps({"sampling": sampling, "training": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
