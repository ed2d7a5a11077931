import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.diffusion.nn.conv import (
    Downsample,
    Spacing,
    Upsample,
    crop,
    double,
    fold,
    halve,
    pad_to_multiple,
    unfold,
)


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


def taps(x: Tensor, weights: list[float], before: int, after: int) -> Tensor:
    """Filter the last axis by `weights`, zeros lying beyond its ends."""
    padded = F.pad(x, (before, after))
    length = padded.shape[-1] - len(weights) + 1
    return sum(weight * padded[..., k : k + length] for k, weight in enumerate(weights))


def along_each_axis(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    for axis in range(2, x.ndim):
        x = function(x.transpose(axis, -1)).transpose(axis, -1)
    return x


sizes = pytest.mark.parametrize("size", [(6,), (4, 6), (4, 2, 6)])


@sizes
def test_smooth_halving_filters_by_1331_and_keeps_every_second_element(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = along_each_axis(lambda y: taps(y, [1 / 8, 3 / 8, 3 / 8, 1 / 8], 1, 1)[..., ::2], x)
    torch.testing.assert_close(Spacing((2,) * len(size), smooth=True).halve(x), expected)


@sizes
def test_smooth_doubling_filters_by_1331_what_has_zeros_in_between(size: tuple[int, ...]) -> None:
    def expected(y: Tensor) -> Tensor:
        between = torch.stack([y, torch.zeros_like(y)], dim=-1).flatten(-2)
        return taps(between, [1 / 4, 3 / 4, 3 / 4, 1 / 4], 2, 1)

    x = torch.randn(2, 3, *size, dtype=torch.float64)
    actual = Spacing((2,) * len(size), smooth=True).double(x)
    torch.testing.assert_close(actual, along_each_axis(expected, x))


def test_a_smooth_strided_convolution_reads_the_filtered_array() -> None:
    spacing = Spacing(smooth=True)
    layer = Downsample(2, learned=True, spacing=spacing, out_channels=3).double()
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        filtered = along_each_axis(lambda y: taps(y, [1 / 8, 3 / 8, 3 / 8, 1 / 8], 2, 2), x)
        expected = F.conv2d(filtered, layer.conv.weight, layer.conv.bias, stride=2)
        torch.testing.assert_close(layer(x), expected)
    assert expected.shape == (1, 3, 3, 4)


@pytest.mark.parametrize("smooth", [False, True])
def test_an_axis_that_is_kept_keeps_its_length_and_its_neighbours_apart(smooth: bool) -> None:
    spacing = Spacing((1, 2, 2), smooth=smooth)
    film, frame = torch.randn(1, 2, 3, 4, 4), Spacing(smooth=smooth)
    torch.testing.assert_close(spacing.halve(film)[:, :, 1], frame.halve(film[:, :, 1]))
    torch.testing.assert_close(spacing.double(film)[:, :, 1], frame.double(film[:, :, 1]))


@pytest.mark.parametrize(("same_padding", "smooth"), [(False, False), (True, False), (False, True)])
def test_a_strided_convolution_keeps_the_axes_that_are_not_halved(same_padding: bool, smooth: bool) -> None:
    spacing = Spacing((1, 2, 2), smooth=smooth)
    layer = Downsample(2, learned=True, same_padding=same_padding, spacing=spacing)
    assert layer(torch.randn(1, 2, 3, 4, 6)).shape == (1, 2, 3, 2, 3)


@pytest.mark.parametrize("factors", [(), (2, 2, 2, 2), (2, 3), (0,)])
def test_other_factors_than_one_and_two_are_refused(factors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 1"):
        Spacing(factors)


@pytest.mark.parametrize("sides", [(2,), (1, 1), (2, 2), (1, 2), (1, 2, 2), (2, 3, 1)])
def test_unfolding_undoes_folding(sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *(6,) * len(sides))
    folded = fold(x, sides)
    assert folded.shape == (2, 3 * math.prod(sides), *(6 // side for side in sides))
    assert torch.equal(unfold(folded, sides), x)


def test_folding_a_film_that_keeps_time_folds_each_frame() -> None:
    film = torch.randn(1, 2, 3, 4, 4)
    assert torch.equal(fold(film, (1, 2, 2))[:, :, 1], fold(film[:, :, 1], (2, 2)))


@pytest.mark.parametrize(("size", "multiples"), [((5,), (4,)), ((3, 5, 1), (1, 4, 8)), ((9, 2), (2, 6))])
def test_each_axis_has_a_multiple_of_its_own(size: tuple[int, ...], multiples: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    padded, corner = pad_to_multiple(x, multiples)
    assert padded.shape[2:] == tuple(m * -(-side // m) for side, m in zip(size, multiples, strict=True))
    assert torch.equal(crop(padded, corner, size), x)
