"""Conditioners: raw conditions to what a network takes, and the null condition that stands for none.

The null of a model is the one that it was trained with: it belongs to the conditioner, is saved with the model, and
both training (condition dropout) and guidance take it from here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.shapes import align


class Conditioner(nn.Module, ABC):
    """The interface.

    Args:
        dropout: probability with which a condition is replaced by the null in training, in [0, 1]; a model
            trained without cannot be guided.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        require(0 <= dropout <= 1, f"a dropout in [0, 1], not {dropout}")
        self.dropout = dropout

    @abstractmethod
    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn raw conditions ``(B, ...)`` by name into the network's; other values are left aside."""

    @abstractmethod
    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return the null condition of ``count`` examples."""

    @final
    def drop(self, cond: Mapping[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Replace the conditions of some examples by the null; a whole condition is kept or dropped at once."""
        if self.dropout == 0 or not cond:
            return dict(cond)
        dropped = rng.uniform((), Purpose.CONDITION) < self.dropout
        null = self.null(len(rng), dropped.device)
        return {name: torch.where(align(dropped, value), null[name], value) for name, value in cond.items()}


class Unconditional(Conditioner):
    """No condition."""

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        return {}


class Label(Conditioner):
    """A class: ``label`` in [0, classes); the null is the label ``classes``, whose embedding the network learns.

    Labels on the CPU are refused out of this range. On other devices they are taken as they come: data sets and
    ``Pipeline.check`` refuse wrong ones before they are sent there.

    Args:
        classes: how many classes there are.
        dropout: probability with which a label is replaced by the null in training.
    """

    def __init__(self, classes: int, dropout: float = 0.1) -> None:
        super().__init__(dropout)
        require(classes >= 1, f"at least 1 class, not {classes}")
        self.classes = classes

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        require("label" in values, f"values with a label, not only {sorted(values)}")
        label = values["label"]
        # Reading from another device would wait for it; what comes from there was checked where it came in.
        if label.device.type == "cpu":
            wrong = label[(label < 0) | (label >= self.classes)]
            require(len(wrong) == 0, f"labels from 0 to {self.classes - 1}, not {sorted(set(wrong.tolist()))[:8]}")
        return {"label": label}

    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        return {"label": torch.full((count,), self.classes, dtype=torch.int64, device=device)}
