"""Short measurements of a recipe on this machine: memory of activations, time of steps and of sampling.

They use the trainer, the data and the pipeline as a run does, at a size that fits the time that is given.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unfog.data.batch import Batches
from unfog.data.dataset import Dataset
from unfog.data.loader import Prefetched, ShuffledBatches
from unfog.diffusion.random import Rng, seed_of
from unfog.recipe.build import build_pipeline, build_training
from unfog.recipe.card import DataCard
from unfog.recipe.estimate import Activations
from unfog.recipe.run import default_device, initial_network
from unfog.recipe.schema import Recipe
from unfog.training.config import Precision, TrainConfig
from unfog.training.step import TrainStep
from unfog.training.trainer import Trainer

_FEW = 4
"""Examples of the first look at how long things take."""

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class Steps:
    """Steps that were taken.

    Attributes:
        batch: examples of each.
        seconds: of each, waiting for data included.
        waited: share of them spent on waiting for data.
    """

    batch: int
    seconds: tuple[float, ...]
    waited: float


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of the tensors that are made while its context lasts, on the CPU.

    Counted are the storages that operators return, each from its making to its end, so the peak is that of the whole
    forward and backward pass, gradients of activations included. What a kernel uses inside itself is not seen.

    Attributes:
        bytes: of those that live.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class Line(NamedTuple):
    """Activations, and the two micro-batches at which they were measured."""

    activations: Activations
    sizes: tuple[int, int]


def activations(recipe: Recipe, dataset: Dataset) -> Line:
    """Measure activations for few examples: how many are needed is found out.

    For very few, the gradients on their way need more than the activations, and a line through those measurements
    would tell nothing of larger ones. The micro-batch is doubled until it needs half as much again as one example.

    Args:
        recipe: fitted to the data.
        dataset: its training data.
    """
    floor = activation_bytes(recipe, dataset, 1)
    few, low = 2, activation_bytes(recipe, dataset, 2)
    while low < 1.5 * floor:
        few, low = 2 * few, activation_bytes(recipe, dataset, 2 * few)
    high = activation_bytes(recipe, dataset, 2 * few)
    return Line(Activations.through(floor, (few, low), (2 * few, high)), (few, 2 * few))


def activation_bytes(recipe: Recipe, dataset: Dataset, micro_batch: int) -> int:
    """Measure the memory that comes and goes within a step, beyond what ``estimate.memory_of`` tells.

    A step of two micro-batches is taken, so that the gradients of the first are there while the second is worked on.
    On CUDA it is the allocator's peak; on the CPU that of all live tensors, which repeats itself to the byte (the
    memory of the process would depend on what the C library keeps of what was freed).

    Args:
        recipe: fitted to the data.
        dataset: its training data.
        micro_batch: examples at a time.
    """
    config = replace(
        recipe.train, batch_size=2 * micro_batch, micro_batch=micro_batch, compile=False, ema=(), snapshot_every=None
    )
    trainer = _trainer(recipe, _batches(recipe, dataset), config)
    gradients = sum(p.nbytes for p in trainer.task.parameters() if p.requires_grad)
    if default_device().type == "cuda":
        trainer.advance()  # allocates what the libraries keep for good
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        # With the gradients of the step before, which those of the next one replace.
        before: int = torch.cuda.memory_allocated()
        trainer.advance()
        peak: int = torch.cuda.max_memory_allocated()
        return peak - before
    live = LiveTensors()
    with live:
        trainer.advance()
    return live.peak - gradients


def time_steps(recipe: Recipe, dataset: Dataset, seconds: float) -> Steps:
    """Take real steps on the real data for a while, after some that do not count.

    Where few steps of the recipe's size would fit into the time given, smaller ones are taken.

    Args:
        recipe: fitted to the data; it is not compiled here.
        dataset: its training data.
        seconds: for all of it, about; at least three steps are taken.
    """
    began = time.perf_counter()
    with Prefetched(_batches(recipe, dataset)) as batches:
        batch = min(_FEW, recipe.train.batch_size)
        trainer = _trainer(recipe, batches, _sized(recipe, batch))
        while _steps(trainer, 2)[-1].seconds < seconds / 16 and batch < recipe.train.batch_size:
            batch = min(2 * batch, recipe.train.batch_size)
            trainer = _trainer(recipe, batches, _sized(recipe, batch))
        taken = _steps(trainer, 3)
        while time.perf_counter() - began < seconds:
            taken += _steps(trainer, 1)
    total = sum(step.seconds for step in taken)
    return Steps(batch, tuple(step.seconds for step in taken), sum(step.waited for step in taken) / total)


def time_sampling(recipe: Recipe, dataset: Dataset, count: int, seconds: float) -> float:
    """Return the seconds that sampling takes, from some evaluations of the network at one time.

    Args:
        recipe: fitted to the data.
        dataset: its training data.
        count: samples, drawn at once.
        seconds: for the measurement, about.
    """
    card = DataCard.of(dataset.info)
    network = initial_network(recipe).to(default_device())
    pipeline = build_pipeline(recipe, network, card)
    pipeline.denoiser.eval()

    def evaluate(samples: int) -> float:
        rng = Rng.of(0, samples, device=default_device())
        x = pipeline.denoiser.process.prior(card.shape, rng=rng, device=default_device())
        cond = pipeline.conditioner.null(samples, default_device())
        return _seconds(lambda: pipeline.denoiser(x, torch.full((), 0.5, device=default_device()), cond))

    with torch.inference_mode():
        few = min(_FEW, count)
        evaluate(few)
        each = evaluate(few) / few
        if each * count > seconds / 4:
            return each * count * recipe.sample.evaluations
        evaluate(count)
        return sorted(evaluate(count) for _ in range(3))[1] * recipe.sample.evaluations


def matrix_rate(precision: Precision, seconds: float = 1.0) -> float:
    """Return the best rate at which this machine multiplies matrices, in FLOP a second.

    Args:
        precision: of the numbers.
        seconds: how long to try.
    """
    device = default_device()
    side = 2048 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32
    a = torch.ones(side, side, dtype=dtype, device=device)
    began, best = time.perf_counter(), _seconds(lambda: a @ a)
    while time.perf_counter() - began < seconds:
        best = min(best, _seconds(lambda: a @ a))
    return 2 * side**3 / best


def available_memory() -> int:
    """Return the bytes that a training process could still take where it trains: on the accelerator, or in RAM.

    Of RAM that is what the system says can be had without swapping, or what the limit of the container leaves.
    """
    if default_device().type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    room = [int(psutil.virtual_memory().available)]
    for limit, used in _CGROUPS:
        if limit.is_file() and limit.read_text().strip().isdecimal():
            room.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(room), 0)


def _sized(recipe: Recipe, batch: int) -> TrainConfig:
    micro = recipe.train.micro_batch
    return replace(
        recipe.train, batch_size=batch, micro_batch=None if micro is None else min(micro, batch), compile=False
    )


def _trainer(recipe: Recipe, batches: Batches, config: TrainConfig) -> Trainer:
    return Trainer(build_training(recipe, initial_network(recipe)).to(default_device()), batches, config)


def _batches(recipe: Recipe, dataset: Dataset) -> ShuffledBatches:
    return ShuffledBatches(dataset, seed_of("data", recipe.train.seed), flip=recipe.data.flip)


def _steps(trainer: Trainer, count: int) -> list[TrainStep]:
    return [trainer.advance() for _ in range(count)]


def _seconds(work: Callable[[], object]) -> float:
    if default_device().type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
