"""The residual block of U-Nets: two convolutions that know the noise level, and attention if wanted.

Source: Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B (additive embedding); Dhariwal and Nichol 2021,
arXiv 2105.05233, section 3 (scale-shift norm, blocks that change resolution); Song et al. 2021,
arXiv 2011.13456, appendix H (sums rescaled by 1/sqrt(2)).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.attention import SpatialAttention
from unfog.diffusion.nn.conv import convolution
from unfog.diffusion.nn.cross_attention import SpatialTransformer
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.norm import modulate

__all__ = ["BlockStyle", "ResidualBlock"]


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network share; the ranges are checked by the network's config.

    Args:
        embed_dim: width of the embedding of noise level and conditions.
        groups: groups of every group norm.
        norm_eps: epsilon of every group norm.
        dropout: share of features dropped before the last convolution.
        attention_dropout: share of attention weights dropped.
        head_dim: features of an attention head; None leaves it to `heads`.
        scale_shift: the embedding scales and shifts after the second norm (ADM), or is added before it (DDPM).
        rescale: multiply every residual sum by 1/sqrt(2), which keeps the variance of two equal parts.
        axes: number of axes of space: 1, 2 or 3.
        heads: number of attention heads where `head_dim` is None.
        project_resized: whether blocks that resize carry the input over by a 1x1 convolution, though its channels
            are those that go out.
        context_dim: width of the context's tokens; None for networks without context.
    """

    embed_dim: int
    groups: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    head_dim: int | None
    scale_shift: bool
    rescale: bool
    axes: int = 2
    heads: int = 1
    project_resized: bool = False
    context_dim: int | None = None

    def heads_of(self, channels: int) -> int:
        """Return the number of attention heads over so many channels."""
        return self.heads if self.head_dim is None else channels // self.head_dim


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, norm with embedding, SiLU, dropout, convolution, plus the input; then attention.

    Args:
        in_channels: channels in; a 1x1 convolution carries the input over if they differ from those out.
        out_channels: channels out.
        style: what all blocks of the network share.
        attention: whether self-attention over all pixels follows.
        transformer_depth: how many transformer blocks, which read the context, follow instead of it; 0 is none.
        resize: `halve` or `double` for a block that changes the resolution of both branches, else None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        attention: bool = False,
        transformer_depth: int = 0,
        resize: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.scale_shift = style.scale_shift
        self.gain = sqrt(0.5) if style.rescale else 1.0
        self.resize = resize
        self.norm1 = nn.GroupNorm(style.groups, in_channels, eps=style.norm_eps)
        self.conv1 = xavier(convolution(in_channels, out_channels, 3, axes=style.axes))
        self.embed = xavier(nn.Linear(style.embed_dim, out_channels * (2 if style.scale_shift else 1)))
        self.norm2 = nn.GroupNorm(style.groups, out_channels, eps=style.norm_eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = zeroed(convolution(out_channels, out_channels, 3, axes=style.axes))
        projected = in_channels != out_channels or (style.project_resized and resize is not None)
        self.skip = xavier(convolution(in_channels, out_channels, 1, axes=style.axes)) if projected else None
        self.attention: SpatialAttention | SpatialTransformer | None = None
        if transformer_depth:
            self.attention = _transformer(out_channels, style, transformer_depth)
        elif attention:
            self.attention = _attention(out_channels, style)

    def forward(
        self, x: Tensor, embedding: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """Run the block.

        Args:
            x: features (B, in_channels, *space).
            embedding: (B, embed_dim), SiLU already applied.
            context: (B, M, context_dim), what transformer blocks read; other blocks ignore it.
            context_mask: (B, M) bool, which tokens of the context can be seen; None is all.

        Returns:
            (B, out_channels, *space), each axis halved or doubled if the block resizes.
        """
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self._condition(self.conv1(h), self.embed(embedding).unflatten(1, (-1, *[1] * (x.ndim - 2))))
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = h + (x if self.skip is None else self.skip(x))
        if self.gain != 1.0:
            out = out * self.gain
        if isinstance(self.attention, SpatialTransformer):
            out = self.attention(out, context, context_mask)
        elif self.attention is not None:
            out = self.attention(out)
        return out

    def _condition(self, h: Tensor, embedding: Tensor) -> Tensor:
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)  # each (B, C, 1, ..., 1)
            return modulate(self.norm2(h), scale=scale, shift=shift)
        out: Tensor = self.norm2(h + embedding)
        return out


def _attention(channels: int, style: BlockStyle) -> SpatialAttention:
    return SpatialAttention(
        channels,
        style.heads_of(channels),
        groups=style.groups,
        eps=style.norm_eps,
        dropout=style.attention_dropout,
        rescale=style.rescale,
    )


def _transformer(channels: int, style: BlockStyle, depth: int) -> SpatialTransformer:
    if style.context_dim is None:
        raise ValueError("transformer blocks read a context; give the style a context_dim.")
    return SpatialTransformer(
        channels,
        style.heads_of(channels),
        depth,
        style.context_dim,
        groups=style.groups,
        dropout=style.attention_dropout,
        rescale=style.rescale,
    )
