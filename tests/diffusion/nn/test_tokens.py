import pytest
import torch

from unfog.diffusion.nn.tokens import activate, cut, paste, patch_layer


@pytest.mark.parametrize(
    ("sides", "size"), [((3,), (10,)), ((2, 3), (5, 9)), ((1, 2, 2), (3, 4, 5)), ((2, 2, 2), (4, 4, 4))]
)
def test_arrays_that_are_cut_and_pasted_are_as_they_were(sides: tuple[int, ...], size: tuple[int, ...]) -> None:
    count = 2 * int(torch.tensor(sides).prod())
    layer = patch_layer(2, count, sides).double()
    # Each token lists the pixels of its patch, the channels of a pixel beside each other.
    order = torch.arange(count).view(2, -1).T.flatten()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(count)[order].view_as(layer.weight))
        x = torch.randn(3, 2, *size).double()
        tokens, layout = cut(x, layer, sides)
        assert torch.equal(paste(tokens, layout), x)


def test_gates_multiply() -> None:
    h = torch.tensor([[0.0, 2.0, 5.0, 3.0]])
    expected = torch.tensor([[0.0, 2 / (1 + torch.tensor(-2.0).exp()) * 3]])
    torch.testing.assert_close(activate(h, gated=True), expected)
