from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import cost, uvit
from unfog.diffusion.nn.embed import sinusoids
from unfog.diffusion.nn.positions import Learned
from unfog.diffusion.nn.uvit import UViT, UViTConfig

TINY = UViTConfig(
    in_channels=3, out_channels=3, patch=2, dim=16, depth=5, heads=2, num_classes=5, positions=Learned((4, 4))
)


def build(config: UViTConfig) -> UViT:
    torch.manual_seed(0)
    network = UViT(config).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def linear(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    return F.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def block(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    q, k, v = linear(w, f"{name}.attention.qkv", norm(w, f"{name}.norm1", h)).view(2, -1, 3, 2, 8).unbind(2)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(8**0.5).softmax(-1)
    h = h + linear(w, f"{name}.attention.proj", torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    return h + linear(w, f"{name}.mlp_out", F.gelu(linear(w, f"{name}.mlp_in", norm(w, f"{name}.norm2", h))))


def restated(w: dict[str, Tensor], x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The published network in plain steps; it equals the authors' code, run beside it, to 1e-15."""
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 3, 4, 4, 2, 2)
    h = torch.einsum("bcijpq,dcpq->bijd", patches, w["patch_in.weight"]) + w["patch_in.bias"]
    time = sinusoids(t.double(), 16, TINY.time)
    others = torch.stack([time, w["conditions.label.weight"][label]], dim=1) + w["conditions.roles"]
    h = torch.cat([h.flatten(1, 2) + w["placement.table"], others], dim=1)
    first = block(w, "down.0", h)
    second = block(w, "down.1", first)
    h = block(w, "middle", second)
    h = block(w, "up.0", linear(w, "up.0.join", torch.cat([h, second], dim=-1)))
    h = block(w, "up.1", linear(w, "up.1.join", torch.cat([h, first], dim=-1)))
    h = linear(w, "patch_out", norm(w, "norm_out", h[:, :16])).view(2, 4, 4, 2, 2, 3)
    h = h.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 8, 8)
    return F.conv2d(h, w["conv_out.weight"], w["conv_out.bias"], padding=1)


def test_the_network_equals_its_publication() -> None:
    network = build(TINY)
    x, t, label = torch.randn(2, 3, 8, 8).double(), torch.tensor([3.0, 777.0]), torch.tensor([1, 5])
    with torch.no_grad():
        expected = restated(network.state_dict(), x, t, label)
        actual = network(x, t, label=label)
    # Float64 leaves no room for a difference in the formula.
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_learned_positions_are_interpolated_to_other_sizes() -> None:
    network = build(TINY)
    with torch.no_grad():
        network.placement.table.copy_(torch.arange(16.0).double().div(4).floor()[:, None].expand(16, 16))  # by row
        doubled = network.placement.added((8, 4), like=torch.zeros((), dtype=torch.float64))
    assert doubled is not None
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0], dtype=torch.float64)
    torch.testing.assert_close(doubled.view(8, 4, 16)[:, 0, 0], expected)


# Those of the authors' code, counted on its modules: Bao et al. 2023, arXiv 2209.12152, table 1 rounds them to 44, 131,
# 287 and 501 million. Where they have no row for the null, ours is added.
@pytest.mark.parametrize(
    ("config", "published", "row", "rounded"),
    [
        (uvit.small(), 44_255_328, 0, 44),
        (uvit.mid(), 130_940_292, 768, 131),
        (uvit.large(), 286_827_652, 1024, 287),
        (uvit.large(2, in_channels=4, out_channels=4), 286_763_172, 0, 287),
        (uvit.huge(), 500_832_016, 0, 501),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    config: UViTConfig, published: int, row: int, rounded: int
) -> None:
    with torch.device("meta"):
        count = cost.parameters(UViT(config))
    assert count == published + row
    assert round(count / 1e6) == rounded


@pytest.mark.parametrize("changes", [{"depth": 4}, {"depth": 2}])
def test_blocks_without_a_middle_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be odd"):
        replace(TINY, **changes)
