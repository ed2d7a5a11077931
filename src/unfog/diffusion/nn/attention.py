"""Self-attention, over tokens and over the pixels of a feature map.

Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1 and section 3.2.2.
"""

from math import sqrt

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier, zeroed

__all__ = ["SelfAttention", "SpatialAttention", "attend"]


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
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return rearrange(out, "b heads n d -> b n (heads d)")


class SelfAttention(nn.Module):
    """Multi-head self-attention of transformer tokens: (B, N, D) to (B, N, D).

    Args:
        dim: width D of a token.
        heads: number of heads, divides `dim`.
        dropout: share of attention weights dropped in training mode, in [0, 1).
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.proj = xavier(nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens `x` (B, N, D)."""
        out: Tensor = self.proj(attend(self.qkv(x), self.heads, self.dropout if self.training else 0.0))
        return out


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
