"""The diffusion transformer with adaLN-Zero blocks.

An image is cut into patches; each becomes a token. In every block, the embedding of noise level and conditions
gives for attention and for the perceptron a shift, a scale and a gate; all start at zero, so that a fresh block
is the identity. Sequences and videos are cut into patches of their own, and the rest is the same.

Tokens of a condition (of a prompt, or of the objects that attributes describe) are read by attention between the two.
Published are further a norm of queries and keys, rotary positions and gated perceptrons; the defaults are those of the
first publication.

Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2 and
table 1 (sizes). Chen et al. 2023, "PixArt-alpha", arXiv 2310.00426, section 2.3 (attention to the prompt, in the
place and with the zero start that it has there; here each block has its own modulation, as in the former).
"""

from dataclasses import dataclass, field
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.attention import CrossAttention, SelfAttention
from unfog.diffusion.nn.embed import (
    AttributeTokens,
    Embedder,
    Sinusoidal,
    TimeEmbedding,
    check_attribute_tokens,
)
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.norm import modulate
from unfog.diffusion.nn.positions import Placement, Positions, Sines
from unfog.diffusion.nn.tokens import (
    activate,
    check_transformer,
    cut,
    hidden_features,
    join,
    paste,
    patch_layer,
    sides_of,
)

__all__ = ["ContextIn", "DiT", "DiTBlock", "DiTConfig", "base", "extra_large", "large", "small"]


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a diffusion transformer.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        patch: side of a patch in pixels, >= 1, or one for each axis, time first. Half the patch is four times the
            tokens of an image.
        dim: width of a token, divisible by 4 and by `heads`.
        depth: number of blocks, >= 1.
        heads: attention heads, >= 1.
        mlp_ratio: width of the perceptrons as a multiple of `dim`, > 0.
        norm_eps: epsilon of every layer norm, > 0.
        dropout: share of features dropped at the end of each attention and perceptron in training, in [0, 1).
        attention_dropout: share of attention weights dropped in training, in [0, 1).
        time: how noise levels are expanded.
        time_features: number of expanded features, even, >= 4.
        num_classes: classes without the null, >= 1; None for a network without classes.
        vector_dim: length of vector conditions, >= 1; None for a network without them.
        attributes: number of values of each attribute without its null, each >= 1; () for a network without them.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.
        axes: 1 for sequences (B, C, W), 2 for images (B, C, H, W), 3 for videos (B, C, T, H, W).
        image_channels: channels of the condition `image`, which has the size of the input; 0 for a network without.
        context_dim: width of the tokens of the condition `context`, >= 1; None for a network without them.
        positions: how tokens are told where they are.
        qk_norm: whether queries and keys are normalised.
        gated_mlp: perceptrons gated by a SiLU, which have three matrices for two: `mlp_ratio` 8/3 then costs what 4
            does without.
        attribute_tokens: which token each attribute belongs to, 0 to the number of tokens less 1; those of one object
            share one. Blocks then read the tokens by attention, as those of a context, besides the embedding that all
            attributes are added to; () leaves it at that.

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    patch: int | tuple[int, ...]
    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    time: TimeEmbedding = field(default_factory=Sinusoidal)
    time_features: int = 256
    num_classes: int | None = None
    vector_dim: int | None = None
    attributes: tuple[int, ...] = ()
    checkpoint: bool = False
    axes: int = 2
    image_channels: int = 0
    context_dim: int | None = None
    positions: Positions = field(default_factory=Sines)
    qk_norm: bool = False
    gated_mlp: bool = False
    attribute_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "dim", "depth", "heads", "num_classes", "vector_dim", "context_dim")
        check_transformer(self, counts=counts, shares=("dropout", "attention_dropout"))
        if self.time_features < 4 or self.time_features % 2:
            raise ValueError(f"time_features is {self.time_features}; it must be even and at least 4.")
        # Without attributes there is nothing to compare with yet: those of a recipe come with its data.
        if self.attributes and self.attribute_tokens:
            check_attribute_tokens(self.attributes, self.attribute_tokens)


class DiT(nn.Module):
    """A diffusion transformer: images and noise level in, images out; or sequences, or videos.

    Arrays of any size are accepted: they are padded (by reflection where it fits) to whole patches, and the
    result is cropped. A fresh network answers with zeros.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        dim, sides = config.dim, sides_of(config.patch, config.axes)
        self.patch_in = patch_layer(config.in_channels + config.image_channels, dim, sides)
        self.embedder = Embedder(
            config.time,
            config.time_features,
            dim,
            num_classes=config.num_classes,
            vector_dim=config.vector_dim,
            attributes=config.attributes,
        )
        self.attribute_tokens: AttributeTokens | None = None
        if config.attribute_tokens:
            self.attribute_tokens = AttributeTokens(config.attributes, config.attribute_tokens, dim)
        self.context_in = None if config.context_dim is None else ContextIn(config.context_dim, dim)
        self.placement = Placement(config.positions, config.axes, dim, dim // config.heads)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm_out = _norm(config)
        self.modulation_out = zeroed(nn.Linear(dim, 2 * dim))
        self.patch_out = zeroed(nn.Linear(dim, prod(sides) * config.out_channels))
        self._init_as_published()

    def _init_as_published(self) -> None:
        # Xavier's fans are those of the linear map of one patch; torch would count a kernel's area twice.
        nn.init.xavier_uniform_(self.patch_in.weight.view(self.config.dim, -1))
        for layer in self.embedder.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        attributes: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Answer for one batch of noisy images.

        Args:
            x: (B, in_channels, H, W), any H, W >= 1, in the dtype of the parameters; with one axis (B, in_channels, W),
                with three (B, in_channels, T, H, W).
            c_noise: noise levels, (B,) or (), float32.
            label: classes (B,) int64 in [0, num_classes], num_classes being the null; None is the null.
            vector: (B, vector_dim), required if the network has vectors.
            attributes: (B, A) int64, column i in [0, config.attributes[i]], that number being the null; None is the
                null of all.
            context: (B, M, context_dim), M >= 1, required if the network has a context.
            context_mask: (B, M) bool, true for the tokens that count; None is all.
            image: (B, image_channels, H, W), required if the network has one; in the size of `x`.

        Returns:
            (B, out_channels, H, W), or whatever the axes of `x` are.

        Raises:
            ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
            TypeError: if `c_noise` has 16 bits, `label` or `attributes` are not integer, or `context_mask` not bool.
        """
        config = self.config
        whole = join(config, x, image, context, context_mask)
        embedding = self.embedder(c_noise, label=label, vector=vector, attributes=attributes, like=x)
        h, layout = cut(whole, self.patch_in, sides_of(config.patch, config.axes))  # (B, N, dim)
        added = self.placement.added(layout.grid, like=x)
        h = h if added is None else h + added
        rotation = self.placement.rotation(layout.grid, like=x)
        if self.context_in is not None and context is not None:
            context = self.context_in(context.to(x.dtype))
        if self.attribute_tokens is not None:
            context, context_mask = self.attribute_tokens(attributes, context, context_mask, like=x)
        for block in self.blocks:
            h = recompute.call(block, h, embedding, rotation, context, context_mask, recompute=config.checkpoint)
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, dim=-1)  # each (B, 1, dim)
        return paste(self.patch_out(modulate(self.norm_out(h), scale=scale, shift=shift)), layout)


