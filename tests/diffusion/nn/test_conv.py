import pytest
import torch
import torch.nn.functional as F

from unfog.diffusion.nn.conv import Downsample, Upsample, crop, double, halve, pad_to_multiple


def test_an_image_that_fits_is_not_touched() -> None:
    x = torch.randn(1, 2, 28, 28)
    padded, corner = pad_to_multiple(x, 4)
    assert padded is x
    assert corner == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 13), (5, 2), (28, 27)])
@pytest.mark.parametrize("multiple", [2, 8, 32])
def test_cropping_undoes_padding(size: tuple[int, int], multiple: int) -> None:
    x = torch.randn(2, 3, *size)
    padded, corner = pad_to_multiple(x, multiple)
    assert torch.equal(crop(padded, corner, size), x)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (5, 2), (28, 27)])
def test_padding_reaches_the_next_multiple_and_no_further(size: tuple[int, int]) -> None:
    padded, _ = pad_to_multiple(torch.zeros(1, 1, *size), 8)
    assert padded.shape[-2:] == tuple(8 * -(-side // 8) for side in size)


def test_long_sides_are_continued_by_reflection() -> None:
    padded, _ = pad_to_multiple(torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 1, 1, 6), 8)
    assert padded[0, 0, 0].tolist() == [2, 1, 2, 3, 4, 5, 6, 5]


def test_short_sides_repeat_their_edge() -> None:
    padded, _ = pad_to_multiple(torch.tensor([1.0, 2]).view(1, 1, 1, 2), 8)
    assert padded[0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_halving_undoes_doubling() -> None:
    x = torch.randn(1, 2, 3, 5)
    torch.testing.assert_close(halve(double(x)), x)


@pytest.mark.parametrize(("same_padding", "first"), [(True, 0), (False, -1)])
def test_the_border_decides_which_pixels_a_strided_convolution_reads(same_padding: bool, first: int) -> None:
    layer = Downsample(1, learned=True, same_padding=same_padding).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    window = F.pad(x, (1, 1, 1, 1))[0, 0, 3 + first + 2 : 3 + first + 5, 3 + first : 3 + first + 3]
    with torch.no_grad():
        expected = (layer.conv.weight[0, 0] * window).sum() + layer.conv.bias[0]
        torch.testing.assert_close(layer(x)[0, 0, 2, 1], expected)


@pytest.mark.parametrize("learned", [True, False])
def test_going_up_after_going_down_restores_the_size(learned: bool) -> None:
    x = torch.randn(2, 4, 6, 10)
    assert Upsample(4, learned=learned)(Downsample(4, learned=learned)(x)).shape == x.shape
