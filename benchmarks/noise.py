"""Time a number of counter-based noise against torch's generator: ``python benchmarks/noise.py``."""

import statistics
import time
from collections.abc import Callable

import torch

from unfog.diffusion.random import Purpose, Rng

SHAPES = {"128 digits": (128, 1, 8, 8), "128 MNIST images": (128, 1, 28, 28), "64 CIFAR images": (64, 3, 32, 32)}
REPEATS = 30


def seconds(draw: Callable[[], torch.Tensor]) -> float:
    """Return the median time of a call."""
    draw()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print nanoseconds a number, ours and torch's, and their ratio."""
    print(f"{torch.get_num_threads()} threads, median of {REPEATS} calls")
    for name, (batch, *shape) in SHAPES.items():
        rng = Rng.of(0, batch)
        numel = batch * torch.Size(shape).numel()
        ours = seconds(lambda rng=rng, shape=shape: rng.normal(shape, Purpose.NOISE)) / numel * 1e9  # type: ignore[misc]
        theirs = seconds(lambda size=(batch, *shape): torch.randn(size)) / numel * 1e9  # type: ignore[misc]
        print(f"{name:18} {ours:6.1f} ns a number, torch.randn {theirs:5.1f} ns, ratio {ours / theirs:4.1f}")


if __name__ == "__main__":
    main()
