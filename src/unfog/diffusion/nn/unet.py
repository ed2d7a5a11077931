"""U-Nets for images: DDPM's, ADM's, and small ones for a processor without accelerator.

Going down, each level runs residual blocks at its resolution and halves it; going up, each level runs one block
more, every one of which first takes in one of the outputs met on the way down, newest first.

Source: Ronneberger, Fischer, Brox 2015, arXiv 1505.04597; Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B;
Dhariwal and Nichol 2021, arXiv 2105.05233, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.conv import Downsample, Resample, Upsample, crop, double, halve, pad_to_multiple
from unfog.diffusion.nn.embed import Embedder, Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.residual import BlockStyle, ResidualBlock

__all__ = ["UNet", "UNetConfig", "adm_imagenet256", "ddpm_cifar10"]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net. Level 0 is the finest; level i works at 1 / (patch 2^i) of the image's resolution.

    What a network costs is mostly decided at its finest level: give it few blocks (`blocks` may start with 0 or
    1), little width, or start at half resolution with `patch=2`.

    Args:
        in_channels: channels of the images that come in, >= 1.
        out_channels: channels that come out, >= 1; twice `in_channels` to learn variances too.
        widths: channels of each level; multiples of `groups`, at least twice that.
        blocks: residual blocks of each level on the way down, >= 0; one more follows on the way up.
        attention: the levels with attention after each of their blocks.
        middle_attention: whether the two blocks in the middle have attention between them.
        head_dim: features of an attention head, divides the width wherever there is attention; None is one
            head over all channels (DDPM).
        patch: side of the pixel squares folded into channels before the first convolution; 1 leaves them.
        resample: how levels are joined.
        same_padding: put the zero border of the strided convolutions at the end only, as in TensorFlow; needed
            for published DDPM weights, see `conv.Downsample`. Only with `Resample.CONV`.
        scale_shift: whether the embedding scales and shifts (ADM) or is added (DDPM).
        rescale: multiply residual sums by 1/sqrt(2) (Song et al. 2021).
        groups: groups of every group norm, >= 1.
        norm_eps: epsilon of every group norm, > 0.
        dropout: share of features dropped in each block in training mode, in [0, 1).
        attention_dropout: share of attention weights dropped in training mode, in [0, 1).
        time: how noise levels are expanded.
        time_features: number of expanded features, even, >= 4; None is `widths[0]`.
        embed_dim: width of the embedding, >= 1; None is `4 * widths[0]`.
        num_classes: classes without the null, >= 1; None for a network without classes.
        vector_dim: length of vector conditions, >= 1; None for a network without them.
        attributes: number of values of each attribute without its null, each >= 1; () for a network without them.
        checkpoint: recompute the activations of each block in backward: less memory, about a third more time.

    Raises:
        ValueError: for values outside these ranges or that contradict each other.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    head_dim: int | None = None
    patch: int = 1
    resample: Resample = Resample.CONV
    same_padding: bool = False
    scale_shift: bool = True
    rescale: bool = False
    groups: int = 16
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    time: TimeEmbedding = field(default_factory=Sinusoidal)
    time_features: int | None = None
    embed_dim: int | None = None
    num_classes: int | None = None
    vector_dim: int | None = None
    attributes: tuple[int, ...] = ()
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty; give the channels of at least one level.")
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks {self.blocks} and widths {self.widths} must be equally long: one a level.")
        if min(self.blocks) < 0:
            raise ValueError(f"blocks is {self.blocks}; numbers of blocks must be at least 0.")
        self._check_attention()
        for name in ("in_channels", "out_channels", "patch", "groups", "embed_dim", "num_classes", "vector_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if any(count < 1 for count in self.attributes):
            raise ValueError(f"attributes is {self.attributes}; each must have at least 1 value.")
        for width in self.widths:
            if width % self.groups or width < 2 * self.groups:
                raise ValueError(
                    f"width {width} does not suit {self.groups} groups: it must be a multiple of groups and hold "
                    "at least 2 channels for each, since a channel alone is normalised to nothing at 1x1 pixels."
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive.")
        if self.features < 4 or self.features % 2:
            raise ValueError(
                f"the noise level would be expanded to {self.features} features; give an even time_features >= 4."
            )
        if self.same_padding and self.resample is not Resample.CONV:
            raise ValueError("same_padding speaks of strided convolutions; it needs resample=Resample.CONV.")

    def _check_attention(self) -> None:
        levels = len(self.widths)
        if len(set(self.attention)) != len(self.attention) or not set(self.attention) <= set(range(levels)):
            raise ValueError(f"attention is {self.attention}; expected different levels in 0..{levels - 1}.")
        attended = [*self.attention, *([levels - 1] if self.middle_attention else [])]
        if self.head_dim is None:
            return
        for level in attended:
            if self.head_dim < 1 or self.widths[level] % self.head_dim:
                raise ValueError(
                    f"head_dim {self.head_dim} does not divide width {self.widths[level]} of level {level}."
                )

    @property
    def multiple(self) -> int:
        """What height and width of an image must be divisible by to be used without padding."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def features(self) -> int:
        """Number of features to which a noise level is expanded."""
        return self.widths[0] if self.time_features is None else self.time_features

    @property
    def style(self) -> BlockStyle:
        """What all blocks share."""
        return BlockStyle(
            embed_dim=4 * self.widths[0] if self.embed_dim is None else self.embed_dim,
            groups=self.groups,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            head_dim=self.head_dim,
            scale_shift=self.scale_shift,
            rescale=self.rescale,
        )


