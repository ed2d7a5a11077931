"""A half U-Net that answers with a vector for each image: the classifier of noisy images.

It is the way down of a U-Net and its middle, with a pooling by attention in place of the way up: the mean of all
pixels asks each of them, as a token among tokens with learned positions.

Source: Dhariwal and Nichol 2021, arXiv 2105.05233, section 4 (the classifier is "the downsampling trunk of the U-Net
model with an attention pool at the 8x8 layer"); Radford et al. 2021, arXiv 2103.00020, section 2.4 (attention pooling).
"""

from dataclasses import dataclass, field
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.attention import attend
from unfog.diffusion.nn.conv import Resample, fold, pad_to_multiple
from unfog.diffusion.nn.embed import Embedder, Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.residual import ResidualBlock
from unfog.diffusion.nn.unet import DownLevel
from unfog.diffusion.nn.unet_config import UNetConfig

__all__ = [
    "AttentionPool",
    "Encoder",
    "EncoderConfig",
    "adm_classifier64",
    "adm_classifier128",
    "adm_classifier256",
    "adm_classifier512",
]


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder. Level 0 is the finest, as in a U-Net.

    Args:
        in_channels: channels of the images, >= 1.
        classes: length of the answer, >= 1.
        size: height and width of the images, each >= 1.
        widths: channels of each level; multiples of `groups`, at least twice that.
        blocks: residual blocks of each level, >= 0.
        attention: the levels with attention after each of their blocks; the middle always has it.
        head_dim: features of an attention head, divides the width wherever there is attention.
        patch: side of the pixel squares folded into channels before the first convolution; 1 leaves them.
        resample: how levels are joined.
        scale_shift: whether the embedding scales and shifts (ADM) or is added.
        groups: groups of every group norm, >= 1.
        dropout: share of features dropped in each block in training mode, in [0, 1).
        time: how noise levels are expanded.
        time_features: number of expanded features, even, >= 4; None is `widths[0]`.
        embed_dim: width of the embedding, >= 1; None is `4 * widths[0]`.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    classes: int
    size: tuple[int, int]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[int, ...] = ()
    head_dim: int = 32
    patch: int = 1
    resample: Resample = Resample.RESIDUAL
    scale_shift: bool = True
    groups: int = 16
    dropout: float = 0.0
    time: TimeEmbedding = field(default_factory=Sinusoidal)
    time_features: int | None = None
    embed_dim: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; it must be at least 1.")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size}; expected height and width, each at least 1.")
        self.trunk()  # refuses what a U-Net would

    def trunk(self) -> UNetConfig:
        """Give the U-Net whose way down this is."""
        return UNetConfig(
            in_channels=self.in_channels,
            out_channels=self.in_channels,
            widths=self.widths,
            blocks=self.blocks,
            attention=self.attention,
            head_dim=self.head_dim,
            patch=self.patch,
            resample=self.resample,
            scale_shift=self.scale_shift,
            groups=self.groups,
            dropout=self.dropout,
            time=self.time,
            time_features=self.time_features,
            embed_dim=self.embed_dim,
            checkpoint=self.checkpoint,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of pixels at the coarsest level."""
        multiple = self.patch * 2 ** (len(self.widths) - 1)
        height, width = (-(-side // multiple) for side in self.size)
        return height, width


class Encoder(nn.Module):
    """Images and noise level in, a vector out. A fresh encoder answers with zeros.

    Images are padded (by reflection where it fits) to the next multiple that the levels can halve.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        trunk = config.trunk()
        style, widths = trunk.style, config.widths
        self.embedder = Embedder(config.time, trunk.features, style.embed_dim)
        self.conv_in = xavier(nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1))
        down: list[DownLevel] = []
        channels = widths[0]
        for level in range(len(widths)):
            down.append(DownLevel(trunk, level, in_channels=channels, pyramid_channels=0))
            channels = (down[-1].widths or [channels])[-1]
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(channels, widths[-1], style, attention=True),
                ResidualBlock(widths[-1], widths[-1], style),
            ]
        )
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=trunk.norm_eps)
        self.pool = AttentionPool(widths[-1], config.classes, cells=prod(config.grid), head_dim=config.head_dim)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Answer for one batch of noisy images.

        Args:
            x: (B, in_channels, H, W) of the config's size, in the dtype of the parameters.
            c_noise: noise levels, (B,) or (), float32.

        Returns:
            (B, classes).

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if `c_noise` has 16 bits.
        """
        config = self.config
        if x.shape[1:] != (config.in_channels, *config.size):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {config.in_channels}, *{config.size}).")
        embedding = self.embedder(c_noise, label=None, vector=None, like=x)
        trunk = config.trunk()
        image, _ = pad_to_multiple(x, trunk.multiples)
        h = self.conv_in(fold(image, trunk.sides))
        for level in self.down:
            outputs, _ = level(h, image, embedding)
            h = [h, *outputs][-1]  # the last level may be without blocks
        for block in self.middle:
            h = recompute.call(block, h, embedding, recompute=config.checkpoint)
        out: Tensor = self.pool(F.silu(self.norm_out(h)))
        return out


class AttentionPool(nn.Module):
    """One answer from all pixels: their mean, a token like them, attends to all and itself.

    Args:
        channels: of the pixels.
        out_features: length of the answer.
        cells: number of pixels.
        head_dim: features of an attention head, divides `channels`.
    """

    def __init__(self, channels: int, out_features: int, *, cells: int, head_dim: int):
        super().__init__()
        self.heads = channels // head_dim
        self.position = nn.Parameter(torch.randn(1 + cells, channels) / sqrt(channels))
        self.qkv = xavier(nn.Linear(channels, 3 * channels))
        self.proj = zeroed(nn.Linear(channels, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, channels, H, W), H W cells, to (B, out_features)."""
        pixels = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.position
        out: Tensor = self.proj(attend(self.qkv(tokens), self.heads, 0.0)[:, 0])
        return out


def adm_classifier64(classes: int = 1000) -> EncoderConfig:
    """Give ADM's classifier of noisy 64x64 images: 65,438,568 parameters for 1000 classes, as published.

    Its noise levels are the integers 0..999, like those of the larger ones.

    Args:
        classes: length of the answer.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 4 and appendix I; widths, depth and attention as in their
        published code and flags.
    """
    return _adm(64, (128, 256, 384, 512), 4, (1, 2, 3), classes)


def adm_classifier128(classes: int = 1000) -> EncoderConfig:
    """Give ADM's classifier of noisy 128x128 images: 42,568,040 parameters; else as `adm_classifier64`."""
    return _adm(128, (128, 128, 256, 384, 512), 2, (2, 3, 4), classes)


def adm_classifier256(classes: int = 1000) -> EncoderConfig:
    """Give ADM's classifier of noisy 256x256 images: 54,096,360 parameters; else as `adm_classifier64`."""
    return _adm(256, (128, 128, 256, 256, 512, 512), 2, (3, 4, 5), classes)


def adm_classifier512(classes: int = 1000) -> EncoderConfig:
    """Give ADM's classifier of noisy 512x512 images: 54,448,360 parameters; else as `adm_classifier64`."""
    return _adm(512, (64, 128, 128, 256, 256, 512, 512), 2, (4, 5, 6), classes)


def _adm(side: int, widths: tuple[int, ...], depth: int, attention: tuple[int, ...], classes: int) -> EncoderConfig:
    return EncoderConfig(
        in_channels=3,
        classes=classes,
        size=(side, side),
        widths=widths,
        blocks=(depth,) * len(widths),
        attention=attention,
        head_dim=64,
        groups=32,
        time_features=128,
        embed_dim=512,
    )
