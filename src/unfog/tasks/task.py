"""What a trainer optimises: a task says which modules learn and what is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.random import Rng

Gather = Callable[[Tensor], Tensor]
"""Takes a number for each example that this process went through in a step, ``(N,)`` in the order in which it did, and
returns those of all examples of the step, in their order and alike in every process."""


class Loss(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: scalar, the mean over the examples of the batch, with its graph.
        parts: detached scalars to be logged, each a mean over the examples.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Task(nn.Module, ABC):
    """One way of learning."""

    @abstractmethod
    def players(self) -> Mapping[str, nn.Module]:
        """Return the modules that are trained, by name; more than one when they oppose each other."""

    @abstractmethod
    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the loss of one player on a batch.

        Args:
            batch: the examples.
            player: a key of ``players()``.
            rng: one key per example; every draw must come from it (dropout inside networks excepted, which the
                trainer seeds).
        """

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        """Return what is to be told of each example when a step fails (hook; nothing unless a task says something).

        Called under the same circumstances as ``loss`` with the same arguments, without gradients.

        Returns:
            ``(B,)`` each, such as the noise level; ``loss`` is each example's own share of the loss, by which a failure
            is traced to examples.
        """
        return {}

    def settle(self, gather: Gather, *, applied: bool) -> None:
        """Take in what a step brought out, once all players have moved (hook; nothing unless a task keeps something).

        Whatever is kept lies in buffers, so that it is saved, and changes here alone: then a step does not depend on
        the micro-batches and processes that it is cut into.

        Args:
            gather: brings the processes' numbers together; all processes call it equally often.
            applied: whether the step was; one that was not leaves no trace.
        """
