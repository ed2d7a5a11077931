"""Modulation of normalised features by a condition.

Group and layer normalisation are torch's own; what the papers add is an affine map whose scale and shift come
from the embedding of noise level and conditions: AdaGN in U-Nets, adaLN in transformers.
"""

from torch import Tensor

__all__ = ["modulate"]


def modulate(h: Tensor, *, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale normalised features by `1 + scale` and shift them.

    The one keeps a zero-initialised or untrained modulation close to plain normalisation.

    Args:
        h: features, any shape.
        scale: broadcastable to `h`.
        shift: broadcastable to `h`.

    Returns:
        `h (1 + scale) + shift`, shaped like `h`.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3.1 (AdaGN, `y_s GroupNorm(h) + y_b`; their
        implementation predicts `y_s - 1`). Peebles and Xie 2023, arXiv 2212.09748, section 3.2 (adaLN).
    """
    return h * (1 + scale) + shift
