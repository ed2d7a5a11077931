"""Attention: of tokens to themselves and to those of a condition, and over the pixels of a feature map.

Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1 and section 3.2.2. Queries and keys normalised by their root
mean square ("qk-norm"): Henry et al. 2020, arXiv 2010.04245, in the form of Esser et al. 2024, arXiv 2403.03206.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier, zeroed

__all__ = [
    "CrossAttention",
    "NormedHeads",
    "SelfAttention",
    "SpatialAttention",
    "attend",
    "attend_heads",
    "check_context",
    "rotate",
]


def attend(qkv: Tensor, heads: int, dropout: float) -> Tensor:
    """Attend with several heads to tokens whose queries, keys and values come in one tensor.

    Args:
        qkv: (B, N, 3D), D queries, then D keys, then D values for each token; within each, head by head.
        heads: number of heads, divides D.
        dropout: share of attention weights to drop, in [0, 1). It acts whenever it is not 0, so a caller in
            evaluation mode has to pass 0.

    Returns:
        (B, N, D), head by head.
    """
    q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=heads).unbind(0)
    return attend_heads(q, k, v, dropout=dropout)


def attend_heads(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, mask: Tensor | None = None) -> Tensor:
    """Attend with queries, keys and values that are split into heads.

    Args:
        q: (B, heads, N, d).
        k: (B, heads, M, d).
        v: (B, heads, M, d).
        dropout: as for `attend`.
        mask: (B, M) bool, which keys can be seen, at least one in each example; None is all.

    Returns:
        (B, N, heads * d), head by head.
    """
    seen = None if mask is None else mask[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    return rearrange(out, "b heads n d -> b n (heads d)")


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Turn feature i and feature d/2 + i of each token as a point in the plane.

    Args:
        x: queries or keys (B, heads, N, d), d even.
        rotation: (2, N, d/2), cosines and sines of the angles; None leaves `x` as it is.

    Returns:
        Shaped like `x`.

    Source:
        Su et al. 2021, arXiv 2104.09864, section 3.2.2; which features are paired is a convention.
    """
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class NormedHeads(nn.Module):
    """Divide queries and keys by the root mean square of each head's features, and scale them by learned numbers.

    Products of queries and keys, and with them the softmax, then cannot run away in long trainings of wide networks.

    Args:
        head_dim: d, width of a head.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        self.q = nn.RMSNorm(head_dim, eps=1e-6)
        self.k = nn.RMSNorm(head_dim, eps=1e-6)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise queries and keys (B, heads, N, d)."""
        return self.q(q), self.k(k)


class SelfAttention(nn.Module):
    """Multi-head self-attention of transformer tokens: (B, N, D) to (B, N, D).

    Args:
        dim: width D of a token.
        heads: number of heads, divides `dim`.
        dropout: share of attention weights dropped in training mode, in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0, qkv_bias: bool = True, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = xavier(nn.Linear(dim, 3 * dim, bias=qkv_bias))
        self.proj: nn.Linear | nn.Identity = xavier(nn.Linear(dim, dim))
        self.norm = NormedHeads(dim // heads) if qk_norm else None

    def forward(self, x: Tensor, rotation: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens `x` (B, N, D).

        Args:
            x: tokens.
            rotation: of queries and keys, as for `rotate`.
            mask: (B, N) bool, which tokens can be seen; None is all.
        """
        q, k, v = self.split(x, rotation)
        out: Tensor = self.proj(attend_heads(q, k, v, dropout=self.dropout if self.training else 0.0, mask=mask))
        return out

    def split(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, N, d) of tokens, ready to attend."""
        qkv = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        q, k, v = qkv.unbind(0)
        if self.norm is not None:
            q, k = self.norm(q, k)
        return rotate(q, rotation), rotate(k, rotation), v


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a condition: (B, N, D) and (B, M, C) to (B, N, D).

    Args:
        dim: width D of a token.
        heads: number of heads, divides `dim`.
        context_dim: width C of a token of the condition.
        dropout: share of attention weights dropped in training mode, in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int,
        *,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q = xavier(nn.Linear(dim, dim, bias=qkv_bias))
        self.kv = xavier(nn.Linear(context_dim, 2 * dim, bias=qkv_bias))
        self.proj = xavier(nn.Linear(dim, dim))
        self.norm = NormedHeads(dim // heads) if qk_norm else None

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read the condition.

        Args:
            x: tokens (B, N, D).
            context: tokens of the condition (B, M, C), M >= 1.
            mask: (B, M) bool, which of them can be seen; None is all. An example that sees none reads zeros, as if
                there were nothing to read.
        """
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        kv = rearrange(self.kv(context), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        k, v = kv.unbind(0)
        if self.norm is not None:
            q, k = self.norm(q, k)
        dropout = self.dropout if self.training else 0.0
        if mask is None:
            whole: Tensor = self.proj(attend_heads(q, k, v, dropout=dropout))
            return whole
        some = mask.any(dim=1, keepdim=True)  # (B, 1)
        # A softmax over nothing is not a number, in its gradient too; see all then, and take nothing of it.
        out: Tensor = self.proj(attend_heads(q, k, v, dropout=dropout, mask=mask | ~some)) * some[:, :, None]
        return out


def check_context(context: Tensor | None, mask: Tensor | None, context_dim: int | None, batch: int) -> None:
    """Refuse tokens of a condition that do not suit a network.

    Args:
        context: (B, M, context_dim), M >= 1, or None.
        mask: (B, M) bool, or None.
        context_dim: what the network reads; None for a network that reads none.
        batch: B.

    Raises:
        ValueError: if a shape is wrong, or the context is missing or is one that the network does not read.
        TypeError: if the mask is not bool.
    """
    if context_dim is None:
        if context is not None or mask is not None:
            raise ValueError("context was given to a network that reads none; set context_dim in its config.")
        return
    if context is None:
        raise ValueError(f"this network needs context, ({batch}, M, {context_dim}); none was given.")
    expected = f"({batch}, M, {context_dim}) with M >= 1"
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != context_dim or context.shape[1] < 1:
        raise ValueError(f"context has shape {tuple(context.shape)}; expected {expected}.")
    if mask is not None and mask.shape != context.shape[:2]:
        raise ValueError(f"context_mask has shape {tuple(mask.shape)}; expected {tuple(context.shape[:2])}.")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"context_mask is {mask.dtype}; expected bool, true for the tokens that count.")


class SpatialAttention(nn.Module):
    """Group norm, self-attention over all pixels and a residual connection: (B, C, H, W) to the same.

    The projections act on tokens (B, HW, C): for channels-last features that is a view, and the attention
    kernels find the features of a token next to each other.

    Args:
        channels: C.
        heads: number of heads, divides `channels`.
        groups: groups of the norm, divides `channels`.
        eps: of the norm.
        dropout: share of attention weights dropped in training mode, in [0, 1).
        rescale: multiply the sum of input and attention by 1/sqrt(2).

    Source:
        Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B; `rescale`: Song et al. 2021, arXiv 2011.13456,
        appendix H.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        groups: int,
        eps: float = 1e-5,
        dropout: float = 0.0,
        rescale: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.gain = sqrt(0.5) if rescale else 1.0
        self.norm = nn.GroupNorm(groups, channels, eps=eps)
        self.qkv = xavier(nn.Linear(channels, 3 * channels))
        for part in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)  # DDPM draws queries, keys and values as three layers
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of `x` (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        mixed = self.proj(attend(self.qkv(tokens), self.heads, self.dropout if self.training else 0.0))
        x = x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])
        return x if self.gain == 1.0 else x * self.gain
