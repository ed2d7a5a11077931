import pytest
import torch

from unfog.diffusion.shapes import align


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4, 5)])
def test_a_prefix_of_the_shape_broadcasts_against_data(shape: tuple[int, ...]) -> None:
    x, value = torch.zeros(2, 3, 4, 5), torch.rand(shape)
    aligned = align(value, x)
    assert aligned.ndim in (0, 4)
    total = x + aligned
    index = (1, 2, 0, 0)
    assert total[index] == value[index[: len(shape)]]


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 4), (2, 3, 4, 5, 1)])
def test_any_other_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not fit data of shape \(2, 3, 4, 5\)"):
        align(torch.zeros(shape), torch.zeros(2, 3, 4, 5))


def test_the_view_shares_its_memory() -> None:
    value = torch.rand(2)
    assert align(value, torch.zeros(2, 3)).data_ptr() == value.data_ptr()
