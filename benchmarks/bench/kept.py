"""Times training in a process of its own: ``python -m benchmarks.bench.kept mnist-small 1 28 keep 8`` prints JSON.

With ``keep`` the process keeps the memory that it frees, with ``return`` its allocator does as it does by itself. Told
are seconds of processor time a sample, and the peak of the resident set in MiB.
"""

import json
import sys
import time

import torch

from benchmarks.bench.child import resident
from benchmarks.bench.contenders import default_trainer, images, recipe_of
from unfog.memory import keep_memory
from unfog.recipe.networks import build_network

WARM_UP = 2


def main() -> None:
    """Train a small recipe for some steps."""
    name, channels, size, mode, steps = sys.argv[1:]
    torch.set_num_threads(1)  # threads that wait for each other spend processor time on that
    if mode == "keep" and not keep_memory():
        raise RuntimeError("the allocator of this process cannot be told to keep memory")
    recipe = recipe_of(name, int(channels), int(size))
    pictures = images(2 * recipe.train.batch_size, int(channels), int(size))
    trainer = default_trainer(recipe, build_network(recipe.network), pictures)
    for _ in range(WARM_UP):
        trainer.advance()
    began = time.process_time()
    for _ in range(int(steps)):
        trainer.advance()
    seconds = (time.process_time() - began) / int(steps) / recipe.train.batch_size
    print(json.dumps({"seconds": seconds, "peak": resident("VmHWM")}))


if __name__ == "__main__":
    main()
