"""What is asked of another library so that it can be measured beside Unfog."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn


class Training(Protocol):
    """Training in progress.

    Attributes:
        batch_size: examples a step.
        planned: steps at which a falling learning rate reaches its end; None if it does not fall.
    """

    batch_size: int
    planned: int | None

    def step(self) -> float:
        """Take one step and return its loss."""
        ...

    def plan(self, steps: int) -> None:
        """Say how many steps the whole training will have, where the learning rate depends on it."""
        ...

    def ema_network(self) -> nn.Module:
        """Return a copy of the network with the averaged weights, in evaluation mode."""
        ...

    def settings(self) -> dict[str, str]:
        """Say in words what is trained how."""
        ...


class Peer(Protocol):
    """Another library, for images of one shape."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def size(self) -> int:
        """Side of the images."""
        ...

    def version(self) -> str:
        """Return the installed version."""
        ...

    def network(self, parameters: int) -> nn.Module:
        """Return a fresh network of its default shape, its width scaled to the nearest number of parameters.

        Raises:
            ValueError: if no width comes within 5 % of the number.
        """
        ...

    def ddpm_network(self) -> nn.Module:
        """Return DDPM's network for 32x32 colour images, as near as the library's own blocks come."""
        ...

    def predict(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Call one of its networks on ``x`` ``(B, C, H, W)`` at the levels ``t`` ``(B,)`` int64."""
        ...

    def trainer(self, network: nn.Module, images: Tensor, seed: int, steps: int | None = None) -> Training:
        """Begin training as its own script does by default, in float32.

        Args:
            network: from ``network`` or ``ddpm_network``.
            images: ``(N, C, H, W)`` uint8.
            seed: of the order, the noise and the times.
            steps: of the whole training; its own default where None.
        """
        ...

    def sample(self, network: nn.Module, count: int, evaluations: int, seed: int) -> Tensor:
        """Draw ``(count, C, H, W)`` uint8: ancestrally at 1000 evaluations, else with its own faster sampler."""
        ...


TOLERANCE = 0.05
"""Largest relative difference of two networks that count as equal in size."""


def parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())


def nearest_width(widths: Iterable[int], build: Callable[[int], nn.Module], wanted: int) -> int:
    """Return the width whose network comes nearest to a number of parameters; the networks get no memory.

    Raises:
        ValueError: if none comes within ``TOLERANCE``.
    """
    with torch.device("meta"):
        sizes = {width: parameters(build(width)) for width in widths}
    best = min(sizes, key=lambda width: abs(sizes[width] - wanted))
    if abs(sizes[best] - wanted) > TOLERANCE * wanted:
        raise ValueError(
            f"expected a width with {wanted} parameters within {TOLERANCE:.0%}, the nearest has {sizes[best]}"
        )
    return best


def exact_halvings(size: int) -> int:
    """Return how often a side can be halved without a remainder."""
    return 0 if size % 2 else 1 + exact_halvings(size // 2)


class Shuffled:
    """Batches of images held in memory, in a new order each epoch; the last one of an epoch may be smaller.

    This is what ``torch.utils.data.DataLoader(dataset, batch_size, shuffle=True)`` yields, without decoding a file for
    each example: the peers are spared that cost.

    Args:
        images: ``(N, C, H, W)`` uint8.
        batch_size: examples a batch.
        generator: of the order.
    """

    def __init__(self, images: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self._images, self._batch_size, self._generator = images, batch_size, generator
        self._rest = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """Return the next batch: ``(B, C, H, W)`` float32 in [0, 1]."""
        if not len(self._rest):
            self._rest = torch.randperm(len(self._images), generator=self._generator)
        chosen, self._rest = self._rest[: self._batch_size], self._rest[self._batch_size :]
        return self._images[chosen].float().div_(255)
