"""Residual stages between a vector and a picture: synthesis grows a picture from a vector, analysis reads one.

The generator and the critic of an adversarial pair and the two halves of a variational autoencoder are made of them.
Normalisation is by groups of channels of one example, so that an example's picture does not depend on its batch.

Source:
    He et al. 2016 (arXiv 1603.05027): residual units with pre-activation. Miyato, Koyama 2018 (1802.05637), appendix:
    residual generators and discriminators that double and halve the resolution within a unit (here between its
    convolutions, so that the wider one works on the coarser grid). Wu, He 2018 (1803.08494): group normalisation;
    modulated by latent and class as in Dhariwal, Nichol 2021 (2105.05233), section 3.1.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.conv import double, halve
from unfog.diffusion.nn.init import xavier
from unfog.diffusion.nn.norm import modulate

__all__ = ["Analysis", "StageConfig", "Synthesis", "embed_label"]

SMALLEST = 4
"""Least side of the coarsest grid."""
WIDEST = 4
"""Most channels of a grid, as a multiple of those of the finest."""


@dataclass(frozen=True)
class StageConfig:
    """The shape of synthesis and analysis.

    Attributes:
        channels: of the pictures.
        size: height and width of the pictures; divided by ``patch`` they can be halved without falling below 4.
        width: channels of the finest grid, a multiple of 4; coarser ones have two and four times as many.
        latent_dim: length of the vector.
        num_classes: number of classes, or None for a network that knows none.
        patch: side of the squares of pixels that a cell of the finest grid stands for; 2 costs a quarter of 1.
    """

    channels: int
    size: tuple[int, int]
    width: int
    latent_dim: int = 64
    num_classes: int | None = None
    patch: int = 1

    def __post_init__(self) -> None:
        if self.patch < 1 or any(side % self.patch for side in self.size):
            raise ValueError(f"expected a patch of at least 1 that divides the size {self.size}, got {self.patch}")
        if self.channels < 1 or self.latent_dim < 1:
            raise ValueError(f"expected channels and latent_dim of at least 1, got {self.channels}, {self.latent_dim}")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"expected a width that is a multiple of 4, got {self.width}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"expected num_classes of at least 1, or None, got {self.num_classes}")
        if self.halvings == 0:
            raise ValueError(
                f"expected a height and width that can be halved to {SMALLEST} cells or more, such as 28; got "
                f"{self.size[0]} x {self.size[1]} with patch {self.patch}"
            )

    @property
    def finest(self) -> tuple[int, int]:
        """Height and width of the finest grid."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def halvings(self) -> int:
        """How often the side is halved between the finest and the coarsest grid."""
        count, sides = 0, self.finest
        while all(side % 2 == 0 and side // 2 >= SMALLEST for side in sides):
            count, sides = count + 1, (sides[0] // 2, sides[1] // 2)
        return count

    @property
    def coarsest(self) -> tuple[int, int]:
        """Height and width of the coarsest grid."""
        return self.finest[0] >> self.halvings, self.finest[1] >> self.halvings

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the grids, the coarsest first."""
        return tuple(self.width * min(2**level, WIDEST) for level in range(self.halvings, -1, -1))


def embed_label(table: nn.Embedding | None, label: Tensor | None, batch: int) -> Tensor | float:
    """Look up the embedding of classes.

    Args:
        table: of the classes, or None for a network that knows none.
        label: ``(B,)`` int64, or None.
        batch: B.

    Returns:
        ``(B, dim)``, or 0 for a network that knows no classes.

    Raises:
        ValueError: if labels are missing, given to a network that knows none, or of another shape.
    """
    if table is None:
        if label is not None:
            raise ValueError("label was given to a network without classes; set num_classes in its config.")
        return 0.0
    if label is None or label.shape != (batch,):
        raise ValueError(f"expected a label of shape ({batch},), got {None if label is None else tuple(label.shape)}")
    embedded: Tensor = table(label)
    return embedded


def _norm(channels: int, *, affine: bool) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, affine=affine)


class _Up(nn.Module):
    """A convolution on either side of doubling, behind normalisations that a style modulates, beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, style_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels, affine=False), _norm(out_channels, affine=False)
        self.style1 = xavier(nn.Linear(style_dim, 2 * channels))
        self.style2 = xavier(nn.Linear(style_dim, 2 * out_channels))
        self.conv1 = xavier(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.conv2 = xavier(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = xavier(nn.Conv2d(channels, out_channels, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = double(self.conv1(F.silu(_styled(self.norm1(x), self.style1(style)))))
        h = self.conv2(F.silu(_styled(self.norm2(h), self.style2(style))))
        # A 1x1 convolution and nearest neighbours commute: before doubling it costs a quarter.
        out: Tensor = h + double(self.skip(x))
        return out


def _styled(h: Tensor, style: Tensor) -> Tensor:
    scale, shift = style[:, :, None, None].chunk(2, dim=1)
    return modulate(h, scale=scale, shift=shift)


class Synthesis(nn.Module):
    """Grow a picture from a vector and a class; values are not bounded.

    Args:
        config: shape.
    """

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        widths, style_dim = config.widths, 2 * config.latent_dim
        height, width = config.coarsest
        self.label = None if config.num_classes is None else nn.Embedding(config.num_classes, style_dim)
        self.style = xavier(nn.Linear(config.latent_dim, style_dim))
        self.start = xavier(nn.Linear(style_dim, widths[0] * height * width))
        self.stages = nn.ModuleList(_Up(wide, narrow, style_dim) for wide, narrow in pairwise(widths))
        self.norm = _norm(widths[-1], affine=True)
        self.out = xavier(nn.Conv2d(widths[-1], config.channels * config.patch**2, 3, padding=1))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map vectors ``(B, latent_dim)`` and classes ``(B,)`` to pictures ``(B, C, H, W)``."""
        style = F.silu(self.style(z) + embed_label(self.label, label, len(z)))
        h = self.start(style).unflatten(1, (-1, *self.config.coarsest))
        for stage in self.stages:
            h = stage(h, style)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.config.patch)


class _Down(nn.Module):
    """A convolution on either side of halving, beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, *, normalised: bool) -> None:
        super().__init__()
        self.norm1 = _norm(channels, affine=True) if normalised else nn.Identity()
        self.norm2 = _norm(channels, affine=True) if normalised else nn.Identity()
        self.conv1 = xavier(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv2 = xavier(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.skip = xavier(nn.Conv2d(channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = halve(self.conv1(F.leaky_relu(self.norm1(x), 0.2)))
        h = self.conv2(F.leaky_relu(self.norm2(h), 0.2))
        # Halves keep the variance of a sum of two equal parts.
        out: Tensor = (h + self.skip(halve(x))) * math.sqrt(0.5)
        return out


class Analysis(nn.Module):
    """Read a picture into the features of the coarsest grid.

    Args:
        config: shape.
        normalised: whether groups of channels are normalised; a critic is better without.
    """

    def __init__(self, config: StageConfig, *, normalised: bool) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.patch = config.patch
        self.stem = xavier(nn.Conv2d(config.channels * config.patch**2, widths[0], 3, padding=1))
        self.stages = nn.ModuleList(_Down(narrow, wide, normalised=normalised) for narrow, wide in pairwise(widths))
        self.last = xavier(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``(B, C, H, W)`` to features ``(B, C', h, w)``."""
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        for stage in self.stages:
            h = stage(h)
        return F.leaky_relu(self.last(F.leaky_relu(h, 0.2)), 0.2)
