"""Transformers inside a U-Net, through which the tokens of a condition (a prompt's, say) reach every pixel.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, section
3.3; gated perceptrons: Shazeer 2020, arXiv 2002.05202 (GEGLU).
"""

from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.attention import CrossAttention, SelfAttention
from unfog.diffusion.nn.init import xavier, zeroed

__all__ = ["GatedPerceptron", "SpatialTransformer", "TransformerBlock"]


class GatedPerceptron(nn.Module):
    """Two linear layers, between which one half of the features is gated by the GELU of the other.

    Args:
        dim: features in and out.
        ratio: width in between as a multiple of `dim`, after gating.
    """

    def __init__(self, dim: int, ratio: int = 4):
        super().__init__()
        self.up = xavier(nn.Linear(dim, 2 * ratio * dim))
        self.down = xavier(nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        value, gate = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down(value * F.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, gated perceptron: each after a layer norm and added to its input.

    Args:
        dim: width D of a token.
        heads: number of heads, divides `dim`.
        context_dim: width of a token of the context.
        dropout: share of attention weights dropped in training mode, in [0, 1).
    """

    def __init__(self, dim: int, heads: int, context_dim: int, *, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout=dropout, qkv_bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads, context_dim, dropout=dropout, qkv_bias=False)
        self.norm3 = nn.LayerNorm(dim)
        self.perceptron = GatedPerceptron(dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Mix the tokens `x` (B, N, D) and let them read the context; as `SpatialTransformer.forward` has it."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), context, mask)
        out: Tensor = x + self.perceptron(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over all pixels of a feature map, which is added to their answer.

    Args:
        channels: C.
        heads: number of heads, divides `channels`.
        depth: number of blocks, >= 1.
        context_dim: width of a token of the context.
        groups: groups of the norm at the entrance, divides `channels`.
        dropout: share of attention weights dropped in training mode, in [0, 1).
        rescale: multiply the sum of input and answer by 1/sqrt(2).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_dim: int,
        *,
        groups: int,
        dropout: float = 0.0,
        rescale: bool = False,
    ):
        super().__init__()
        self.gain = sqrt(0.5) if rescale else 1.0
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # that of published weights, whatever the U-Net's
        self.proj_in = xavier(nn.Linear(channels, channels))
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, dropout=dropout) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Mix the pixels of `x` (B, C, *space) and let them read the context.

        Args:
            x: features.
            context: (B, M, context_dim).
            mask: (B, M) bool, which tokens of the context can be seen; None is all.
        """
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, C)
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        x = x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return x if self.gain == 1.0 else x * self.gain
