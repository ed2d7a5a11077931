"""Resolution changes: halving, doubling, and padding to a size that can be halved."""

from enum import StrEnum

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier

__all__ = ["Downsample", "Resample", "Upsample", "crop", "double", "halve", "pad_to_multiple"]


class Resample(StrEnum):
    """How a U-Net moves between its levels."""

    POOL = "pool"
    """Average of 2x2 going down, nearest neighbour going up: no parameters, the cheapest."""
    CONV = "conv"
    """3x3 convolution with stride 2 going down, nearest neighbour and 3x3 convolution going up (DDPM)."""
    RESIDUAL = "residual"
    """A residual block around average and nearest neighbour (BigGAN; ADM's "resblock_updown")."""


def halve(x: Tensor) -> Tensor:
    """Average each 2x2 square: (B, C, H, W) to (B, C, H/2, W/2), H and W even."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Repeat each pixel twice in both directions: (B, C, H, W) to (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Halve the resolution, by a 3x3 convolution with stride 2 or by the average.

    Args:
        channels: channels in and out.
        learned: True for the convolution, False for the average of 2x2.
        same_padding: where the convolution's zero border lies. False puts one pixel on every side, so that
            output pixel i looks at inputs 2i - 1, 2i, 2i + 1 (ADM and most PyTorch code). True puts one pixel
            at the end only, so that it looks at 2i, 2i + 1, 2i + 2: this is what "SAME" means in TensorFlow for
            an even size, and published DDPM weights need it. Parameters are the same; outputs are not.
    """

    def __init__(self, channels: int, *, learned: bool, same_padding: bool = False):
        super().__init__()
        self.same_padding = same_padding
        padding = 0 if same_padding else 1
        self.conv = xavier(nn.Conv2d(channels, channels, 3, stride=2, padding=padding)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2); H and W even."""
        if self.conv is None:
            return halve(x)
        if self.same_padding:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Double the resolution by nearest neighbour, followed by a 3x3 convolution if `learned`.

    Args:
        channels: channels in and out.
        learned: whether a convolution follows.
    """

    def __init__(self, channels: int, *, learned: bool):
        super().__init__()
        self.conv = xavier(nn.Conv2d(channels, channels, 3, padding=1)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        x = double(x)
        if self.conv is not None:
            x = self.conv(x)
        return x


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad both sides of an image until height and width are multiples of `multiple`.

    Reflection continues an image most naturally, but needs a side longer than the border; shorter sides repeat
    their edge. Each axis decides for itself. An image that fits already is returned as it is.

    Args:
        x: images (B, C, H, W) with H, W >= 1.
        multiple: what the padded height and width shall be divisible by, >= 1.

    Returns:
        The padded images, and (row, column) at which the original starts in them; `crop` undoes it.
    """
    height, width = x.shape[-2:]
    below, right = -height % multiple, -width % multiple
    top, left = below // 2, right // 2
    if below:
        x = F.pad(x, (0, 0, top, below - top), mode=_border(height, below - top))
    if right:
        x = F.pad(x, (left, right - left, 0, 0), mode=_border(width, right - left))
    return x, (top, left)


def _border(size: int, longest: int) -> str:
    return "reflect" if longest < size else "replicate"


def crop(x: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Cut the `size` (height, width) rectangle whose first pixel is `corner` (row, column) from (B, C, H, W)."""
    if x.shape[-2:] == size:
        return x
    top, left = corner
    height, width = size
    return x[..., top : top + height, left : left + width]
