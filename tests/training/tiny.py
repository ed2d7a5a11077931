"""A task and data small enough to be trained thousands of times, for the tests of this folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.random import Purpose, Rng, seed_of
from unfog.tasks.task import Loss, Task
from unfog.training.config import TrainConfig
from unfog.training.ema import Exponential
from unfog.training.optim import Cosine, OptimizerConfig
from unfog.training.trainer import Trainer


class TinyBatches:
    """Forty examples of eight numbers, in another order each epoch."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.data = Rng.of(5, 40).normal((8,), Purpose.SCRATCH).to(dtype)

    def take(self, start: int, count: int) -> Batch:
        positions = torch.arange(start, start + count)
        epochs = positions // len(self.data)
        pairs = zip(positions.tolist(), epochs.tolist(), strict=True)
        ids = torch.tensor([self._order(epoch)[position % len(self.data)] for position, epoch in pairs])
        return Batch({"x0": self.data[ids]}, ids, epochs, positions)

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of("order", epoch))
        order: list[int] = torch.randperm(len(self.data), generator=generator).tolist()
        return order


class TinyTask(Task):
    """Denoising with a network that has dropout, a convolution, a batch norm's buffers and an unused weight."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        layers = [
            nn.Linear(8, 12),
            nn.SiLU(),
            nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(16, 8),
        ]
        self.network = nn.Sequential(*layers)
        self.network.register_parameter("unused", nn.Parameter(torch.ones(3)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        x0 = batch.values["x0"]
        self.seen += len(x0)
        noisy = x0 + rng.normal((8,), Purpose.NOISE).to(x0)
        error = (self.network(noisy) - x0).pow(2)
        return Loss(error.mean(), {"first": error[:, 0].mean().detach()})


def tiny_config(steps: int = 20, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "steps": steps,
        "batch_size": 8,
        "micro_batch": 3,  # 3, 3, 2
        "seed": 7,
        "ema": (0.05, 0.10, Exponential(0.5)),  # its warm-up ends at the eighth step
        "optimizer": OptimizerConfig(lr=1e-2, weight_decay=0.01, clip=1.0, warmup_examples=40, decay=Cosine()),
    }
    return TrainConfig(**{**values, **changes})


def tiny_trainer(config: TrainConfig | None = None, task: Task | None = None) -> Trainer:
    """Make a trainer of the same weights each time, leaving torch's generator as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = TinyTask() if task is None else task
    return Trainer(made, TinyBatches(), config or tiny_config())


def differences(one: Mapping[str, Mapping[str, Tensor]], two: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Name what is not bit-equal between two states' tensors."""
    names = {(g, n) for state in (one, two) for g, tensors in state.items() for n in tensors}
    return sorted(
        f"{g}/{n}"
        for g, n in names
        if n not in one.get(g, {}) or n not in two.get(g, {}) or not torch.equal(one[g][n], two[g][n])
    )


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path, for comparing two runs."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
