"""U-Nets for sequences, images and volumes: any size, and one family of networks whatever the number of axes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.unet import UNet, UNetConfig

TINY = UNetConfig(
    in_channels=2,
    out_channels=3,
    widths=(8, 12, 16),
    blocks=(0, 1, 1),
    attention=(1,),
    head_dim=4,
    groups=4,
    num_classes=5,
)
SIZES = {1: [(1,), (2,), (13,)], 2: [(1, 1), (1, 9), (5, 2)], 3: [(1, 1, 1), (3, 5, 2), (4, 1, 9)]}
RESAMPLING: list[dict[str, Any]] = [
    {"resample": Resample.CONV},
    {"resample": Resample.CONV, "same_padding": True},
    {"resample": Resample.POOL},
    {"resample": Resample.POOL, "smooth": True},
    {"resample": Resample.RESIDUAL},
    {"resample": Resample.RESIDUAL, "smooth": True, "project_resized": True, "input_pyramid": True},
]


def build(config: UNetConfig) -> UNet:
    """A network whose zero-initialised layers are not zero, in float64."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.double().eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("changes", RESAMPLING, ids=str)
def test_the_answer_has_the_size_of_the_input(changes: dict[str, Any], patch: int, axes: int) -> None:
    network = build(replace(TINY, axes=axes, patch=patch, **changes))
    for size in SIZES[axes]:
        with torch.no_grad():
            out = network(noise(2, 2, *size), torch.tensor([3.0, 700.0]))
        assert out.shape == (2, 3, *size)
        assert out.isfinite().all()


def test_time_that_is_kept_needs_no_padding() -> None:
    config = replace(TINY, axes=3, patch=2, halve_time=False)
    assert config.multiples == (1, 8, 8)
    assert config.multiple == 8
    with torch.no_grad():
        assert build(config)(noise(1, 2, 3, 8, 8), torch.zeros(1)).shape == (1, 3, 3, 8, 8)


def with_weights_of(network: UNet, config: UNetConfig) -> UNet:
    """A network with one axis more, in front, along which its convolutions read one position only."""
    larger = build(config)
    state = larger.state_dict()
    for name, value in network.state_dict().items():
        if state[name].ndim == value.ndim + 1:
            state[name].zero_()
            state[name][:, :, state[name].shape[2] // 2] = value
        else:
            state[name].copy_(value)
    return larger


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("changes", [c for c in RESAMPLING if "smooth" not in c], ids=str)
def test_what_does_not_change_along_an_axis_is_answered_as_if_that_axis_were_not_there(
    changes: dict[str, Any], axes: int
) -> None:
    # Norms and attention see everything four times over, which alters neither statistics nor softmax.
    config = replace(TINY, axes=axes, **changes)
    network = build(config)
    larger = with_weights_of(network, replace(config, axes=axes + 1))
    x, c_noise, label = noise(2, 2, *(8, 4)[:axes]), torch.tensor([3.0, 700.0]), torch.tensor([4, 1])
    with torch.no_grad():
        expected = network(x, c_noise, label=label)
        actual = larger(x.unsqueeze(2).repeat_interleave(4, 2), c_noise, label=label)
    torch.testing.assert_close(actual, expected.unsqueeze(2).expand_as(actual), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("changes", RESAMPLING, ids=str)
def test_a_film_of_one_frame_is_answered_as_an_image_where_time_is_kept(patch: int, changes: dict[str, Any]) -> None:
    config = replace(TINY, patch=patch, **changes)
    network = build(config)
    film = with_weights_of(network, replace(config, axes=3, halve_time=False))
    x, c_noise = noise(2, 2, 7, 9), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        actual = film(x.unsqueeze(2), c_noise)[:, :, 0]
        torch.testing.assert_close(actual, network(x, c_noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axes", [1, 3])
def test_every_parameter_learns(axes: int) -> None:
    network = build(replace(TINY, axes=axes)).train()
    network(noise(2, 2, *(4,) * axes), torch.tensor([3.0, 700.0])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_input_with_another_number_of_axes_is_refused(axes: int) -> None:
    network = UNet(replace(TINY, axes=axes))
    with pytest.raises(ValueError, match=r"expected \(B, 2, "):
        network(torch.zeros(1, 2, *(4,) * (axes % 3 + 1)), torch.zeros(1))


def test_a_condition_reaches_a_sequence_through_its_context() -> None:
    config = replace(TINY, axes=1, context_dim=6, transformer_depth=(0, 0, 1), middle_depth=1)
    network, x = build(config), noise(2, 2, 8)
    with torch.no_grad():
        first, second = (network(x, torch.zeros(2), context=torch.full((2, 1, 6), k).double()) for k in (0.0, 1.0))
    assert (first - second).abs().max() > 1e-3
