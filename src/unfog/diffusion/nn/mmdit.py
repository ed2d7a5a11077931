"""The multimodal diffusion transformer: tokens of an image and of its condition side by side.

Both kinds of tokens have weights of their own for everything, but attend as one sequence, so that the condition is
read and rewritten at every depth. Noise level, classes and vectors modulate both, as in a diffusion transformer.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206,
section 4 and figure 2.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.attention import SelfAttention, attend_heads
from unfog.diffusion.nn.embed import Embedder, Sinusoidal, TimeEmbedding
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

__all__ = ["JointBlock", "MMDiT", "MMDiTConfig", "sd3_5_large", "sd3_medium"]


@dataclass(frozen=True)
class MMDiTConfig:
    """Shape of a multimodal diffusion transformer.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        patch: side of a patch in pixels, >= 1, or one for each axis, time first.
        dim: width of a token, divisible by 4 and by `heads`.
        depth: number of blocks, >= 1.
        heads: attention heads, >= 1.
        context_dim: width of the tokens of the condition `context`, >= 1.
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
        positions: how tokens of the image are told where they are; those of the condition are not.
        qk_norm: whether queries and keys are normalised (SD3.5 does).

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    patch: int | tuple[int, ...]
    dim: int
    depth: int
    heads: int
    context_dim: int
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
    positions: Positions = field(default_factory=Sines)
    qk_norm: bool = False

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "dim", "depth", "heads", "num_classes", "vector_dim", "context_dim")
        check_transformer(self, counts=counts, shares=("dropout", "attention_dropout"))
        if self.time_features < 4 or self.time_features % 2:
            raise ValueError(f"time_features is {self.time_features}; it must be even and at least 4.")


class MMDiT(nn.Module):
    """A multimodal diffusion transformer: images, noise level and tokens of a condition in, images out.

    Arrays of any size are accepted: they are padded (by reflection where it fits) to whole patches, and the
    result is cropped. A fresh network answers with zeros.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: MMDiTConfig):
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
        self.context_in = xavier(nn.Linear(config.context_dim, dim))
        self.placement = Placement(config.positions, config.axes, dim, dim // config.heads)
        self.blocks = nn.ModuleList(JointBlock(config, last=i == config.depth - 1) for i in range(config.depth))
        self.norm_out = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.modulation_out = zeroed(nn.Linear(dim, 2 * dim))
        self.patch_out = zeroed(nn.Linear(dim, prod(sides) * config.out_channels))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        attributes: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Answer for one batch of noisy images.

        Args:
            x: (B, in_channels, H, W), any H, W >= 1, in the dtype of the parameters; with one axis (B, in_channels, W),
                with three (B, in_channels, T, H, W).
            c_noise: noise levels, (B,) or (), float32.
            context: (B, M, context_dim), M >= 1, required; its null is the business of whoever makes it.
            context_mask: (B, M) bool, true for the tokens that count; None is all.
            label: classes (B,) int64 in [0, num_classes], num_classes being the null; None is the null.
            vector: (B, vector_dim), required if the network has vectors.
            attributes: (B, A) int64, column i in [0, config.attributes[i]], that number being the null; None is the
                null of all.
            image: (B, image_channels, H, W), required if the network has one; in the size of `x`.

        Returns:
            (B, out_channels, H, W), or whatever the axes of `x` are.

        Raises:
            ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
            TypeError: if `c_noise` has 16 bits, `label` or `attributes` are not integer, or `context_mask` not bool.
        """
        config = self.config
        whole = join(config, x, image, context, context_mask)
        assert context is not None  # `join` refuses a missing one
        embedding = self.embedder(c_noise, label=label, vector=vector, attributes=attributes, like=x)
        h, layout = cut(whole, self.patch_in, sides_of(config.patch, config.axes))  # (B, N, dim)
        added = self.placement.added(layout.grid, like=x)
        h = h if added is None else h + added
        rotation = self.placement.rotation(layout.grid, like=x)
        others = self.context_in(context.to(x.dtype))  # (B, M, dim)
        count = h.shape[1]
        seen = None if context_mask is None else torch.cat([context_mask.new_ones(len(x), count), context_mask], 1)
        for block in self.blocks:
            both = recompute.call(block, h, embedding, others, rotation, seen, recompute=config.checkpoint)
            h, others = both[:, :count], both[:, count:]
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, dim=-1)  # each (B, 1, dim)
        return paste(self.patch_out(modulate(self.norm_out(h), scale=scale, shift=shift)), layout)


