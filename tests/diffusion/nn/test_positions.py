import pytest
import torch

from unfog.diffusion.nn.attention import rotate
from unfog.diffusion.nn.positions import Learned, Placement, Rotary, Sines, positions

LIKE = torch.zeros((), dtype=torch.float64)


def test_cells_keep_their_position_when_the_grid_grows() -> None:
    small = positions((2, 3), 16, like=LIKE).view(2, 3, 16)
    large = positions((5, 4), 16, like=LIKE).view(5, 4, 16)
    assert torch.equal(small, large[:2, :3])


@pytest.mark.parametrize("grid", [(1024,), (32, 32), (8, 8, 16)])
def test_no_two_cells_share_a_position(grid: tuple[int, ...]) -> None:
    assert len(positions(grid, 16, like=LIKE).unique(dim=0)) == 1024


def test_every_axis_has_an_equal_share_and_the_last_axis_the_rest() -> None:
    table = positions((2, 3, 4), 28, like=LIKE).view(2, 3, 4, 28)
    # Half of 28 features are frequencies: 4, 4 and 6 of them; the last axis comes first.
    changes = [(table.diff(dim=axis).abs().amax((0, 1, 2)) > 0).nonzero().flatten() for axis in range(3)]
    assert [(int(c.min()), int(c.max())) for c in changes] == [(20, 27), (12, 19), (0, 11)]


def test_the_middle_of_a_window_keeps_its_position_when_an_image_grows_on_all_sides() -> None:
    placement = Placement(Sines(step=0.5, window=8), 2, 16, 8)
    small, large = placement.added((2, 4), like=LIKE), placement.added((6, 6), like=LIKE)
    assert small is not None
    assert large is not None
    torch.testing.assert_close(small.view(2, 4, 16), large.view(6, 6, 16)[2:4, 1:5])


def test_half_the_step_puts_twice_the_cells_in_the_same_place() -> None:
    coarse = Placement(Sines(), 1, 16, 8).added((4,), like=LIKE)
    fine = Placement(Sines(step=0.5), 1, 16, 8).added((8,), like=LIKE)
    assert coarse is not None
    assert fine is not None
    torch.testing.assert_close(fine[::2], coarse)


@pytest.mark.parametrize("grid", [(9,), (4, 5), (3, 2, 4)])
def test_products_of_rotated_queries_and_keys_depend_on_differences_of_positions(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rotation = Placement(Rotary(max_period=100.0), len(grid), 24, 12).rotation(grid, like=LIKE)
    query, key = torch.randn(12).double(), torch.randn(12).double()
    count = int(torch.tensor(grid).prod())
    q, k = (rotate(vector.expand(1, 1, count, 12), rotation)[0, 0] for vector in (query, key))
    products = (q @ k.T).view(*grid, *grid)
    cells = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(count, -1)
    differences = (cells[:, None] - cells[None]).view(count * count, -1)
    _, same = differences.unique(dim=0, return_inverse=True)
    flat = products.flatten()
    for group in range(int(same.max()) + 1):
        torch.testing.assert_close(flat[same == group], flat[same == group][:1].expand(int((same == group).sum())))
    assert flat.std() > 0.1 * flat.abs().mean()


def test_rotations_keep_lengths_and_leave_tokens_without_a_position() -> None:
    rotation = Placement(Rotary(), 2, 16, 8).rotation((3, 4), like=LIKE, others=2)
    x = torch.randn(1, 2, 14, 8).double()
    turned = rotate(x, rotation)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 12:], x[:, :, 12:])
    assert not torch.equal(turned[:, :, 1:12], x[:, :, 1:12])


def test_a_learned_table_is_used_as_it_is_on_its_grid() -> None:
    placement = Placement(Learned((3, 4)), 2, 16, 8)
    assert placement.added((3, 4), like=LIKE) is placement.table


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Sines(step=0.0), "step is 0"),
        (lambda: Sines(window=0), "window is 0"),
        (lambda: Rotary(max_period=1.0), "max_period is 1"),
        (lambda: Learned(()), "grid is"),
        (lambda: Learned((4, 0)), "grid is"),
    ],
)
def test_impossible_positions_are_refused(wrong: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