class UNet(nn.Module):
    """A U-Net: images and noise level in, images out.

    Images of any size are accepted: they are padded (by reflection where it fits) to the next multiple that
    the levels can halve, and the result is cropped. A fresh network answers with zeros.

    `down.i` is level i; `up` is in the order of use, so that `up.0` is the coarsest level.

    Args:
        config: its shape; kept as `network.config`, from which the network can be built again.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        style, widths = config.style, config.widths
        self.embedder = Embedder(
            config.time,
            config.features,
            style.embed_dim,
            num_classes=config.num_classes,
            vector_dim=config.vector_dim,
            attributes=config.attributes,
        )
        self.conv_in = xavier(nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1))
        skips = [widths[0]]
        down: list[DownLevel] = []
        for level in range(len(widths)):
            down.append(DownLevel(config, level, in_channels=skips[-1]))
            skips += down[-1].widths
        self.down = nn.ModuleList(down)
        deepest = skips[-1]
        self.middle = nn.ModuleList(
            [
                ResidualBlock(deepest, widths[-1], style, attention=config.middle_attention),
                ResidualBlock(widths[-1], widths[-1], style),
            ]
        )
        width = widths[-1]
        up: list[UpLevel] = []
        for level in reversed(range(len(widths))):
            taken = [skips.pop() for _ in range(config.blocks[level] + 1)]
            up.append(UpLevel(config, level, in_channels=width, skip_channels=taken))
            width = widths[level]
        self.up = nn.ModuleList(up)
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.norm_eps)
        self.conv_out = zeroed(nn.Conv2d(widths[0], config.out_channels * config.patch**2, 3, padding=1))

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
        h, corner = pad_to_multiple(x, self.config.multiple)
        h = self._answer(h, embedding)
        return crop(h, corner, (x.shape[-2], x.shape[-1]))

    def _answer(self, x: Tensor, embedding: Tensor) -> Tensor:
        patch = self.config.patch
        h: Tensor = self.conv_in(x if patch == 1 else F.pixel_unshuffle(x, patch))
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], embedding)
        h = skips[-1]
        for block in self.middle:
            h = recompute.call(block, h, embedding, recompute=self.config.checkpoint)
        for level, blocks in zip(self.up, reversed(self.config.blocks), strict=True):
            h = level(h, [skips.pop() for _ in range(blocks + 1)], embedding)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h if patch == 1 else F.pixel_shuffle(h, patch)


class DownLevel(nn.Module):
    """The blocks of one level on the way down, and the step to the next.

    Args:
        config: of the whole network.
        level: which level, 0 being the finest.
        in_channels: channels that come in.

    Attributes:
        widths: channels of each output, in order.
    """

    def __init__(self, config: UNetConfig, level: int, *, in_channels: int):
        super().__init__()
        self.checkpoint = config.checkpoint
        style, width, count = config.style, config.widths[level], config.blocks[level]
        attention = level in config.attention
        self.blocks = nn.ModuleList(
            ResidualBlock(width if i else in_channels, width, style, attention=attention) for i in range(count)
        )
        last = width if count else in_channels
        self.widths = [width] * count
        self.resample: ResidualBlock | Downsample | None = None
        if level < len(config.widths) - 1:
            self.widths.append(last)
            if config.resample is Resample.RESIDUAL:
                self.resample = ResidualBlock(last, last, style, resize=halve)
            else:
                learned = config.resample is Resample.CONV
                self.resample = Downsample(last, learned=learned, same_padding=config.same_padding)

    def forward(self, h: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the output of every block, and of the step down: (B, C, H, W) each, the last one halved."""
        outputs = []
        for block in self.blocks:
            h = recompute.call(block, h, embedding, recompute=self.checkpoint)
            outputs.append(h)
        if self.resample is not None:
            outputs.append(_resample(self.resample, h, embedding, self.checkpoint))
        return outputs


