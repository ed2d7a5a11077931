"""How a run trains: the values that a trainer is given."""

from dataclasses import dataclass, field
from enum import Enum

from unfog.diffusion.checks import require
from unfog.training.ema import gamma_of
from unfog.training.optim import OptimizerConfig


class Precision(Enum):
    """In what the networks compute; weights, losses and averages are float32 (or float64) always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run, at least 1.
        batch_size: examples a step.
        micro_batch: examples at a time, to save memory; the last one of a step may be smaller. None: all at once.
        seed: of noise, times and dropout; in [0, 2**63).
        precision: in what the networks compute.
        compile: compile the networks (``torch.compile``); minutes at the start, faster afterwards.
        channels_last: keep 4-D weights in channels-last order, which convolutions like on many processors.
        ema: lengths of the averages of the weights (sigma_rel).
        snapshot_every: steps between stored averages for synthesis after the run; None stores none.
        optimizer: AdamW and its learning rate.
    """

    steps: int
    batch_size: int
    micro_batch: int | None = None
    seed: int = 0
    precision: Precision = Precision.FLOAT32
    compile: bool = False
    channels_last: bool = False
    ema: tuple[float, ...] = (0.05, 0.10)
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
        for length in self.ema:
            gamma_of(length)  # refuses lengths out of range here, before anything runs
        require(len(set(self.ema)) == len(self.ema), f"EMA lengths that differ, got {self.ema}")
        require(
            self.snapshot_every is None or self.snapshot_every >= 1,
            f"snapshot_every of at least 1 step, or None for no snapshots, got {self.snapshot_every}",
        )

    @property
    def total_examples(self) -> int:
        """Examples of the whole run, counted with repetition."""
        return self.steps * self.batch_size
