"""How fresh layers get their weights.

Two rules cover every network here: Xavier-uniform weights with zero biases, and all zeros for the last layer
of a residual branch, so that an untrained network starts as (nearly) the identity of its skip connections.

Source: Ho, Jain, Abbeel 2020, arXiv 2006.11239, whose implementation draws from a uniform distribution scaled
by the mean of fan-in and fan-out, which is Xavier's rule: Glorot and Bengio 2010, equation 16.
"""

from typing import TypeVar

from torch import nn

__all__ = ["xavier", "zeroed"]

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def xavier(layer: Layer) -> Layer:
    """Draw the weight of `layer` from Xavier's uniform distribution, set its bias to zero and return it.

    A convolution counts as the linear map of one patch: its fans are channels times kernel area.
    """
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer: Layer) -> Layer:
    """Set the weight and bias of `layer` to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
