"""What the tests of key maps share."""

from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
"""Names and shapes of tensors."""


def randomised(network: nn.Module) -> nn.Module:
    """Give every parameter random numbers, so that none of them can hide behind a zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference in units of the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
