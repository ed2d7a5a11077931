"""Buffers of a task as they were before a step, for steps that are not applied.

A forward pass changes running statistics and counters on its way. One that brings out something that is not finite
would leave that in them, and so in the averages, which copy them.
"""

import torch
from torch import Tensor, nn


class Buffers:
    """Remembers the values of a module's buffers.

    Args:
        module: its buffers are those that it has now; each may be changed in place or replaced by a tensor like it.
    """

    def __init__(self, module: nn.Module) -> None:
        places = [(part, name) for part in module.modules() for name, _ in part.named_buffers(recurse=False)]
        self._places = [(part, name) for part, name in places if part.get_buffer(name).numel()]
        self._kept = [value.clone() for value in self._values()]

    def _values(self) -> list[Tensor]:
        return [part.get_buffer(name).detach() for part, name in self._places]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the values of now."""
        if self._kept:
            torch._foreach_copy_(self._kept, self._values())

    @torch.no_grad()
    def restore(self) -> None:
        """Bring back what was remembered."""
        if self._kept:
            torch._foreach_copy_(self._values(), self._kept)
