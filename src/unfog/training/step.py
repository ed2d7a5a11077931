"""What a trainer tells of a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from unfog.training.failures import Failure


@dataclass(frozen=True)
class PlayerStep:
    """What one step was for one player.

    Attributes:
        loss: mean over the examples of the batch, before the update.
        parts: what the task logged, means likewise.
        grad_norm: global norm of the gradient before clipping.
        applied: whether the update was made; it is not when the loss or the norm is not finite.
        failure: why it was not made; None if it was.
    """

    loss: float
    parts: Mapping[str, float]
    grad_norm: float
    applied: bool
    failure: Failure | None = None


@dataclass(frozen=True)
class TrainStep:
    """One step that was taken.

    Attributes:
        index: how many steps are done, this one included.
        examples: how many examples were seen, those of this step included.
        players: by name, in the order in which they moved.
        lr: learning rate.
        seconds: wall time of the step, waiting included.
        waited: seconds of it spent on getting the batch.
    """

    index: int
    examples: int
    players: Mapping[str, PlayerStep]
    lr: float
    seconds: float
    waited: float

    @property
    def first(self) -> PlayerStep:
        """The first player, the only one unless the task is adversarial."""
        return next(iter(self.players.values()))

    @property
    def loss(self) -> float:
        """The loss of the first player."""
        return self.first.loss

    @property
    def parts(self) -> Mapping[str, float]:
        """What the task logged for the first player."""
        return self.first.parts

    @property
    def grad_norm(self) -> float:
        """The gradient's norm of the first player."""
        return self.first.grad_norm

    @property
    def applied(self) -> bool:
        """Whether all players were updated."""
        return all(player.applied for player in self.players.values())

    @property
    def failures(self) -> list[Failure]:
        """Why players were not updated; none if all were."""
        return [player.failure for player in self.players.values() if player.failure is not None]
