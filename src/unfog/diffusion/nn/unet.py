"""U-Nets for sequences, images and volumes: published ones and small ones for a processor without accelerator.

Going down, each level runs residual blocks at its resolution and halves it; going up, each level runs one block
more, every one of which first takes in one of the outputs met on the way down, newest first.

Source: Ronneberger, Fischer, Brox 2015, arXiv 1505.04597; Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B;
Dhariwal and Nichol 2021, arXiv 2105.05233, section 3; Song et al. 2021, arXiv 2011.13456, appendix H (input pyramid);
Rombach et al. 2022, arXiv 2112.10752, section 3.3 (context). Published shapes: `unet_presets`.
"""

from collections.abc import Sequence
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn import recompute
from unfog.diffusion.nn.conv import (
    Downsample,
    Resample,
    Upsample,
    convolution,
    crop,
    fold,
    pad_to_multiple,
    unfold,
)
from unfog.diffusion.nn.embed import Embedder
from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.residual import ResidualBlock
from unfog.diffusion.nn.tokens import join
from unfog.diffusion.nn.unet_config import UNetConfig

__all__ = ["UNet", "UNetConfig"]


class UNet(nn.Module):
    """A U-Net: noisy arrays and noise level in, arrays out.

    Arrays of any size are accepted: they are padded (by reflection where it fits) to the next multiple that
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
            label_early=config.label_early,
            augmentation=config.augmentation,
        )
        folded = prod(config.sides)
        entering = (config.in_channels + config.image_channels) * folded
        self.conv_in = xavier(convolution(entering, config.stem, 3, axes=config.axes))
        skips = [config.stem]
        down: list[DownLevel] = []
        for level in range(len(widths)):
            down.append(DownLevel(config, level, in_channels=skips[-1], pyramid_channels=entering))
            skips += down[-1].widths
            entering = skips[-1]
        self.down = nn.ModuleList(down)
        attention, depth = config.middle_attention, config.middle_depth
        self.middle = nn.ModuleList(
            [
                ResidualBlock(skips[-1], widths[-1], style, attention=attention, transformer_depth=depth),
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
        self.conv_out = zeroed(convolution(widths[0], config.out_channels * folded, 3, axes=config.axes))

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
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """Answer for one batch of noisy arrays.

        Args:
            x: (B, in_channels, *space), `config.axes` axes of any length >= 1, in the dtype of the parameters.
            c_noise: noise levels, (B,) or (), float32.
            label: classes (B,) int64 in [0, num_classes], num_classes being the null; None is the null.
            vector: (B, vector_dim), required if the network has vectors.
            attributes: (B, A) int64, column i in [0, config.attributes[i]], that number being the null; None is the
                null of all.
            context: (B, M, context_dim) tokens, M >= 1, required if the network reads a context.
            context_mask: (B, M) bool, which of the tokens count; None is all.
            image: (B, image_channels, *space), as large as `x`, required if the network has image channels.
            augmentation: (B, config.augmentation), what was done to the pictures; None is nothing.

        Returns:
            (B, out_channels, *space).

        Raises:
            ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
            TypeError: if `c_noise` has 16 bits, `label` or `attributes` are not integer, or `context_mask` is not bool.
        """
        whole = join(self.config, x, image, context, context_mask)
        embedding = self.embedder(
            c_noise, label=label, vector=vector, attributes=attributes, augmentation=augmentation, like=x
        )
        h, corner = pad_to_multiple(whole, self.config.multiples)
        h = self._answer(h, embedding, None if context is None else context.to(x.dtype), context_mask)
        return crop(h, corner, x.shape[2:])

    def _answer(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        x = fold(x, self.config.sides)
        h: Tensor = self.conv_in(x)
        skips, pyramid = [h], x
        for level in self.down:
            outputs, pyramid = level(skips[-1], pyramid, *conditions)
            skips += outputs
        h = skips[-1]
        for block in self.middle:
            h = recompute.call(block, h, *conditions, recompute=self.config.checkpoint)
        for level, blocks in zip(self.up, reversed(self.config.blocks), strict=True):
            h = level(h, [skips.pop() for _ in range(blocks + 1)], *conditions)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return unfold(h, self.config.sides)


class DownLevel(nn.Module):
    """The blocks of one level on the way down, and the step to the next.

    Args:
        config: of the whole network.
        level: which level, 0 being the finest.
        in_channels: channels that come in.
        pyramid_channels: channels of the image as it comes to this level, where the network has an input pyramid.

    Attributes:
        widths: channels of each output, in order.
    """

    def __init__(self, config: UNetConfig, level: int, *, in_channels: int, pyramid_channels: int):
        super().__init__()
        self.checkpoint = config.checkpoint
        self.gain = sqrt(0.5) if config.rescale else 1.0
        style, width, count = config.style, config.widths[level], config.blocks[level]
        attention, depth = level in config.attention, config.depth_of(level)
        self.blocks = nn.ModuleList(
            ResidualBlock(width if i else in_channels, width, style, attention=attention, transformer_depth=depth)
            for i in range(count)
        )
        last = width if count else in_channels
        self.widths = [width] * count
        self.resample: ResidualBlock | Downsample | None = None
        self.pyramid: Downsample | None = None
        if level == len(config.widths) - 1:
            return
        self.widths.append(last)
        spacing, same = config.spacing, config.same_padding
        if config.resample is Resample.RESIDUAL:
            self.resample = ResidualBlock(last, last, style, resize=spacing.halve)
        else:
            learned = config.resample is Resample.CONV
            self.resample = Downsample(last, learned=learned, same_padding=same, spacing=spacing)
        if config.input_pyramid:
            self.pyramid = Downsample(
                pyramid_channels, learned=True, same_padding=same, spacing=spacing, out_channels=last
            )

    def forward(self, h: Tensor, pyramid: Tensor, *conditions: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Run the level.

        Args:
            h: features (B, in_channels, *space).
            pyramid: the image as it comes to this level.
            *conditions: what residual blocks take besides features.

        Returns:
            The output of every block, and of the step down, (B, C, *space) each, the last one halved; and the image as
            it goes to the next level.
        """
        outputs = []
        for block in self.blocks:
            h = recompute.call(block, h, *conditions, recompute=self.checkpoint)
            outputs.append(h)
        if self.resample is not None:
            h = _resample(self.resample, h, conditions, self.checkpoint)
            if self.pyramid is not None:
                h = pyramid = (self.pyramid(pyramid) + h) * self.gain
            outputs.append(h)
        return outputs, pyramid


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
        style, width, last = config.style, config.widths[level], len(skip_channels) - 1
        self.blocks = nn.ModuleList(
            ResidualBlock(
                (width if i else in_channels) + skip,
                width,
                style,
                attention=level in config.attention and (i == last or not config.attend_once_up),
                transformer_depth=config.depth_of(level) if i == last or not config.attend_once_up else 0,
            )
            for i, skip in enumerate(skip_channels)
        )
        self.resample: ResidualBlock | Upsample | None = None
        if level > 0:
            if config.resample is Resample.RESIDUAL:
                self.resample = ResidualBlock(width, width, style, resize=config.spacing.double)
            else:
                self.resample = Upsample(width, learned=config.resample is Resample.CONV, spacing=config.spacing)

    def forward(self, h: Tensor, skips: Sequence[Tensor], *conditions: Tensor | None) -> Tensor:
        """Take in `skips` (B, C_i, *space), one a block, and return (B, C, *space), doubled unless at level 0."""
        for block, skip in zip(self.blocks, skips, strict=True):
            h = recompute.call(block, torch.cat([h, skip], dim=1), *conditions, recompute=self.checkpoint)
        return h if self.resample is None else _resample(self.resample, h, conditions, self.checkpoint)


def _resample(step: nn.Module, h: Tensor, conditions: Sequence[Tensor | None], checkpoint: bool) -> Tensor:
    if isinstance(step, ResidualBlock):
        return recompute.call(step, h, *conditions, recompute=checkpoint)
    out: Tensor = step(h)
    return out
