import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn.attention import SelfAttention
from unfog.diffusion.nn.cost import flops, layers, parameters
from unfog.diffusion.nn.unet import UNet, UNetConfig

CONFIG = UNetConfig(1, 1, widths=(8, 16), blocks=(1, 1), attention=(1,), groups=4, num_classes=3, vector_dim=2)
X, LEVEL, COND = torch.zeros(2, 1, 8, 8), torch.zeros(2), {"vector": torch.zeros(2, 2)}


def test_a_multiplication_and_an_addition_are_two_operations() -> None:
    assert flops(nn.Linear(3, 5), torch.zeros(7, 3)) == 2 * 7 * 3 * 5


def test_a_convolution_counts_its_kernel_at_each_pixel() -> None:
    assert flops(nn.Conv2d(3, 5, 3, padding=1), torch.zeros(2, 3, 4, 6)) == 2 * 2 * 24 * 9 * 15


def test_attention_counts_two_products_of_all_pairs_of_tokens() -> None:
    linear = 2 * 6 * 8 * (24 + 8)
    assert flops(SelfAttention(8, 2), torch.zeros(1, 6, 8)) == linear + 2 * 2 * 6 * 6 * 8


def test_twice_the_batch_is_twice_the_work() -> None:
    network, double = UNet(CONFIG), {"vector": torch.zeros(4, 2)}
    one = flops(network, X, LEVEL, cond=COND)
    assert flops(network, torch.cat([X, X]), torch.cat([LEVEL, LEVEL]), cond=double) == 2 * one


def test_parameters_shared_by_two_modules_count_once() -> None:
    layer = nn.Linear(3, 5)
    assert parameters(nn.Sequential(layer, nn.Linear(5, 3), layer)) == 2 * 15 + 5 + 3


@pytest.mark.parametrize("depth", [None, 1, 2, 3])
def test_the_columns_of_the_table_sum_to_the_totals(depth: int | None) -> None:
    network = UNet(CONFIG)
    rows = layers(network, X, LEVEL, cond=COND, depth=depth)
    assert sum(row.parameters for row in rows) == parameters(network)
    assert sum(row.flops for row in rows) == flops(network, X, LEVEL, cond=COND)


def test_the_table_names_modules_and_shapes() -> None:
    rows = {row.name: row for row in layers(UNet(CONFIG), X, LEVEL, cond=COND)}
    stem = rows["conv_in"]
    assert (stem.kind, stem.shape, stem.parameters) == ("Conv2d", (2, 8, 8, 8), 80)
    assert rows["down.1.blocks.0.conv2"].shape == (2, 16, 4, 4)


def test_depth_folds_the_table() -> None:
    rows = layers(UNet(CONFIG), X, LEVEL, cond=COND, depth=1)
    assert [row.name for row in rows] == ["embedder", "conv_in", "down", "middle", "up", "norm_out", "conv_out"]


def test_a_network_that_is_one_layer_has_one_row() -> None:
    (row,) = layers(nn.Linear(3, 5), torch.zeros(7, 3))
    assert (row.name, row.shape, row.parameters, row.flops) == ("", (7, 5), 20, 210)


def test_counting_leaves_the_network_and_the_random_state_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = nn.functional.dropout(self.norm(x))
            return out

    network = Noisy()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    layers(network, torch.ones(4, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not network._forward_hooks


def test_a_depth_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        layers(nn.Linear(3, 5), torch.zeros(7, 3), depth=0)
