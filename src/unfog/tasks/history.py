"""What losses were at each noise level, and the draws that follow from it.

The uniform numbers from which times are formed are warped by a piecewise linear function: a level, one of equal parts
of (0, 1), is stretched as the root of the mean square of its last losses asks for, and the losses found there weigh as
much less. Within a step nothing changes: its losses are taken in together at its end, in the order of its examples,
whatever micro-batches and processes it was cut into. The history lies in buffers, so it is saved with the task.

Source:
    Nichol, Dhariwal 2021 (arXiv 2102.09672), section 3.3: ``p_t`` proportional to ``sqrt(E[L_t^2])`` over the last 10
    losses of each level, uniform until each has as many.
"""

import torch
from torch import Tensor, nn

from unfog.diffusion.times import Importance
from unfog.tasks.task import Gather

_EDGE = 2.0**-26


class LossHistory(nn.Module):
    """The last losses of each level.

    Args:
        importance: how many levels and losses, and the share of draws that they do not move.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, importance: Importance) -> None:
        super().__init__()
        self.importance = importance
        self.register_buffer("losses", torch.zeros(importance.levels, importance.history))
        self.register_buffer("counts", torch.zeros(importance.levels, dtype=torch.int64))
        self._noted: list[tuple[Tensor, Tensor]] = []

    def shares(self) -> Tensor:
        """Return the share of the draws that each level gets: ``(levels,)`` float64, their sum 1."""
        size = self.losses.double().square().mean(1).sqrt()
        even = torch.full_like(size, 1.0 / len(size))
        told = (self.counts.min() >= self.losses.shape[1]) & (size.sum() > 0)
        uniform = self.importance.uniform
        return torch.where(told, (1.0 - uniform) * size / size.sum().clamp_min(1e-300) + uniform * even, even)

    def warp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Move uniform numbers to where they are wanted.

        Args:
            u: ``(B,)`` float64 in (0, 1).

        Returns:
            The numbers moved, ``(B,)`` in (0, 1), and the weights of what is found there, ``(B,)`` float64: the mean of
            weight times f of the moved number is the mean of f of the number itself.
        """
        shares = self.shares()
        upper = shares.cumsum(0)
        level = torch.searchsorted(upper, u.contiguous(), right=True).clamp_max(len(shares) - 1)
        share = shares[level]
        within = ((u - (upper[level] - share)) / share).clamp(0.0, 1.0)
        moved = ((level + within) / len(shares)).clamp(_EDGE, 1.0 - _EDGE)
        return moved, 1.0 / (share * len(shares))

    def note(self, u: Tensor, loss: Tensor) -> None:
        """Keep the losses of a micro-batch until the end of the step.

        Args:
            u: ``(B,)`` moved numbers.
            loss: ``(B,)`` losses there, without the weight of the draw.
        """
        self._noted.append((u.detach(), loss.detach()))

    @torch.no_grad()
    def settle(self, gather: Gather, *, applied: bool) -> None:
        """Take in the losses of a step, or forget those of one that was not applied; see ``Task.settle``."""
        noted, self._noted = self._noted, []
        if not applied or not noted:
            return
        u, loss = (gather(torch.cat([pair[k].double() for pair in noted])) for k in (0, 1))
        levels, depth = self.losses.shape
        level = (u * levels).long().clamp_max(levels - 1)
        same = level[:, None] == level[None, :]
        before, after = same.tril(-1).sum(1), same.triu(1).sum(1)
        slot = (self.counts[level] + before) % depth
        # Of more losses than a level keeps, the last ones stay; the others go to a place that is thrown away.
        place = torch.where(after < depth, level * depth + slot, levels * depth)
        kept = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        kept[place] = loss.to(kept)
        self.losses.copy_(kept[:-1].view_as(self.losses))
        self.counts.add_(torch.bincount(level, minlength=levels))
