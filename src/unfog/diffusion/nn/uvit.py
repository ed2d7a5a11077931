"""U-ViT: everything is a token, and shallow blocks are joined to deep ones.

Patches of the image, noise level, class, attributes, vector and context are tokens of one sequence. Each block of the
second half also sees the output of its mirror image in the first, as in a U-Net. A convolution at the end smooths the
seams of the patches.

Source: Bao et al. 2023, "All are Worth Words: A ViT Backbone for Diffusion Models", arXiv 2209.12152, section 3 and
table 1 (sizes). Departures: the last layer starts at zero, so that a fresh network answers with zeros; patches start
by Xavier's rule; the table of classes always has the row of the learned null; the tokens of a context have no learned
positions (they come from an encoder that knows theirs).
"""

from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.attention import SelfAttention
from unfog.diffusion.nn.conv import convolution
from unfog.diffusion.nn.embed import (
    AttributeTable,
    Fourier,
    Sinusoidal,
    TimeEmbedding,
    check_conditions,
    expand,
    frequency_bits,
    working_dtype,
)
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.positions import Learned, Placement, Positions, Sines
from unfog.diffusion.nn.tokens import (
    check_transformer,
    cut,
    hidden_features,
    join,
    paste,
    patch_layer,
    sides_of,
)

__all__ = ["UViT", "UViTBlock", "UViTConfig", "huge", "large", "mid", "small"]


