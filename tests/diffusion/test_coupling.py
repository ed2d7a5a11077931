from collections.abc import Callable

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unfog.diffusion.coupling import Coupling, Independent, MinibatchOT, assignment
from unfog.diffusion.random import Purpose, Rng


def normal(seed: int, *shape: int) -> Tensor:
    return Rng.of(seed, shape[0]).normal(shape[1:], Purpose.SCRATCH).double()


def uniform(seed: int, n: int) -> Tensor:
    return Rng.of(seed, n).uniform((n,), Purpose.SCRATCH).double()


COSTS: dict[str, Callable[[int, int], Tensor]] = {
    "uniform": uniform,
    "inner products": lambda seed, n: -normal(seed, n, 64) @ normal(seed + 1, n, 64).T,
    "of clusters": lambda seed, n: (
        -(3 * normal(9, 4, 64)[torch.arange(n) % 4] + normal(seed, n, 64)) @ normal(3, n, 64).T
    ),
    "many ties": lambda seed, n: (uniform(seed, n) * 4).floor(),
    "all equal": lambda seed, n: torch.full((n, n), 2.5, dtype=torch.float64),
    "equal rows": lambda seed, n: uniform(seed, n)[:1].repeat(n, 1),
    # Products of ranks: the rows compete for the same columns all along, which is the worst case of bidding.
    "contested": lambda seed, n: torch.outer(torch.arange(n).double(), torch.arange(n).double()) / n,
    "large": lambda seed, n: 1e12 * uniform(seed, n) - 5e11,
}


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("kind", COSTS)
def test_the_assignment_is_the_cheapest(kind: str, n: int) -> None:
    for seed in range(5):
        cost = COSTS[kind](seed, n)
        columns = assignment(cost)
        assert sorted(columns.tolist()) == list(range(n))
        best = cost[linear_sum_assignment(cost.numpy())].sum()
        # Sums of n float64 numbers are rounded n times.
        assert cost[torch.arange(n), columns].sum() - best <= 1e-12 * n * cost.abs().max()


@pytest.mark.parametrize("kind", ["uniform", "inner products", "of clusters", "many ties"])
def test_the_assignment_of_a_large_batch_is_the_cheapest(kind: str) -> None:
    cost = COSTS[kind](0, 256)
    best = cost[linear_sum_assignment(cost.numpy())].sum()
    assert cost[torch.arange(256), assignment(cost)].sum() - best <= 1e-12 * 256 * cost.abs().max()


@pytest.mark.parametrize("cost", [torch.zeros(2, 3), torch.zeros(4), torch.tensor([[1.0, torch.nan], [0.0, 1.0]])])
def test_what_has_no_assignment_is_refused(cost: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected (a square matrix|costs that are finite)"):
        assignment(cost)


def pairs(coupling: Coupling, count: int = 64, groups: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, noise, group = normal(4, count, 2, 3), normal(5, count, 2, 3), torch.arange(count) % groups
    return x0, noise, group, coupling.pair(x0, noise, group)


def test_independent_noise_stays_where_it_is() -> None:
    assert pairs(Independent())[3].tolist() == list(range(64))


@pytest.mark.parametrize("groups", [1, 3, 64])
@pytest.mark.parametrize("coupling", [MinibatchOT(), MinibatchOT(by_condition=False)], ids=repr)
def test_each_noise_is_used_once_and_pairs_are_nearer(coupling: Coupling, groups: int) -> None:
    x0, noise, _, index = pairs(coupling, groups=groups)
    assert sorted(index.tolist()) == list(range(64))
    alone = coupling == MinibatchOT() and groups == 64
    before, after = ((x0 - other).square().sum() for other in (noise, noise[index]))
    assert (after == before) if alone else (after < 0.95 * before)


def test_noise_is_exchanged_within_conditions_alone() -> None:
    _, _, group, index = pairs(MinibatchOT(), groups=3)
    assert torch.equal(group[index], group)
    _, _, group, index = pairs(MinibatchOT(by_condition=False), groups=3)
    assert not torch.equal(group[index], group)


def test_pairs_are_those_of_least_squared_distance() -> None:
    x0, noise, _, index = pairs(MinibatchOT(), 12)
    distance = torch.cdist(x0.flatten(1), noise.flatten(1)).square()
    best = distance[linear_sum_assignment(distance.numpy())].sum()
    # Inner products are formed in float32.
    assert distance[torch.arange(12), index].sum().item() == pytest.approx(best.item(), rel=1e-6)


def test_a_pair_belongs_to_the_batch_whatever_its_order() -> None:
    x0, noise, group, index = pairs(MinibatchOT(), 32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = MinibatchOT().pair(x0[order], noise, group)
    assert torch.equal(noise[shuffled], noise[index][order])
    assert torch.equal(MinibatchOT().pair(x0, noise, group), index)


def test_autocast_does_not_blur_the_distances() -> None:
    x0, noise, group, index = pairs(MinibatchOT())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MinibatchOT().pair(x0.float(), noise.float(), group), index)
