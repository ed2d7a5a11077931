"""Convolutions where the image is fine, a transformer where it is coarse.

A U-Net's levels carry the image down and up again with few, cheap residual blocks. At the bottom the coarsest features
are cut into patches, pass the blocks of a diffusion transformer, which have most of the parameters, and are added to
what they were. Attention so costs nothing at full resolution, and patches leave no seams.

Source: Hoogeboom, Heek, Salimans 2023, "simple diffusion: End-to-end diffusion for high resolution images", arXiv
2301.11093 (its U-ViT: a U-Net whose middle is a transformer, scaled at low resolution only, with dropout there alone).
The levels here are those of `unet`, the blocks those of `dit`; it is no reproduction of their network.
"""

from dataclasses import dataclass, field
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.conv import convolution, crop, pad_to_multiple
from unfog.diffusion.nn.dit import ContextIn, DiTBlock, DiTConfig
from unfog.diffusion.nn.embed import Embedder, Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.positions import Placement, Positions, Sines
from unfog.diffusion.nn.tokens import cut, join, paste, patch_layer, sides_of
from unfog.diffusion.nn.unet import DownLevel, UpLevel
from unfog.diffusion.nn.unet_config import UNetConfig

__all__ = ["Hybrid", "HybridConfig"]


@dataclass(frozen=True)
class HybridConfig:
    """Shape of a hybrid. Level 0 is the finest; level i works at 1 / 2^i of the image's resolution.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        widths: channels of each level; multiples of `groups`, at least twice that.
        blocks: residual blocks of each level on the way down, >= 0; one more follows on the way up.
        patch: side of a patch in cells of the coarsest level, >= 1, or one for each axis, time first.
        dim: width of a token and of the embedding of noise level and conditions, divisible by 4 and by `heads`.
        depth: number of transformer blocks, >= 1.
        heads: attention heads, >= 1.
        mlp_ratio: width of the perceptrons as a multiple of `dim`, > 0.
        groups: groups of every group norm, >= 1.
        norm_eps: epsilon of every norm, > 0.
        dropout: share of features dropped in the transformer in training, in [0, 1); the levels have none.
        attention_dropout: share of attention weights dropped in training, in [0, 1).
        time: how noise levels are expanded.
        time_features: number of expanded features, even, >= 4.
        num_classes: classes without the null, >= 1; None for a network without classes.
        vector_dim: length of vector conditions, >= 1; None for a network without them.
        attributes: number of values of each attribute without its null, each >= 1; () for a network without them.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.
        axes: 1 for sequences (B, C, W), 2 for images (B, C, H, W), 3 for videos (B, C, T, H, W).
        halve_time: whether the first of three axes is halved between levels, as the others are.
        image_channels: channels of the condition `image`, which has the size of the input; 0 for a network without.
        context_dim: width of the tokens of the condition `context`, which the transformer reads, >= 1; None for a
            network without them.
        positions: how tokens are told where they are.
        qk_norm: whether queries and keys are normalised.
        gated_mlp: whether perceptrons are gated, as for `DiTConfig`.

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    patch: int | tuple[int, ...]
    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    groups: int = 16
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
    halve_time: bool = True
    image_channels: int = 0
    context_dim: int | None = None
    positions: Positions = field(default_factory=Sines)
    qk_norm: bool = False
    gated_mlp: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        # Each refuses what it cannot be, by the same names.
        _ = self.transformer, self.levels

    @property
    def levels(self) -> UNetConfig:
        """The part that convolves."""
        return UNetConfig(
            self.in_channels,
            self.out_channels,
            self.widths,
            self.blocks,
            middle_attention=False,
            groups=self.groups,
            norm_eps=self.norm_eps,
            embed_dim=self.dim,
            checkpoint=self.checkpoint,
            axes=self.axes,
            halve_time=self.halve_time,
            image_channels=self.image_channels,
        )

    @property
    def transformer(self) -> DiTConfig:
        """The part in the middle, from features to features of the coarsest level."""
        coarsest = self.widths[-1] if self.widths else 1
        return DiTConfig(
            coarsest,
            coarsest,
            self.patch,
            self.dim,
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.norm_eps,
            self.dropout,
            self.attention_dropout,
            self.time,
            self.time_features,
            self.num_classes,
            self.vector_dim,
            self.attributes,
            self.checkpoint,
            self.axes,
            context_dim=self.context_dim,
            positions=self.positions,
            qk_norm=self.qk_norm,
            gated_mlp=self.gated_mlp,
        )


class Hybrid(nn.Module):
    """A U-Net with a transformer in its middle: images and noise level in, images out; or sequences, or videos.

    Arrays of any size are accepted: they are padded (by reflection where it fits) to the next multiple that the
    levels can halve, and the result is cropped. A fresh network answers with zeros.

    `down.i` is level i; `up` is in the order of use, so that `up.0` is the coarsest level.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        levels, transformer, widths = config.levels, config.transformer, config.widths
        self.embedder = Embedder(
            config.time,
            config.time_features,
            config.dim,
            num_classes=config.num_classes,
            vector_dim=config.vector_dim,
            attributes=config.attributes,
        )
        entering = config.in_channels + config.image_channels
        self.conv_in = xavier(convolution(entering, widths[0], 3, axes=config.axes))
        skips = [widths[0]]
        down: list[DownLevel] = []
        for level in range(len(widths)):
            down.append(DownLevel(levels, level, in_channels=skips[-1], pyramid_channels=entering))
            skips += down[-1].widths
        self.down = nn.ModuleList(down)
        self.middle = Middle(transformer, in_channels=skips[-1])
        width = skips[-1]
        up: list[UpLevel] = []
        for level in reversed(range(len(widths))):
            taken = [skips.pop() for _ in range(config.blocks[level] + 1)]
            up.append(UpLevel(levels, level, in_channels=width, skip_channels=taken))
            width = widths[level]
        self.up = nn.ModuleList(up)
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.norm_eps)
        self.conv_out = zeroed(convolution(widths[0], config.out_channels, 3, axes=config.axes))

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
        whole = join(self.config, x, image, context, context_mask)
        embedding = self.embedder(c_noise, label=label, vector=vector, attributes=attributes, like=x)
        padded, corner = pad_to_multiple(whole, self.config.levels.multiples)
        h: Tensor = self.conv_in(padded)
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], padded, embedding)[0]
        h = self.middle(skips[-1], embedding, context, context_mask)
        for level, blocks in zip(self.up, reversed(self.config.blocks), strict=True):
            h = level(h, [skips.pop() for _ in range(blocks + 1)], embedding)
        return crop(self.conv_out(F.silu(self.norm_out(h))), corner, x.shape[2:])


