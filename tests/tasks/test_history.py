import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion.times import Importance, Uniform
from unfog.tasks.history import LossHistory

GRID = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def history(levels: int = 4, depth: int = 3, uniform: float = 0.001) -> LossHistory:
    return LossHistory(Importance(Uniform(), levels, depth, uniform))


def take(kept: LossHistory, u: list[float], loss: list[float], *, applied: bool = True) -> None:
    kept.note(torch.tensor(u, dtype=torch.float64), torch.tensor(loss))
    kept.settle(lambda own: own, applied=applied)


def filled(sizes: list[float], uniform: float = 0.001) -> LossHistory:
    """A history in which each level had losses of one size."""
    kept = history(len(sizes), 2, uniform)
    for k, size in enumerate(sizes):
        take(kept, [(k + 0.5) / len(sizes)] * 2, [size, size])
    return kept


def test_nothing_moves_until_every_level_has_its_losses() -> None:
    kept = history(2, 3)
    for _ in range(3):
        assert torch.equal(kept.shares(), torch.full((2,), 0.5, dtype=torch.float64))
        take(kept, [0.1, 0.2, 0.9], [1.0, 1.0, 5.0])
    assert kept.shares()[1] > kept.shares()[0]


def test_the_share_of_a_level_is_the_root_of_its_mean_square() -> None:
    kept = history(2, 3, uniform=1e-9)
    take(kept, [0.1, 0.2, 0.3, 0.6, 0.7, 0.8], [1.0, 2.0, 2.0, 0.0, 0.0, 3.0])
    expected = torch.tensor([math.sqrt(3.0), math.sqrt(3.0)])
    torch.testing.assert_close(kept.shares().float(), expected / expected.sum())


def test_some_draws_follow_the_density_whatever_the_losses() -> None:
    shares = filled([0.0, 1.0, 1.0, 2.0], uniform=0.2).shares()
    torch.testing.assert_close(shares, 0.2 / 4 + 0.8 * torch.tensor([0, 0.25, 0.25, 0.5], dtype=torch.float64))


def test_losses_of_zero_everywhere_leave_the_density() -> None:
    assert torch.equal(filled([0.0, 0.0]).shares(), torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[1.0, 1.0, 1.0], [5.0, 0.1, 2.0, 0.0], [1e-3, 1e3]])
def test_weighted_means_over_moved_numbers_are_means_over_the_density(sizes: list[float]) -> None:
    moved, weight = filled(sizes).warp(GRID)
    assert ((moved > 0) & (moved < 1)).all()
    assert (moved.diff() >= 0).all()
    for f in (torch.ones_like, torch.sin, lambda u: (u < 0.37).double(), lambda u: u**7):
        # A midpoint rule over parts of the density that are stretched up to a thousandfold.
        assert (weight * f(moved)).mean().item() == pytest.approx(f(GRID).mean().item(), abs=1e-3)


def test_importance_makes_the_estimate_vary_less() -> None:
    sizes = torch.tensor([5.0, 0.2, 1.0, 0.05])
    moved, weight = filled(sizes.tolist()).warp(GRID)

    def loss(u: Tensor) -> Tensor:
        return sizes[(4 * u).long()]

    plain, better = loss(GRID), weight * loss(moved)
    assert better.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)
    # Where losses of a level are alike, shares in their proportion leave hardly any spread.
    assert better.std() < 0.05 * plain.std()


def test_the_last_losses_of_a_level_stay() -> None:
    kept = history(2, 3)
    take(kept, [0.1] * 5 + [0.9], [1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    assert kept.losses[0].sort().values.tolist() == [3.0, 4.0, 5.0]
    assert kept.losses[1].sort().values.tolist() == [0.0, 0.0, 9.0]
    take(kept, [0.2], [6.0])
    assert kept.losses[0].sort().values.tolist() == [4.0, 5.0, 6.0]
    assert kept.counts.tolist() == [6, 1]


@pytest.mark.parametrize("cuts", [[7], [3, 3, 1], [1] * 7])
def test_a_step_is_taken_in_alike_however_it_is_cut(cuts: list[int]) -> None:
    u = torch.tensor([0.1, 0.8, 0.2, 0.3, 0.9, 0.15, 0.25], dtype=torch.float64)
    loss = torch.arange(7.0)
    whole, pieces = history(2, 2), history(2, 2)
    take(whole, u.tolist(), loss.tolist())
    for part, piece in zip(u.split(cuts), loss.split(cuts), strict=True):
        pieces.note(part, piece)
    pieces.settle(lambda own: own, applied=True)
    assert torch.equal(pieces.losses, whole.losses)
    assert torch.equal(pieces.counts, whole.counts)


def test_processes_that_share_a_step_keep_what_one_keeps() -> None:
    u, loss = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)
    one, parts = history(2, 2), [history(2, 2), history(2, 2)]
    take(one, u.tolist(), loss.tolist())
    for part, rows in zip(parts, (slice(0, 5), slice(5, 8)), strict=True):
        part.note(u[rows], loss[rows])
        told = iter([u, loss.double()])
        # What the trainer's gathering brings: the numbers of all, to each of them.
        part.settle(lambda own, told=told: next(told), applied=True)
        assert torch.equal(part.losses, one.losses)


def test_a_step_that_was_not_applied_leaves_no_trace() -> None:
    kept = history(2, 2)
    take(kept, [0.1, 0.9], [1.0, torch.inf], applied=False)
    assert kept.counts.tolist() == [0, 0]
    take(kept, [0.1], [2.0])
    assert kept.losses.max() == 2.0


def test_the_history_is_saved() -> None:
    kept, other = filled([1.0, 3.0]), history(2, 2)
    other.load_state_dict(kept.state_dict())
    assert torch.equal(other.shares(), kept.shares())