class UpLevel(nn.Module):
    """The blocks of one level on the way up, and the step to the next finer one.

    Args:
        config: of the whole network.
        level: which level, 0 being the finest.
        in_channels: channels that come in.
        skip_channels: channels of the outputs taken in, one for each block.
    """

    def __init__(self, config: UNetConfig, level: int, *, in_channels: int, skip_channels: Sequence[int]):
        super().__init__()
        self.checkpoint = config.checkpoint
        style, width = config.style, config.widths[level]
        attention = level in config.attention
        self.blocks = nn.ModuleList(
            ResidualBlock((width if i else in_channels) + skip, width, style, attention=attention)
            for i, skip in enumerate(skip_channels)
        )
        self.resample: ResidualBlock | Upsample | None = None
        if level > 0:
            if config.resample is Resample.RESIDUAL:
                self.resample = ResidualBlock(width, width, style, resize=double)
            else:
                self.resample = Upsample(width, learned=config.resample is Resample.CONV)

    def forward(self, h: Tensor, skips: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """Take in `skips` (B, C_i, H, W), one a block, and return (B, C, 2H, 2W), at level 0 (B, C, H, W)."""
        for block, skip in zip(self.blocks, skips, strict=True):
            h = recompute.call(block, torch.cat([h, skip], dim=1), embedding, recompute=self.checkpoint)
        return h if self.resample is None else _resample(self.resample, h, embedding, self.checkpoint)


def _resample(step: nn.Module, h: Tensor, embedding: Tensor, checkpoint: bool) -> Tensor:
    if isinstance(step, ResidualBlock):
        return recompute.call(step, h, embedding, recompute=checkpoint)
    out: Tensor = step(h)
    return out


def ddpm_cifar10() -> UNetConfig:
    """Give the U-Net of DDPM for 32x32 CIFAR-10: 35.7 million parameters (35,746,307).

    Its noise levels are the integers 0..999. Down-sampling pads as TensorFlow does, so that published weights
    can be loaded.

    Source:
        Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.
    """
    return UNetConfig(
        in_channels=3,
        out_channels=3,
        widths=(128, 256, 256, 256),
        blocks=(2, 2, 2, 2),
        attention=(1,),
        same_padding=True,
        scale_shift=False,
        groups=32,
        norm_eps=1e-6,
        dropout=0.1,
        time=Sinusoidal(freq_shift=1, sin_first=True),
    )


def adm_imagenet256(num_classes: int | None = None) -> UNetConfig:
    """Give the U-Net of ADM for 256x256 ImageNet with learned variances: 552.8 million parameters.

    With `num_classes=1000` it has 553.8 million, and 1024 more than published: the row of the learned null.

    Args:
        num_classes: classes without the null, or None for the unconditional network.

    Source:
        Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and appendix I.
    """
    return UNetConfig(
        in_channels=3,
        out_channels=6,
        widths=(256, 256, 512, 512, 1024, 1024),
        blocks=(2, 2, 2, 2, 2, 2),
        attention=(3, 4, 5),
        head_dim=64,
        resample=Resample.RESIDUAL,
        groups=32,
        num_classes=num_classes,
    )
