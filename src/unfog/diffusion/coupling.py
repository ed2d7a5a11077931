"""Which noise goes with which example.

Flow matching may pair data and noise within a batch as it likes, as long as each example and each noise is used once:
pairs at a small distance give straighter paths, which fewer steps follow. Input and target are formed from the same
pairs.

What that means. The pairing is a function of the examples that are paired together: a micro-batch of one process. It is
the same whenever that is the same, so a run that is resumed as it was goes on bit for bit; but another micro-batch or
number of processes pairs others, and the result is another draw of the same method, not that of one process but for
rounding. The noise is no longer independent of the data: what is learned is the velocity of the paths from noise to
data, which deterministic samplers follow, whereas the score, and with it samplers that add noise, likelihoods and the
bound, would be those of another process. The paths should begin in pure noise (``alpha_1 = 0``, as in
``RectifiedFlow``).

Examples are paired among those of the same condition. Across conditions, some would get noise that is nearer to them
than to others, while sampling draws it alike for all of them.

Sources:
    Tong et al. 2023 (arXiv 2302.00482) and Pooladian et al. 2023 (2304.14772): minibatch couplings for flow matching.
    Cheng, Schwing 2025 (2503.10636): why conditions must not be mixed. Jonker, Volgenant 1987, "A shortest augmenting
    path algorithm for dense and sparse linear assignment problems": the assignment.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.checks import require

_AT_ONCE = 16
"""Columns from which a search goes on at once, the nearest ones. One by one, none would be looked at again, but each
would cost as much as all together."""

_ROUNDS = 32
"""Rounds of bidding; afterwards few rows compete for fewer columns, which other means decide faster."""


class Coupling(ABC):
    """The interface."""

    @abstractmethod
    def pair(self, x0: Tensor, noise: Tensor, group: Tensor) -> Tensor:
        """Return the number of the noise that each example gets: ``(B,)`` int64, each number once.

        Args:
            x0: ``(B, ...)`` examples.
            noise: ``(B, ...)`` noise, as it was drawn for each.
            group: ``(B,)`` int64, equal for examples of the same condition.
        """

    @property
    @abstractmethod
    def independent(self) -> bool:
        """Whether the noise of an example is independent of the example."""


@dataclass(frozen=True)
class Independent(Coupling):
    """Each example keeps the noise that was drawn for it."""

    def pair(self, x0: Tensor, noise: Tensor, group: Tensor) -> Tensor:
        return torch.arange(len(x0), device=x0.device)

    @property
    def independent(self) -> bool:
        return True


@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """The pairs of least total squared distance, exactly, by an assignment on the processor.

    Attributes:
        by_condition: whether only examples of the same condition exchange noise; without, as the first publications had
            it, a conditional model learns from noise that depends on its condition.
    """

    by_condition: bool = True

    def pair(self, x0: Tensor, noise: Tensor, group: Tensor) -> Tensor:
        # |x - n|^2 = |x|^2 + |n|^2 - 2 x n, of which a permutation changes the sum of the last term alone.
        with torch.autocast(x0.device.type, enabled=False):
            cost = -(x0.flatten(1).float() @ noise.flatten(1).float().T).double().cpu()
        groups = group.cpu() if self.by_condition else torch.zeros(len(x0), dtype=torch.int64)
        result = torch.arange(len(x0))
        for name in sorted(set(groups.tolist())):
            members = (groups == name).nonzero()[:, 0]
            result[members] = members[assignment(cost[members][:, members])]
        return result.to(x0.device)

    @property
    def independent(self) -> bool:
        return False


def assignment(cost: Tensor) -> Tensor:
    """Return the assignment of columns to rows with the least total cost.

    Rows first bid for columns, all at once, which settles most of them; the rest is inserted one by one along shortest
    augmenting paths, so the result is optimal but for the rounding of sums.

    Args:
        cost: ``(n, n)`` finite.

    Returns:
        ``(n,)`` int64: the column of each row.

    Raises:
        ValueError: if the matrix is not square, or not finite.

    Source:
        Jonker, Volgenant 1987: augmenting row reduction, here for all free rows at once, and augmentation.
    """
    require(cost.ndim == 2 and cost.shape[0] == cost.shape[1], f"a square matrix of costs, not {tuple(cost.shape)}")
    require(bool(cost.isfinite().all()), "costs that are finite")
    costs = cost.detach().to("cpu", torch.float64)
    if len(costs) < 2:
        return torch.arange(len(costs))
    price, column_of, row_of = _bidding(costs)
    for row in (column_of < 0).nonzero()[:, 0].tolist():
        _insert(costs, price, column_of, row_of, row)
    return column_of


def _bidding(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let rows bid for columns for some rounds, which settles most of them.

    Returns:
        Prices of the columns, the column of each row and the row of each column, ``(n,)`` each, -1 where there is none.
        For a row that has a column, ``cost + price`` is nowhere less than there.
    """
    count = len(costs)
    price = -costs.min(0).values
    column_of, row_of = (torch.full((count,), -1, dtype=torch.int64) for _ in range(2))
    for _ in range(_ROUNDS):
        free = (column_of < 0).nonzero()[:, 0]
        if len(free) == 0:
            break
        (best, second), (wanted, _) = (pair.unbind(1) for pair in (costs[free] + price).topk(2, largest=False))
        # A column goes to the row that would lose most without it, at the price at which that row has another as good.
        bid = second - best
        order = bid.argsort(descending=True, stable=True)
        order = order[wanted[order].argsort(stable=True)]
        asked = wanted[order]
        foremost = torch.cat([torch.ones(1, dtype=torch.bool), asked[1:] != asked[:-1]])
        sold, buyer = asked[foremost], order[foremost]
        before = row_of[sold]
        column_of[before[before >= 0]] = -1
        row_of[sold], column_of[free[buyer]] = free[buyer], sold
        price[sold] += bid[buyer]
    return price, column_of, row_of


def _insert(costs: Tensor, price: Tensor, column_of: Tensor, row_of: Tensor, row: int) -> None:
    """Find a column for a row that has none, along the shortest path of exchanges; everything changes in place."""
    free = row_of < 0
    distance = costs[row] + price
    previous = torch.full_like(row_of, row)
    waiting = ~free
    # What is less than this is rounding, and following it could go round in circles.
    least_gain = 1e-13 * float(distance.abs().max())
    while True:
        length, end = distance.masked_fill(~free, torch.inf).min(0)
        ahead = distance.masked_fill(~(waiting & (distance < length)), torch.inf)
        near, columns = ahead.topk(min(_AT_ONCE, len(ahead)), largest=False)
        columns = columns[near < torch.inf]
        if len(columns) == 0:
            break
        waiting[columns] = False
        holders = row_of[columns]
        offset = distance[columns] - costs[holders, columns] - price[columns]
        beyond, which = (costs[holders] + offset[:, None]).min(0)
        beyond += price
        nearer = beyond < distance - least_gain
        distance = torch.where(nearer, beyond, distance)
        previous = torch.where(nearer, holders[which], previous)
        waiting |= nearer & ~free
    price += (length - distance).clamp_min(0.0)
    column, giver = int(end), -1
    while giver != row:
        giver = int(previous[column])
        before = int(column_of[giver])
        row_of[column], column_of[giver], column = giver, column, before
