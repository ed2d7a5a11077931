"""The diffusion transformer with adaLN-Zero blocks.

An image is cut into patches; each becomes a token. In every block, the embedding of noise level and conditions
gives for attention and for the perceptron a shift, a scale and a gate; all start at zero, so that a fresh block
is the identity.

Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2 and
table 1 (sizes).
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.attention import SelfAttention
from unfog.diffusion.nn.conv import crop, pad_to_multiple
from unfog.diffusion.nn.embed import Embedder, Sinusoidal, TimeEmbedding, positions
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.norm import modulate

__all__ = ["DiT", "DiTConfig", "base", "extra_large", "large", "small"]


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a diffusion transformer.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        patch: side of a patch in pixels, >= 1. Half the patch is four times the tokens.
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

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    patch: int
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

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "patch", "dim", "depth", "heads", "num_classes", "vector_dim")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if any(count < 1 for count in self.attributes):
            raise ValueError(f"attributes is {self.attributes}; each must have at least 1 value.")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}.")
        if self.dim % 4:
            raise ValueError(f"dim is {self.dim}; the table of positions needs a multiple of 4.")
        if self.dim < 8:
            raise ValueError(f"dim is {self.dim}; the table of positions needs at least 8.")
        if int(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no features of dim {self.dim}.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive.")
        if self.time_features < 4 or self.time_features % 2:
            raise ValueError(f"time_features is {self.time_features}; it must be even and at least 4.")


class DiT(nn.Module):
    """A diffusion transformer: images and noise level in, images out.

    Images of any size are accepted: they are padded (by reflection where it fits) to whole patches, and the
    result is cropped. Positions are sines and cosines computed for the grid at hand. A fresh network answers
    with zeros.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch
        self.patch_in = xavier(nn.Conv2d(config.in_channels, dim, patch, stride=patch))
        self.embedder = Embedder(
            config.time,
            config.time_features,
            dim,
            num_classes=config.num_classes,
            vector_dim=config.vector_dim,
            attributes=config.attributes,
        )
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm_out = _norm(config)
        self.modulation_out = zeroed(nn.Linear(dim, 2 * dim))
        self.patch_out = zeroed(nn.Linear(dim, patch**2 * config.out_channels))
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
    ) -> Tensor:
        """Answer for one batch of noisy images.

        Args:
            x: (B, in_channels, H, W), any H, W >= 1, in the dtype of the parameters.
            c_noise: noise levels, (B,) or (), float32.
            label: classes (B,) int64 in [0, num_classes], num_classes being the null; None is the null.
            vector: (B, vector_dim), required if the network has vectors.
            attributes: (B, A) int64, column i in [0, config.attributes[i]], that number being the null; None is the
                null of all.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
            TypeError: if `c_noise` has 16 bits, or `label` or `attributes` are not integer.
        """
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or x.numel() == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {self.config.in_channels}, H, W), none 0.")
        embedding = self.embedder(c_noise, label=label, vector=vector, attributes=attributes, like=x)
        padded, corner = pad_to_multiple(x, self.config.patch)
        h = self.patch_in(padded)  # (B, dim, rows, columns)
        rows, columns = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2) + positions(rows, columns, self.config.dim, like=x)  # (B, N, dim)
        for block in self.blocks:
            h = recompute.call(block, h, embedding, recompute=self.config.checkpoint)
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, dim=-1)  # each (B, 1, dim)
        h = self.patch_out(modulate(self.norm_out(h), scale=scale, shift=shift))
        p = self.config.patch
        h = rearrange(h, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, w=columns, p=p, q=p)
        return crop(h, corner, (x.shape[-2], x.shape[-1]))


class DiTBlock(nn.Module):
    """Attention and perceptron, each normalised, modulated before and gated after by the embedding.

    Args:
        config: of the whole network.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.modulation = zeroed(nn.Linear(dim, 6 * dim))
        self.norm1 = _norm(config)
        self.attention = SelfAttention(dim, config.heads, dropout=config.attention_dropout)
        self.norm2 = _norm(config)
        self.mlp_in = xavier(nn.Linear(dim, hidden))
        self.mlp_out = xavier(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Run the block on tokens `x` (B, N, dim), given `embedding` (B, dim) after SiLU."""
        modulation = self.modulation(embedding)[:, None]  # (B, 1, 6 dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        h = self.attention(modulate(self.norm1(x), scale=scale1, shift=shift1))
        x = x + gate1 * self.dropout(h)
        h = self.mlp_in(modulate(self.norm2(x), scale=scale2, shift=shift2))
        h = self.mlp_out(F.gelu(h, approximate="tanh"))
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
