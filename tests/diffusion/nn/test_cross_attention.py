import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unfog.diffusion.nn.cross_attention import GatedPerceptron, SpatialTransformer, TransformerBlock


def test_a_fresh_transformer_leaves_its_input_alone() -> None:
    x = torch.randn(2, 8, 3, 5)
    layer = SpatialTransformer(8, 2, 2, 6, groups=4)
    assert torch.equal(layer(x, torch.randn(2, 4, 6), None), x)


def test_a_rescaled_transformer_divides_the_sum_by_the_root_of_two() -> None:
    x = torch.randn(2, 8, 3, 5)
    layer = SpatialTransformer(8, 2, 1, 6, groups=4, rescale=True)
    torch.testing.assert_close(layer(x, torch.randn(2, 4, 6), None), x / 2**0.5)


@pytest.mark.parametrize("size", [(7,), (2, 3), (2, 3, 2)])
def test_pixels_are_tokens_whose_places_do_not_matter(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SpatialTransformer(8, 2, 1, 6, groups=4).double()
    nn.init.normal_(layer.proj_out.weight)
    x, context = torch.randn(1, 8, *size).double(), torch.randn(1, 4, 6).double()
    order = torch.randperm(x[0, 0].numel())

    def shuffled(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2)[:, :, order].unflatten(2, size)

    with torch.no_grad():
        torch.testing.assert_close(layer(shuffled(x), context, None), shuffled(layer(x, context, None)))


def test_the_second_half_of_the_features_gates_the_first() -> None:
    layer = GatedPerceptron(3, ratio=2).double()
    x = torch.randn(5, 3).double()
    wide = x @ layer.up.weight.T
    with torch.no_grad():
        torch.testing.assert_close(layer(x), (wide[:, :6] * F.gelu(wide[:, 6:])) @ layer.down.weight.T)


def test_attention_in_a_block_has_no_biases_but_at_its_end() -> None:
    names = {name for name, _ in TransformerBlock(8, 2, 6).named_parameters() if name.endswith("bias")}
    of_attention = {name for name in names if name.startswith(("attention", "cross"))}
    assert of_attention == {"attention.proj.bias", "cross.proj.bias"}