class JointBlock(nn.Module):
    """Joint attention of two streams, and a perceptron for each.

    Args:
        config: of the whole network.
        last: whether the tokens of the condition are not needed behind the block; they are then read, not rewritten.
    """

    def __init__(self, config: MMDiTConfig, *, last: bool):
        super().__init__()
        self.dropout = config.attention_dropout
        self.x = Stream(config, read_only=False)
        self.context = Stream(config, read_only=last)

    def forward(
        self, x: Tensor, embedding: Tensor, context: Tensor, rotation: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Run the block.

        Args:
            x: tokens of the image (B, N, dim).
            embedding: (B, dim) after SiLU.
            context: tokens of the condition (B, M, dim).
            rotation: of the image's queries and keys, (2, N, head_dim / 2).
            mask: (B, N + M) bool, which tokens can be seen.

        Returns:
            Both behind each other, (B, N + M, dim); of the last block those of the image, (B, N, dim).
        """
        mine, theirs = self.x.modulations(embedding), self.context.modulations(embedding)
        q, k, v = self.x.split(x, mine, rotation)
        context_q, context_k, context_v = self.context.split(context, theirs, None)
        mixed = attend_heads(
            torch.cat([q, context_q], dim=2),
            torch.cat([k, context_k], dim=2),
            torch.cat([v, context_v], dim=2),
            dropout=self.dropout if self.training else 0.0,
            mask=mask,
        )
        count = x.shape[1]
        x = self.x.add(x, mixed[:, :count], mine)
        if self.context.read_only:
            return x
        return torch.cat([x, self.context.add(context, mixed[:, count:], theirs)], dim=1)


class Stream(nn.Module):
    """What a joint block has for one kind of tokens.

    Args:
        config: of the whole network.
        read_only: whether the tokens only give queries, keys and values; the stream is then without what follows.
    """

    def __init__(self, config: MMDiTConfig, *, read_only: bool):
        super().__init__()
        dim, hidden = config.dim, hidden_features(config.dim, config.mlp_ratio)
        self.read_only = read_only
        self.modulation = zeroed(nn.Linear(dim, (2 if read_only else 6) * dim))
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.attention = SelfAttention(dim, config.heads, qk_norm=config.qk_norm)
        if read_only:
            self.attention.proj = nn.Identity()  # never asked, and without parameters
            return
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.mlp_in = xavier(nn.Linear(dim, hidden))
        self.mlp_out = xavier(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def modulations(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of the attention and of the perceptron, or shift and scale, (B, 1, dim) each."""
        parts: tuple[Tensor, ...] = self.modulation(embedding)[:, None].chunk(2 if self.read_only else 6, dim=-1)
        return parts

    def split(
        self, x: Tensor, modulations: tuple[Tensor, ...], rotation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, N, d) of tokens `x` (B, N, dim)."""
        shift, scale = modulations[:2]
        return self.attention.split(modulate(self.norm1(x), scale=scale, shift=shift), rotation)

    def add(self, x: Tensor, mixed: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """Add to tokens `x` (B, N, dim) what they attended to, `mixed`, and then the answer of the perceptron."""
        _, _, gate1, shift2, scale2, gate2 = modulations
        x = x + gate1 * self.dropout(self.attention.proj(mixed))
        h = self.mlp_in(modulate(self.norm2(x), scale=scale2, shift=shift2))
        out: Tensor = x + gate2 * self.dropout(self.mlp_out(activate(h, gated=False)))
        return out


def sd3_medium() -> MMDiTConfig:
    """Give the network of Stable Diffusion 3 medium, for latents of 16 channels: 2.03 billion parameters.

    The condition is that of two CLIPs and T5: 4096 features a token, and a vector of 2048. Noise levels span 0..1000.
    """
    return MMDiTConfig(
        in_channels=16,
        out_channels=16,
        patch=2,
        dim=1536,
        depth=24,
        heads=24,
        context_dim=4096,
        vector_dim=2048,
        positions=Sines(step=1 / 3, window=192),
    )


def sd3_5_large() -> MMDiTConfig:
    """Give the network of Stable Diffusion 3.5 large: 8.06 billion parameters. Conditions as for `sd3_medium`."""
    return MMDiTConfig(
        in_channels=16,
        out_channels=16,
        patch=2,
        dim=2432,
        depth=38,
        heads=38,
        context_dim=4096,
        vector_dim=2048,
        positions=Sines(step=1 / 3, window=192),
        qk_norm=True,
    )