@dataclass(frozen=True)
class UViTConfig:
    """Shape of a U-ViT.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        patch: side of a patch in pixels, >= 1, or one for each axis, time first.
        dim: width of a token, divisible by 4 and by `heads`; the noise level is expanded to as many features.
        depth: number of blocks, odd, >= 1: as many before as behind the one in the middle.
        heads: attention heads, >= 1.
        mlp_ratio: width of the perceptrons as a multiple of `dim`, > 0.
        norm_eps: epsilon of every layer norm, > 0.
        dropout: share of features dropped at the end of each attention and perceptron in training, in [0, 1).
        attention_dropout: share of attention weights dropped in training, in [0, 1).
        time: how noise levels are expanded.
        num_classes: classes without the null, >= 1; None for a network without classes.
        vector_dim: length of vector conditions, >= 1; None for a network without them.
        attributes: number of values of each attribute without its null, each >= 1; () for a network without them.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.
        axes: 1 for sequences (B, C, W), 2 for images (B, C, H, W), 3 for videos (B, C, T, H, W).
        image_channels: channels of the condition `image`, which has the size of the input; 0 for a network without.
        context_dim: width of the tokens of the condition `context`, >= 1; None for a network without them.
        positions: how the tokens of the image are told where they are. Published is `Learned`, for one size of image.
        qk_norm: whether queries and keys are normalised.
        smooth: whether a convolution of side 3 follows at the end.

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
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    time: TimeEmbedding = field(default_factory=Sinusoidal)
    num_classes: int | None = None
    vector_dim: int | None = None
    attributes: tuple[int, ...] = ()
    checkpoint: bool = False
    axes: int = 2
    image_channels: int = 0
    context_dim: int | None = None
    positions: Positions = field(default_factory=Sines)
    qk_norm: bool = False
    smooth: bool = True

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "dim", "depth", "heads", "num_classes", "vector_dim", "context_dim")
        check_transformer(self, counts=counts, shares=("dropout", "attention_dropout"))
        if self.dim % 4:
            raise ValueError(f"dim is {self.dim}; it must be a multiple of 4.")
        if self.depth % 2 == 0:
            raise ValueError(f"depth is {self.depth}; it must be odd: as many blocks before as behind the middle one.")


class UViT(nn.Module):
    """A U-ViT: images and noise level in, images out; or sequences, or videos.

    Arrays of any size are accepted: they are padded (by reflection where it fits) to whole patches, and the
    result is cropped; learned positions are interpolated. A fresh network answers with zeros.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: UViTConfig):
        super().__init__()
        self.config = config
        dim, sides, half = config.dim, sides_of(config.patch, config.axes), config.depth // 2
        self.patch_in = patch_layer(config.in_channels + config.image_channels, dim, sides)
        self.conditions = ConditionTokens(config)
        self.placement = Placement(config.positions, config.axes, dim, dim // config.heads)
        self.down = nn.ModuleList(UViTBlock(config, joined=False) for _ in range(half))
        self.middle = UViTBlock(config, joined=False)
        self.up = nn.ModuleList(UViTBlock(config, joined=True) for _ in range(half))
        self.norm_out = nn.LayerNorm(dim, eps=config.norm_eps)
        self.patch_out = nn.Linear(dim, prod(sides) * config.out_channels)
        channels = config.out_channels
        self.conv_out = convolution(channels, channels, 3, axes=config.axes) if config.smooth else None
        self._init_as_published()

    def _init_as_published(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.patch_in.weight.view(self.config.dim, -1))
        if self.conv_out is None:
            zeroed(self.patch_out)
        else:
            zeroed(self.conv_out)

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
        others = self.conditions(c_noise, label=label, vector=vector, attributes=attributes, context=context, like=x)
        h, layout = cut(whole, self.patch_in, sides_of(config.patch, config.axes))  # (B, N, dim)
        count = h.shape[1]
        added = self.placement.added(layout.grid, like=x)
        h = torch.cat([h if added is None else h + added, others], dim=1)  # (B, N + M, dim)
        rotation = self.placement.rotation(layout.grid, like=x, others=others.shape[1])
        seen = None
        if context_mask is not None:
            always = context_mask.new_ones(len(x), h.shape[1] - context_mask.shape[1])
            seen = torch.cat([always, context_mask], dim=1)
        h = self._mix(h, rotation, seen)[:, :count]
        return paste(self.patch_out(self.norm_out(h)), layout, last=self.conv_out)

    def _mix(self, h: Tensor, rotation: Tensor | None, seen: Tensor | None) -> Tensor:
        recomputed, skips = self.config.checkpoint, []
        for block in self.down:
            h = recompute.call(block, h, None, rotation, seen, recompute=recomputed)
            skips.append(h)
        h = recompute.call(self.middle, h, None, rotation, seen, recompute=recomputed)
        for block in self.up:
            h = recompute.call(block, h, skips.pop(), rotation, seen, recompute=recomputed)
        return h


class ConditionTokens(nn.Module):
    """Noise level and conditions as tokens, each with a learned position that tells what it is.

    Args:
        config: of the whole network.
    """

    def __init__(self, config: UViTConfig):
        super().__init__()
        dim = config.dim
        self.time = config.time
        self.num_classes = config.num_classes
        self.vector_dim = config.vector_dim
        self.attributes = config.attributes
        if isinstance(config.time, Fourier):
            self.register_buffer("frequency_bits", frequency_bits(config.time, dim))
        self.label = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, dim)
        self.vector_in = None if config.vector_dim is None else xavier(nn.Linear(config.vector_dim, dim))
        self.vector_out = None if config.vector_dim is None else xavier(nn.Linear(dim, dim))
        self.attribute = AttributeTable(config.attributes, dim) if config.attributes else None
        self.context_in = None if config.context_dim is None else xavier(nn.Linear(config.context_dim, dim))
        count = 1 + (config.num_classes is not None) + (config.vector_dim is not None) + len(config.attributes)
        self.roles = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, dim), std=0.02))

    def forward(
        self,
        c_noise: Tensor,
        *,
        label: Tensor | None,
        vector: Tensor | None,
        attributes: Tensor | None,
        context: Tensor | None,
        like: Tensor,
    ) -> Tensor:
        """Return the tokens (B, M, dim): noise level, class, vector, attributes, context. Arguments as for `UViT`."""
        batch = len(like)
        check_conditions(self, c_noise, label=label, vector=vector, attributes=attributes, batch=batch)
        bits = self.get_buffer("frequency_bits") if isinstance(self.time, Fourier) else None
        levels = c_noise.to(working_dtype(like)).expand(batch)
        tokens = [expand(levels, self.roles.shape[1], self.time, bits).to(like.dtype)[:, None]]
        if self.label is not None and self.num_classes is not None:
            null = torch.full((batch,), self.num_classes, device=like.device)
            tokens.append(self.label(null if label is None else label)[:, None])
        if self.vector_in is not None and self.vector_out is not None and vector is not None:
            tokens.append(self.vector_out(F.silu(self.vector_in(vector.to(like.dtype))))[:, None])
        if self.attribute is not None:
            tokens.append(self.attribute.look_up(attributes, batch))
        known = torch.cat(tokens, dim=1) + self.roles
        if self.context_in is None or context is None:
            return known
        return torch.cat([known, self.context_in(context.to(like.dtype))], dim=1)


