"""Activation checkpointing of one block."""

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["call"]


def call(block: nn.Module, h: Tensor, embedding: Tensor, *, recompute: bool) -> Tensor:
    """Run `block(h, embedding)`; with `recompute`, drop its activations and compute them again in backward.

    The random state is restored for the second pass, so dropout masks, and with them the gradients, are the
    same bit for bit with and without recomputation.

    Args:
        block: module that takes two tensors and returns one.
        h: first argument, features.
        embedding: second argument, embedding of noise level and conditions.
        recompute: trade time for memory. Without gradients there is nothing to keep and it changes nothing.

    Returns:
        What `block` returns.
    """
    if recompute and is_grad_enabled():
        # Only the mode without re-entrance keeps hooks, keyword arguments and frozen inputs working.
        out: Tensor = checkpoint(block, h, embedding, use_reentrant=False, preserve_rng_state=True)
    else:
        out = block(h, embedding)
    return out
