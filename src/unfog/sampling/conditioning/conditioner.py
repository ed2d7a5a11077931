"""Conditioners: raw conditions to what a network takes, and the null condition that stands for none.

The null of a model is the one that it was trained with: it belongs to the conditioner, is saved with the model, and
both training (condition dropout) and guidance take it from here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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

    parts: int = 0
    """How many parts of a condition are dropped by themselves."""

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

    def thin(self, cond: Mapping[str, Tensor], chance: Tensor) -> dict[str, Tensor]:
        """Drop some parts of conditions by themselves (hook; none unless a conditioner has ``parts``).

        Args:
            cond: of B examples.
            chance: ``(B, parts)`` uniform in (0, 1); a part is dropped where its number is below its probability.
        """
        return dict(cond)

    @final
    def drop(self, cond: Mapping[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Replace the conditions of some examples by the null, as a whole, and parts of others."""
        if self.parts and cond:
            cond = self.thin(cond, rng.uniform((self.parts,), Purpose.PARTS))
        if self.dropout == 0 or not cond:
            return dict(cond)
        return self._replaced(cond, rng.uniform((), Purpose.CONDITION) < self.dropout)

    @final
    def _replaced(self, cond: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
        """Return conditions of which some, ``(B,)`` bool, are replaced by the null."""
        null = self.null(len(dropped), dropped.device)
        return {name: torch.where(align(dropped, value), null[name].to(value), value) for name, value in cond.items()}


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


class Attributes(Conditioner):
    """Several attributes, each with a value or none: ``attributes`` ``(B, A)``, column i in [0, sizes[i]].

    The number ``sizes[i]`` says that attribute i is not told; all of them are the null, whose embedding the network
    learns. In training some attributes of some examples are dropped too, few or many being equally likely, so that a
    model can be told any of them and left free in the others.

    Args:
        sizes: how many values each attribute has.
        dropout: probability with which all are dropped at once.
        each: share of the examples that are told some attributes only, in [0, 1].
    """

    def __init__(self, sizes: Sequence[int], dropout: float = 0.1, each: float = 0.2) -> None:
        super().__init__(dropout)
        require(len(sizes) > 0 and min(sizes) >= 1, f"at least 1 value of at least 1 attribute, not {tuple(sizes)}")
        require(0 <= each <= 1, f"each in [0, 1], not {each}")
        self.sizes = tuple(sizes)
        self.each = each
        self.parts = 2 + len(sizes) if each > 0 else 0

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        require("attributes" in values, f"values with attributes, not only {sorted(values)}")
        given = values["attributes"]
        expected = (len(given), len(self.sizes))
        require(given.shape == expected, f"attributes of shape {expected}, not {tuple(given.shape)}")
        if given.device.type == "cpu":
            wrong = (given < 0) | (given > self._nulls(given.device))
            require(
                not wrong.any(), f"each attribute in [0, n] of {self.sizes}, not {given[wrong.any(1)][:4].tolist()}"
            )
        return {"attributes": given}

    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        return {"attributes": self._nulls(device).expand(count, -1).clone()}

    def thin(self, cond: Mapping[str, Tensor], chance: Tensor) -> dict[str, Tensor]:
        # Whether an example is thinned, the probability with which it loses an attribute, and each attribute's lot.
        dropped = (chance[:, :1] < self.each) & (chance[:, 2:] < chance[:, 1:2])
        return {"attributes": torch.where(dropped, self._nulls(chance.device), cond["attributes"])}

    def _nulls(self, device: torch.device | None) -> Tensor:
        return torch.tensor(self.sizes, dtype=torch.int64, device=device)


class Vector(Conditioner):
    """A vector of numbers, such as the embedding of a text, a picture or a style: ``vector`` ``(B, dim)``.

    The network gets one number more, 1 for a vector that is told and 0 for the null, which is all zeros: so the null is
    told from a vector of zeros, and the network learns what it means.

    Args:
        dim: numbers of a vector.
        dropout: probability with which a vector is replaced by the null in training.
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__(dropout)
        require(dim >= 1, f"vectors of at least 1 number, not {dim}")
        self.dim = dim

    @property
    def length(self) -> int:
        """``vector_dim`` of the network."""
        return self.dim + 1

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        require("vector" in values, f"values with a vector, not only {sorted(values)}")
        vector = values["vector"]
        expected = (len(vector), self.dim)
        require(vector.shape == expected, f"vectors of shape {expected}, not {tuple(vector.shape)}")
        return {"vector": torch.cat([vector, torch.ones_like(vector[:, :1])], dim=1)}

    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        return {"vector": torch.zeros(count, self.length, device=device)}


class Combined(Conditioner):
    """Several conditions in one model.

    Args:
        conditioners: of different conditions; the dropout of each drops its own condition, by itself.
        dropout: probability with which all conditions are dropped at once; a model that is to be guided needs it.
    """

    def __init__(self, conditioners: Sequence[Conditioner], dropout: float = 0.1) -> None:
        super().__init__(dropout)
        require(len(conditioners) > 0, "at least one conditioner, got none")
        self.conditioners = nn.ModuleList(conditioners)
        names = [name for conditioner in conditioners for name in conditioner.null(1)]
        require(len(set(names)) == len(names), f"conditioners of different conditions, not {names}")
        self.parts = sum(1 + conditioner.parts for conditioner in conditioners)

    def each(self) -> list[Conditioner]:
        """Return the conditioners."""
        return [conditioner for conditioner in self.conditioners if isinstance(conditioner, Conditioner)]

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for conditioner in self.each() for name, value in conditioner(values).items()}

    def null(self, count: int, device: torch.device | None = None) -> dict[str, Tensor]:
        return {name: value for part in self.each() for name, value in part.null(count, device).items()}

    def thin(self, cond: Mapping[str, Tensor], chance: Tensor) -> dict[str, Tensor]:
        thinned: dict[str, Tensor] = {}
        for part, own in zip(
            self.each(), torch.split(chance, [1 + part.parts for part in self.each()], dim=1), strict=True
        ):
            kept = {name: cond[name] for name in part.null(1)}
            thinned |= part._replaced(part.thin(kept, own[:, 1:]) if part.parts else kept, own[:, 0] < part.dropout)
        return thinned
