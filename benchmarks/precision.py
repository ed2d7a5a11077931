"""Compare float32 with bfloat16 on this machine: ``python benchmarks/precision.py``.

Prints the rate of a matrix product and of training steps of ``mnist-small``'s network, best of several.
"""

import time
from collections.abc import Callable

import torch

from unfog.diffusion.nn.cost import flops
from unfog.recipe.build import build_network
from unfog.recipes import named

REPEATS, SIDE, BATCH = 5, 2048, 128


def best(work: Callable[[], object]) -> float:
    """Return the shortest time of a call, in seconds."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Print both rates for both precisions."""
    network = build_network(named("mnist-small").network)
    x, c_noise, label = torch.randn(BATCH, 1, 28, 28), torch.rand(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    cost = 3 * BATCH * flops(network, x[:1], c_noise[:1], cond={"label": label[:1]})
    print(f"{torch.get_num_threads()} threads, best of {REPEATS}")
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(SIDE, SIDE).to(dtype)

        def train(dtype: torch.dtype = dtype) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = network(x, c_noise, label=label).float().square().mean()
            loss.backward()

        product, step = best(lambda a=a: a @ a), best(train)  # type: ignore[misc]
        print(
            f"{dtype!s:15} matrix product {2 * SIDE**3 / product / 1e9:4.0f} GFLOP/s, "
            f"training {BATCH / step:4.0f} images/s ({cost / step / 1e9:.0f} GFLOP/s)"
        )


if __name__ == "__main__":
    main()
