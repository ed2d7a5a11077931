"""How a run trains: the values that a trainer is given."""

from dataclasses import dataclass, field
from enum import Enum

from unfog.diffusion.checks import require
from unfog.training.ema import Average, Power, average_of
from unfog.training.optim import OptimizerConfig


class Precision(Enum):
    """In what the networks compute; weights, losses and averages are float32 (or float64) always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Parallel(Enum):
    """What each of several processes holds; one process holds everything."""

    REPLICATE = "replicate"
    """A whole copy of weights, averages and optimiser state (DistributedDataParallel)."""

    SHARD = "shard"
    """Its share of them (FSDP2), for networks that do not fit otherwise."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run, at least 1.
        batch_size: examples a step, over all processes.
        micro_batch: examples at a time in each process, to save memory; the last one of a step may be smaller. None:
            all at once.
        seed: of noise, times and dropout; in [0, 2**63).
        precision: in what the networks compute.
        compile: compile the networks (``torch.compile``); minutes at the start, faster afterwards.
        channels_last: keep 4-D weights in channels-last order, which convolutions like on many processors.
        parallel: what each process holds where there are several; it may change when a run is resumed.
        ema: averages of the weights to keep; a number is the length (sigma_rel) of an ``ema.Power``.
        snapshot_every: steps between snapshots of the power averages, for synthesis after the run; None stores none.
        optimizer: AdamW and its learning rate.
    """

    steps: int
    batch_size: int
    micro_batch: int | None = None
    seed: int = 0
    precision: Precision = Precision.FLOAT32
    compile: bool = False
    channels_last: bool = False
    parallel: Parallel = Parallel.REPLICATE
    ema: tuple[float | Average, ...] = (0.05, 0.10)
    snapshot_every: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps of at least 1, got {self.steps}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")
        require(
            self.micro_batch is None or 1 <= self.micro_batch <= self.batch_size,
            f"a micro_batch from 1 to batch_size {self.batch_size}, or None for all at once, got {self.micro_batch}",
        )
        require(0 <= self.seed < 2**63, f"a seed in [0, 2**63), got {self.seed}")
        averages = self.averages  # refuses lengths out of range here, before anything runs
        require(len(set(averages)) == len(averages), f"averages in ema that differ, got {self.ema}")
        require(
            self.snapshot_every is None or self.snapshot_every >= 1,
            f"snapshot_every of at least 1 step, or None for no snapshots, got {self.snapshot_every}",
        )
        require(
            self.snapshot_every is None or any(isinstance(average, Power) for average in averages),
            f"snapshot_every=None without a power average in ema, got {self.snapshot_every} with {self.ema}; averages "
            f"of other kinds cannot be formed from snapshots",
        )

    @property
    def averages(self) -> tuple[Average, ...]:
        """The averages of the weights to keep, numbers turned into what they stand for."""
        return tuple(map(average_of, self.ema))

    @property
    def total_examples(self) -> int:
        """Examples of the whole run, counted with repetition."""
        return self.steps * self.batch_size
