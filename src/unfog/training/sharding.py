"""A player of which each process holds a share (``fully_shard``, FSDP2); see ``spread``."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unfog.data.batch import Batch
from unfog.diffusion.checks import require
from unfog.diffusion.random import Rng
from unfog.tasks.task import Loss, Task
from unfog.training.parallel import World
from unfog.training.spread import Spread, Whole, blocks_of


class Sharded(Spread):
    """A share in each process, begun from the weights of process 0.

    Weights are gathered in the dtype in which they are kept, and autocast makes of them what it makes in one process.

    Args:
        task: whose loss it is.
        name: of the player.
        module: the player; its weights become ``DTensor``.
        world: of more than one process.
        channels_last: whether activations are laid out channels last; gathered weights are contiguous always, and the
            convolutions follow their input.

    Raises:
        ValueError: if the player is the task itself, or has weights without axes.
    """

    even = True

    def __init__(self, task: Task, name: str, module: nn.Module, world: World, *, channels_last: bool) -> None:
        require(
            module is not task,
            f"a player that is called as a module, got the task itself for {name!r}, whose loss() is no call; make the "
            f"network an attribute of the task, or train with parallel=replicate",
        )
        scalars = [key for key, weight in module.named_parameters() if weight.ndim == 0]
        require(
            not scalars,
            f"weights with at least one axis to be sharded, got scalars {scalars} in {name!r}; give them the shape "
            f"(1,), or train with parallel=replicate",
        )
        world.follow_(*module.parameters())
        if channels_last:
            module.register_forward_pre_hook(_channels_last, with_kwargs=True)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks_of(module):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # Those of the root are needed again at once, when the backward pass begins.
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
        self._task, self._name, self._module, self._world = task, name, cast(FSDPModule, module), world

    def piece(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return self._task.loss(batch, self._name, rng=rng)

    def backward(self, total: Tensor) -> None:
        # What is differentiated is the gathered weights, which are no parameters outside of a pass: the gradients of
        # other players on the way are computed too, and cleared when these move. The mean becomes the sum.
        torch.autograd.backward(total * self._world.size)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @contextmanager
    def alone(self) -> Iterator[Spread]:
        parts = [part for part in cast(nn.Module, self._module).modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
        self._communicating(False)
        try:
            with Whole(self._task, self._name, cast(nn.Module, self._module)).alone() as whole:
                yield whole
        finally:
            self._communicating(True)
            for part in parts:
                part.reshard()

    def _communicating(self, does: bool) -> None:
        self._module.set_reshard_after_forward(does)
        self._module.set_reshard_after_forward(False, recurse=False)
        self._module.set_reshard_after_backward(does)
        self._module.set_requires_gradient_sync(does)


def sharded_like(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors sharded as ``own`` of the same names are; each process cuts its share out of whole ones."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        like = own[name]
        if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
            return tensor
        mesh, placements = like.device_mesh, like.placements
        return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)

    return {name: cut(name, tensor) for name, tensor in tensors.items()}


def _channels_last(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def laid_out(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value

    return tuple(map(laid_out, args)), {name: laid_out(value) for name, value in kwargs.items()}
