"""Activation checkpointing of one block."""

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["call"]


def call(block: nn.Module, h: Tensor, *given: Tensor | None, recompute: bool) -> Tensor:
    """Run `block(h, *given)`; with `recompute`, drop its activations and compute them again in backward.

    The random state is restored for the second pass, so dropout masks, and with them the gradients, are the
    same bit for bit with and without recomputation.

    Args:
        block: module that takes tensors and returns one.
        h: first argument, features.
        *given: what else it takes, the embedding of noise level and conditions first.
        recompute: trade time for memory. Without gradients there is nothing to keep and it changes nothing.

    Returns:
        What `block` returns.
    """
    if recompute and is_grad_enabled():
        # Only the mode without re-entrance keeps hooks, keyword arguments and frozen inputs working.
        out: Tensor = checkpoint(block, h, *given, use_reentrant=False, preserve_rng_state=True)
    else:
        out = block(h, *given)
    return out