class ContextIn(nn.Module):
    """Two layers that bring the tokens of a condition to the width of the network.

    Args:
        context_dim: width of a token that comes in.
        dim: width of a token that goes out.
    """

    def __init__(self, context_dim: int, dim: int):
        super().__init__()
        self.first = xavier(nn.Linear(context_dim, dim))
        self.second = xavier(nn.Linear(dim, dim))

    def forward(self, context: Tensor) -> Tensor:
        """(B, M, context_dim) to (B, M, dim)."""
        out: Tensor = self.second(F.gelu(self.first(context), approximate="tanh"))
        return out


class DiTBlock(nn.Module):
    """Attention and perceptron, each normalised, modulated before and gated after by the embedding.

    Args:
        config: of the whole network.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim, hidden = config.dim, hidden_features(config.dim, config.mlp_ratio)
        self.gated_mlp = config.gated_mlp
        self.modulation = zeroed(nn.Linear(dim, 6 * dim))
        self.norm1 = _norm(config)
        self.attention = SelfAttention(dim, config.heads, dropout=config.attention_dropout, qk_norm=config.qk_norm)
        self.cross: CrossAttention | None = None
        if config.context_dim is not None or config.attribute_tokens:
            self.cross = CrossAttention(
                dim, config.heads, dim, dropout=config.attention_dropout, qk_norm=config.qk_norm
            )
            zeroed(self.cross.proj)
        self.norm2 = _norm(config)
        self.mlp_in = xavier(nn.Linear(dim, 2 * hidden if config.gated_mlp else hidden))
        self.mlp_out = xavier(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        rotation: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: tokens (B, N, dim).
            embedding: (B, dim) after SiLU.
            rotation: of queries and keys, (2, N, head_dim / 2).
            context: tokens of conditions (B, M, dim), if the network has some.
            context_mask: (B, M) bool, which of them can be seen.
        """
        modulation = self.modulation(embedding)[:, None]  # (B, 1, 6 dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        h = self.attention(modulate(self.norm1(x), scale=scale1, shift=shift1), rotation)
        x = x + gate1 * self.dropout(h)
        if self.cross is not None:
            x = x + self.cross(x, context, context_mask)
        h = self.mlp_in(modulate(self.norm2(x), scale=scale2, shift=shift2))
        h = self.mlp_out(activate(h, gated=self.gated_mlp))
        out: Tensor = x + gate2 * self.dropout(h)
        return out


def _norm(config: DiTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=False)


def small(patch: int, *, in_channels: int = 4, out_channels: int = 8, num_classes: int | None = 1000) -> DiTConfig:
    """Give DiT-S: 12 blocks, width 384, 6 heads.

    Args:
        patch: 2, 4 or 8 as published, or another.
        in_channels: 4 as published, for latents of ImageNet.
        out_channels: 8 as published: noise and variance.
        num_classes: 1000 as published; None for a network without classes.
    """
    return DiTConfig(in_channels, out_channels, patch, dim=384, depth=12, heads=6, num_classes=num_classes)


def base(patch: int, *, in_channels: int = 4, out_channels: int = 8, num_classes: int | None = 1000) -> DiTConfig:
    """Give DiT-B: 12 blocks, width 768, 12 heads. Arguments as for `small`."""
    return DiTConfig(in_channels, out_channels, patch, dim=768, depth=12, heads=12, num_classes=num_classes)


def large(patch: int, *, in_channels: int = 4, out_channels: int = 8, num_classes: int | None = 1000) -> DiTConfig:
    """Give DiT-L: 24 blocks, width 1024, 16 heads. Arguments as for `small`."""
    return DiTConfig(in_channels, out_channels, patch, dim=1024, depth=24, heads=16, num_classes=num_classes)


def extra_large(
    patch: int, *, in_channels: int = 4, out_channels: int = 8, num_classes: int | None = 1000
) -> DiTConfig:
    """Give DiT-XL: 28 blocks, width 1152, 16 heads. Arguments as for `small`."""
    return DiTConfig(in_channels, out_channels, patch, dim=1152, depth=28, heads=16, num_classes=num_classes)
