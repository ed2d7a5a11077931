"""What a run needs, computed before it starts: parameters, memory, arithmetic, disk and, from a short probe, time.

What is computed from the recipe alone is exact: parameters, the memory of weights, gradients, optimiser state and
averages, the arithmetic of a forward and a training pass, the bytes of tensors in a checkpoint. Activations and times
are measured elsewhere (``unfog.recipe.probe``) and come in here as numbers, so everything here is arithmetic.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unfog.diffusion.checks import require
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.recipe.networks import build_network
from unfog.recipe.schema import Recipe
from unfog.training.ema import Power

_HEADER = 130
"""Bytes that one tensor's entry in a safetensors header takes, about."""

_LINE = 300
"""Bytes of a line of the log, about."""


@dataclass(frozen=True)
class Part:
    """A module at the top of the network.

    Attributes:
        name: of the attribute.
        parameters: how many it holds.
    """

    name: str
    parameters: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a training process holds all the time, on the device where it trains.

    Attributes:
        weights: parameters and buffers.
        gradients: of all trainable parameters.
        optimizer: state of AdamW.
        averages: of each average of the weights, by the name of its file.
        copied: buffers that the averages keep.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: dict[str, int]
    copied: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + sum(self.averages.values()) + self.copied


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Attributes:
        checkpoint: one checkpoint.
        snapshots: averages kept for synthesis after the run, all of them.
        log: all lines.
        finished: the run folder at the end, without pictures and report.
        most: the most it needs on the way: one checkpoint more, while that is written.
    """

    checkpoint: int
    snapshots: int
    log: int
    finished: int
    most: int


@dataclass(frozen=True)
class Activations:
    """Memory that comes and goes within a step: what was measured for one example, or a line where that is more.

    Attributes:
        floor: bytes for one example, mostly gradients on their way.
        fixed: where the line begins.
        per_sample: bytes for each example.
    """

    floor: float
    fixed: float
    per_sample: float

    @staticmethod
    def through(floor: float, first: tuple[int, float], second: tuple[int, float]) -> "Activations":
        """Return the line through two measurements, each a micro-batch and its bytes, and what it starts from.

        Raises:
            ValueError: if they are of one micro-batch.
        """
        (few, low), (many, high) = first, second
        require(few != many, f"two micro-batches that differ, got {few} twice")
        slope = (high - low) / (many - few)
        return Activations(floor, low - slope * few, slope)

    def at(self, micro_batch: int) -> float:
        """Return the bytes for a micro-batch."""
        return max(self.floor, self.fixed + self.per_sample * micro_batch)

    def largest(self, room: float) -> int:
        """Return the largest micro-batch that needs at most so many bytes; 0 if none does."""
        if self.per_sample <= 0 or room < self.floor:
            return 0
        return max(math.floor((room - self.fixed) / self.per_sample), 0)


@dataclass(frozen=True)
class Spread:
    """A measured time or what follows from it.

    Attributes:
        median: the middle of the measurements.
        low: their lower quartile.
        high: their upper quartile.
    """

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Return median and quartiles; of one value, that value.

        Raises:
            ValueError: if there are none.
        """
        require(len(values) > 0, "at least one measurement, got none")
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)

    def __mul__(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def shapes_of(recipe: Recipe) -> nn.Module:
    """Return the network of a recipe without its numbers.

    What is learned beside it is small. Of an energy it is the network that says it: its gradient, which is the
    prediction, takes a backward pass more, and arithmetic is counted without.
    """
    with torch.device("meta"):
        return build_network(recipe.network)


def stand_ins(recipe: Recipe, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return stand-ins for what the network takes: one image, its noise level, its condition."""
    network = recipe.network
    if isinstance(network, EncoderConfig):
        return torch.zeros(1, network.in_channels, height, width), torch.zeros(1), {}
    cond = {} if network.num_classes is None else {"label": torch.zeros(1, dtype=torch.int64)}
    if network.attributes:
        cond["attributes"] = torch.zeros(1, len(network.attributes), dtype=torch.int64)
    if network.vector_dim is not None:
        cond["vector"] = torch.zeros(1, network.vector_dim)
    return torch.zeros(1, network.in_channels, height, width), torch.zeros(1), cond


def parts_of(network: nn.Module) -> list[Part]:
    """Return the parameters of each module at the top of a network, those it holds itself under its own name.

    Parameters that are shared count where they come first, so that the sum is the total.
    """
    seen: set[int] = set()
    parts = []
    for name, module in [*network.named_children(), (type(network).__name__, network)]:
        fresh = [p for p in module.parameters() if id(p) not in seen]
        seen.update(map(id, fresh))
        if fresh:
            parts.append(Part(name, sum(p.numel() for p in fresh)))
    return parts


def memory_of(recipe: Recipe, network: nn.Module) -> Memory:
    """Return what training a network holds all the time.

    Args:
        recipe: how it is trained.
        network: from ``shapes_of``.
    """
    parameters = list(network.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    entries = network.state_dict()
    buffers = sum(b.nbytes for b in network.buffers())
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    copied = sum(tensor.nbytes for name, tensor in entries.items() if name not in names)
    # Averages are at least float32; AdamW keeps two moments and, in float32, the number of its steps.
    average = sum(tensor.numel() * max(tensor.element_size(), 4) for name, tensor in entries.items() if name in names)
    gradients = sum(p.nbytes for p in trainable)
    return Memory(
        weights=sum(p.nbytes for p in parameters) + buffers,
        gradients=gradients,
        optimizer=2 * gradients + 4 * len(trainable),
        averages={kind.name: average for kind in recipe.train.averages},
        copied=copied,
    )


def disk_of(recipe: Recipe, network: nn.Module) -> Disk:
    """Return what a run takes on disk.

    Args:
        recipe: how long it is, and what is saved when.
        network: from ``shapes_of``.
    """
    memory, train, save = memory_of(recipe, network), recipe.train, recipe.save
    entries = network.state_dict()
    weights = sum(tensor.nbytes for tensor in entries.values()) + _HEADER * len(entries)
    averages = {name: bytes_ + memory.copied + _HEADER * len(entries) for name, bytes_ in memory.averages.items()}
    trainable = sum(p.requires_grad for p in network.parameters())
    checkpoint = weights + sum(averages.values()) + memory.optimizer + 3 * _HEADER * trainable
    times = 0 if train.snapshot_every is None else train.steps // train.snapshot_every
    snapshots = times * sum(averages[kind.name] for kind in train.averages if isinstance(kind, Power))
    log = _LINE * (train.steps // save.log_every)
    saved = min(save.keep, math.ceil(train.steps / save.checkpoint_every))
    finished = saved * checkpoint + snapshots + log
    return Disk(checkpoint, snapshots, log, finished, finished + checkpoint)


def training_flops(network: nn.Module, x: Tensor, level: Tensor, cond: dict[str, Tensor]) -> int:
    """Count the multiply-adds x 2 of a forward and a backward pass, recomputed activations included.

    Args:
        network: from ``shapes_of``.
        x: what it takes, with its noise level and condition, from ``stand_ins``.
        level: see there.
        cond: see there.
    """
    keywords = {name: tensor.to("meta") for name, tensor in cond.items()}
    trainable = [p for p in network.parameters() if p.requires_grad]
    # Fused attention kernels have no formula on every device; as plain matrix products they are counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = network(x.to("meta"), level.to("meta"), **keywords)
        torch.autograd.grad(out.sum(), trainable, allow_unused=True)
    return int(counter.get_total_flops())


def training_seconds(recipe: Recipe, step: Spread, probed: int, preview: float) -> Spread:
    """Return how long training takes.

    Args:
        recipe: how many steps of how many examples.
        step: seconds of a step.
        probed: examples of that step; scaled in proportion where the recipe's are more.
        preview: seconds of a preview.
    """
    train, every = recipe.train, recipe.save.preview_every
    previews = 0 if every is None else math.ceil(train.steps / every)
    scaled = step * (train.batch_size / probed * train.steps)
    drawn = previews * preview
    return Spread(scaled.median + drawn, scaled.low + drawn, scaled.high + drawn)
