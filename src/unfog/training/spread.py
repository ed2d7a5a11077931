"""How the work on one player is spread over processes.

Each process takes its part of a step's examples, and the gradient is the sum over processes of what they contribute,
each example counting as it does in one process.

``Replicated`` keeps a whole copy of the weights in each process (``DistributedDataParallel``): gradients are summed
while the backward pass goes on. ``sharding.Sharded`` keeps of weights, gradients, averages and optimiser state only a
share in each process (``fully_shard``, FSDP2) and gathers the weights of one block at a time: for networks that do not
fit otherwise. Both leave the names of the weights as they are.

Source:
    Li et al. 2020 (arXiv 2006.15704): DistributedDataParallel. Rajbhandari et al. 2019 (1910.02054), section 5: stages
    1 to 3 of sharding; Zhao et al. 2023 (2304.11277): FSDP.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unfog.data.batch import Batch
from unfog.diffusion.random import Rng
from unfog.tasks.task import Loss, Task
from unfog.training.config import Parallel
from unfog.training.parallel import World


class Spread(ABC):
    """One way of spreading the work on a player.

    Attributes:
        even: whether all processes must go through equally many micro-batches, because they communicate in each.
    """

    even: bool

    @abstractmethod
    def piece(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one micro-batch; gradients are summed over the processes in the last one of a step."""

    @abstractmethod
    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Return the loss of the player on a micro-batch of this process."""

    @abstractmethod
    def backward(self, total: Tensor) -> None:
        """Add to the gradients of the player's weights, those of the other processes included."""

    @abstractmethod
    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the global norm of the whole gradient, a scalar."""

    @abstractmethod
    def alone(self) -> AbstractContextManager["Spread"]:
        """Return the context in which this process goes through micro-batches for itself, with the whole weights.

        All processes enter and leave it together.
        """


class Whole(Spread):
    """One process that holds everything.

    Args:
        task: whose loss it is.
        name: of the player.
        module: the player.
    """

    even = False

    def __init__(self, task: Task, name: str, module: nn.Module) -> None:
        self._task, self._name = task, name
        self._parameters = [p for p in module.parameters() if p.requires_grad]

    def piece(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return self._task.loss(batch, self._name, rng=rng)

    def backward(self, total: Tensor) -> None:
        # What flows through another player on the way leaves no gradient in its weights, and none is computed.
        torch.autograd.backward(total, inputs=self._parameters)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients)

    @contextmanager
    def alone(self) -> Iterator[Spread]:
        yield self


class _Objective(nn.Module):
    """A player whose ``forward`` is its loss, for ``DistributedDataParallel`` looks at nothing else."""

    def __init__(self, whole: Whole, module: nn.Module) -> None:
        super().__init__()
        self.player = module  # of the task, the player alone is to be seen: the others' weights are not summed
        # Never used: torch would warn every user of a network all of whose weights are.
        self.unused = nn.Parameter(next(module.parameters()).new_zeros(1))
        self._whole = whole

    def forward(self, batch: Batch, rng: Rng) -> Loss:
        return self._whole.loss(batch, rng)


class Replicated(Spread):
    """A whole copy in each process, begun from that of process 0.

    Args:
        task: whose loss it is.
        name: of the player.
        module: the player.
        world: of more than one process.
    """

    even = False

    def __init__(self, task: Task, name: str, module: nn.Module, world: World) -> None:
        self._whole = Whole(task, name, module)
        self._world = world
        # Some weights may take no part in a step, as those of a branch that its examples do not enter. And if torch may
        # not count on all taking part, it keeps the packets in which it sums gradients as they are from the first step
        # on, so that a resumed run adds up in the same order.
        self._copies = DistributedDataParallel(
            _Objective(self._whole, module), find_unused_parameters=True, gradient_as_bucket_view=True
        )

    def piece(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else cast(AbstractContextManager[None], self._copies.no_sync())

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return cast(Loss, self._copies(batch, rng))

    def backward(self, total: Tensor) -> None:
        # The mean over processes, which is what it forms, becomes their sum.
        self._whole.backward(total * self._world.size)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        return self._whole.norm(gradients)

    def alone(self) -> AbstractContextManager[Spread]:
        return self._whole.alone()


def spread_over(
    world: World, how: Parallel, task: Task, name: str, module: nn.Module, *, channels_last: bool
) -> Spread:
    """Spread a player over the processes of a world."""
    if world.size == 1:
        return Whole(task, name, module)
    if how is Parallel.REPLICATE:
        return Replicated(task, name, module, world)
    from unfog.training.sharding import Sharded  # imports half as much as torch, which one process needs not

    return Sharded(task, name, module, world, channels_last=channels_last)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is a stack of: the innermost elements of its lists of modules.

    A transformer's blocks are found like that, and the residual blocks within the levels of a U-Net.
    """
    elements = [part for parts in module.modules() if isinstance(parts, nn.ModuleList) for part in parts]
    return [
        part
        for part in elements
        if next(part.parameters(), None) is not None
        and not any(isinstance(inner, nn.ModuleList) and len(inner) for inner in part.modules())
    ]


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with what other processes hold of them; all processes call it together, in the same order."""
    # A DTensor is told by its method, for the same reason.
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}