class UViTBlock(nn.Module):
    """Attention and perceptron, each behind a layer norm and added to its input.

    Args:
        config: of the whole network.
        joined: whether a layer joins the output of an earlier block to the input.
    """

    def __init__(self, config: UViTConfig, *, joined: bool):
        super().__init__()
        dim, hidden = config.dim, hidden_features(config.dim, config.mlp_ratio)
        self.join = nn.Linear(2 * dim, dim) if joined else None
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attention = SelfAttention(
            dim, config.heads, dropout=config.attention_dropout, qkv_bias=False, qk_norm=config.qk_norm
        )
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp_in = nn.Linear(dim, hidden)
        self.mlp_out = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, skip: Tensor | None, rotation: Tensor | None, mask: Tensor | None) -> Tensor:
        """Run the block.

        Args:
            x: tokens (B, N, dim).
            skip: output of an earlier block (B, N, dim), for a block that joins one.
            rotation: of queries and keys, (2, N, head_dim / 2).
            mask: (B, N) bool, which tokens can be seen.
        """
        if self.join is not None and skip is not None:
            x = self.join(torch.cat([x, skip], dim=-1))
        x = x + self.dropout(self.attention(self.norm1(x), rotation, mask))
        out: Tensor = x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)))))
        return out


def small(
    patch: int = 2,
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    num_classes: int | None = None,
    grid: tuple[int, ...] = (16, 16),
) -> UViTConfig:
    """Give U-ViT-S, by default S/2 for 32x32 CIFAR-10: 13 blocks, width 512, 8 heads, 44 million parameters.

    Args:
        patch: side of a patch.
        in_channels: channels in.
        out_channels: channels out.
        num_classes: classes without the null; None for a network without classes.
        grid: patches along each axis, for which positions are learned.
    """
    return UViTConfig(
        in_channels,
        out_channels,
        patch,
        dim=512,
        depth=13,
        heads=8,
        num_classes=num_classes,
        positions=Learned(grid),
    )


def mid(
    patch: int = 4,
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    num_classes: int | None = 1000,
    grid: tuple[int, ...] = (16, 16),
) -> UViTConfig:
    """Give U-ViT-M, by default M/4 for 64x64 ImageNet: 17 blocks, width 768, 12 heads, 131 million parameters.

    Arguments as for `small`. Published without the row of the null: 768 parameters less.
    """
    return UViTConfig(
        in_channels,
        out_channels,
        patch,
        dim=768,
        depth=17,
        heads=12,
        num_classes=num_classes,
        positions=Learned(grid),
    )


def large(
    patch: int = 4,
    *,
    in_channels: int = 3,
    out_channels: int = 3,
    num_classes: int | None = 1000,
    grid: tuple[int, ...] = (16, 16),
) -> UViTConfig:
    """Give U-ViT-L, by default L/4 for 64x64 ImageNet: 21 blocks, width 1024, 16 heads, 287 million parameters.

    Arguments as for `small`. Published without the row of the null: 1024 parameters less. L/2 for 32x32 latents of
    4 channels was published with it.
    """
    return UViTConfig(
        in_channels,
        out_channels,
        patch,
        dim=1024,
        depth=21,
        heads=16,
        num_classes=num_classes,
        positions=Learned(grid),
    )


def huge(
    patch: int = 2,
    *,
    in_channels: int = 4,
    out_channels: int = 4,
    num_classes: int | None = 1000,
    grid: tuple[int, ...] = (16, 16),
) -> UViTConfig:
    """Give U-ViT-H, by default H/2 for 32x32 latents of ImageNet: 29 blocks, width 1152, 16 heads, 501 million.

    Arguments as for `small`. It has no convolution at the end.
    """
    return UViTConfig(
        in_channels,
        out_channels,
        patch,
        dim=1152,
        depth=29,
        heads=16,
        num_classes=num_classes,
        positions=Learned(grid),
        smooth=False,
    )