class Middle(nn.Module):
    """The blocks of a diffusion transformer between features, to which they are added.

    Args:
        config: of the transformer.
        in_channels: channels of the features.
    """

    def __init__(self, config: DiTConfig, *, in_channels: int):
        super().__init__()
        self.config = config
        dim, sides = config.dim, sides_of(config.patch, config.axes)
        self.patch_in = patch_layer(in_channels, dim, sides)
        self.context_in = None if config.context_dim is None else ContextIn(config.context_dim, dim)
        self.placement = Placement(config.positions, config.axes, dim, dim // config.heads)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(dim, eps=config.norm_eps)
        self.patch_out = zeroed(nn.Linear(dim, prod(sides) * in_channels))

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, context_mask: Tensor | None) -> Tensor:
        """Transform features (B, C, *space); arguments as for `DiTBlock`, the context as it comes in."""
        config = self.config
        h, layout = cut(x, self.patch_in, sides_of(config.patch, config.axes))
        added = self.placement.added(layout.grid, like=x)
        h = h if added is None else h + added
        rotation = self.placement.rotation(layout.grid, like=x)
        if self.context_in is not None and context is not None:
            context = self.context_in(context.to(x.dtype))
        for block in self.blocks:
            h = recompute.call(block, h, embedding, rotation, context, context_mask, recompute=config.checkpoint)
        return x + paste(self.patch_out(self.norm_out(h)), layout)
