"""Learning to draw by a game: a critic learns to tell data from samples, a generator to deceive it.

Both move in each step on the same examples, whose classes the samples share, each with a loss of its own:

    hinge             critic  E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))     generator  -E D(G(z))
    non-saturating    critic  E softplus(-D(x)) + E softplus(D(G(z)))        generator   E softplus(-D(G(z)))

The critic's slope at the data is penalised by R1, ``gamma / 2 E |grad D(x)|^2``, so that a game whose samples are right
comes to rest. It is lazy: of every so many examples, counted by their running position, one bears the penalty of all.
That costs as little as a penalty in one of so many steps, but its expectation is right in every step, and no step is
unlike its neighbours, for whose sake Adam's constants would have to be changed.

Sources:
    Goodfellow et al. 2014 (arXiv 1406.2661), section 3: the non-saturating loss. Lim, Ye 2017 (1705.02894) and Miyato
    et al. 2018 (1802.05957): the hinge. Mescheder, Geiger, Nowozin 2018 (1801.04406), section 4.1: R1. Karras et al.
    2020 (1912.04958), section 3.1: lazy regularisation, there by steps.
"""

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.batch import Batch
from unfog.diffusion.checks import require
from unfog.diffusion.nn.gan import Critic, Generator
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.task import Loss, Task


class Game(Enum):
    """What the two players minimise."""

    HINGE = "hinge"
    NON_SATURATING = "non-saturating"

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the critic's loss of each example, given its answers ``(B,)`` to data and samples."""
        if self is Game.HINGE:
            return F.relu(1.0 - real) + F.relu(1.0 + fake)
        return F.softplus(-real) + F.softplus(fake)

    def generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss of each example, given the critic's answers ``(B,)`` to its samples."""
        return -fake if self is Game.HINGE else F.softplus(-fake)


class Adversarial(Task):
    """Let a generator, the player ``model``, and a ``critic`` learn from each other.

    Args:
        generator: draws.
        critic: judges.
        game: what they minimise.
        gamma: of R1, at least 0.
        every: of so many examples one bears the penalty, at least 1.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        generator: Generator,
        critic: Critic,
        *,
        game: Game = Game.NON_SATURATING,
        gamma: float = 1.0,
        every: int = 16,
    ) -> None:
        super().__init__()
        require(gamma >= 0, f"a gamma of at least 0, got {gamma}")
        require(every >= 1, f"every of at least 1 example, got {every}")
        self.generator, self.critic = generator, critic
        self.game, self.gamma, self.every = game, gamma, every

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.generator, "critic": self.critic}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the loss of a player.

        Args:
            batch: ``x0``, and ``label`` for networks that know classes.
            player: ``"model"`` or ``"critic"``.
            rng: one key per example, for the latent vectors, which differ between the players.

        Raises:
            ValueError: if there is no such player.
        """
        label = batch.values["label"] if self.critic.label is not None else None
        if player == "model":
            total = self.game.generator(self._judged(self._drawn(rng, label, Purpose.PRIOR), label)).mean()
            return Loss(total, {"generator": total.detach()})
        require(player == "critic", f"the player 'model' or 'critic', got {player!r}")
        x0 = batch.values["x0"]
        with torch.no_grad():
            drawn = self._drawn(rng, label, Purpose.NOISE)
        real, fake = self._judged(x0, label), self._judged(drawn, label)
        game, penalty = self.game.critic(real, fake).mean(), self._penalty(x0, label, rng)
        told = {
            "critic": game,
            "penalty": penalty,
            "told_apart": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()),
        }
        return Loss(game + penalty, {name: value.detach() for name, value in told.items()})

    def penalty(self, x0: Tensor, label: Tensor | None) -> Tensor:
        """Return ``gamma / 2 |grad D(x)|^2`` of each example, ``(B,)``, with its graph."""
        x0 = x0.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._judged(x0, label).sum(), x0, create_graph=True)
        return 0.5 * self.gamma * slope.square().flatten(1).sum(1)

    def _penalty(self, x0: Tensor, label: Tensor | None, rng: Rng) -> Tensor:
        bearing = rng.position % self.every == 0
        if self.gamma == 0 or not bearing.any():
            return x0.new_zeros(())
        penalties = self.penalty(x0[bearing], None if label is None else label[bearing])
        return self.every * penalties.sum() / len(x0)

    def _drawn(self, rng: Rng, label: Tensor | None, purpose: Purpose) -> Tensor:
        z = rng.normal((self.generator.config.latent_dim,), purpose).to(next(self.generator.parameters()))
        samples: Tensor = self.generator(z, label)
        return samples

    def _judged(self, x: Tensor, label: Tensor | None) -> Tensor:
        scores: Tensor = self.critic(x, label)
        # In float32 where the network ran in 16 bits.
        return scores.float() if scores.dtype.itemsize < 4 else scores
