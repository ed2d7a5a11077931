"""Convolutions along one, two or three axes, resolution changes, and padding to a size that can be halved.

Arrays are (B, C, *space): one axis of space is a sequence or sound, two an image, three a volume or a video whose
first axis is time.

Source: Karras et al. 2020, arXiv 1912.04958, and Zhang 2019, arXiv 1904.11486 (resampling through a short low-pass
filter); Song et al. 2021, arXiv 2011.13456, appendix H (the filter 1, 3, 3, 1 in U-Nets of diffusion models).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier

__all__ = [
    "IMAGE",
    "Convolution",
    "Downsample",
    "Resample",
    "Spacing",
    "Upsample",
    "convolution",
    "crop",
    "double",
    "fold",
    "halve",
    "pad_to_multiple",
    "unfold",
]

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONVOLUTIONS: dict[int, Callable[..., Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Resample(StrEnum):
    """How a U-Net moves between its levels."""

    POOL = "pool"
    """Average of 2x2 going down, nearest neighbour going up: no parameters, the cheapest."""
    CONV = "conv"
    """3x3 convolution with stride 2 going down, nearest neighbour and 3x3 convolution going up (DDPM)."""
    RESIDUAL = "residual"
    """A residual block around average and nearest neighbour (BigGAN; ADM's "resblock_updown")."""


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int | Sequence[int],
    *,
    axes: int,
    stride: Sequence[int] | None = None,
    padding: int | None = None,
) -> Convolution:
    """Make a convolution along all axes of space, with weights as torch draws them.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel: its side, or one for each axis; odd where `padding` is None.
        axes: number of axes of space: 1, 2 or 3.
        stride: of each axis; None is 1.
        padding: zeros on both sides of each axis; None keeps the size where the stride is 1.
    """
    sides = (kernel,) * axes if isinstance(kernel, int) else tuple(kernel)
    steps = (1,) * axes if stride is None else tuple(stride)
    border = tuple(side // 2 for side in sides) if padding is None else padding
    return _CONVOLUTIONS[axes](in_channels, out_channels, sides, stride=steps, padding=border)


def halve(x: Tensor, factors: Sequence[int] | None = None) -> Tensor:
    """Average each pair of neighbours along every axis: (B, C, H, W) to (B, C, H/2, W/2), H and W even.

    Args:
        x: (B, C, *space).
        factors: of each axis, 2 to halve it, 1 to keep it; None halves all.
    """
    axes = x.ndim - 2
    return _POOLS[axes](x, (2,) * axes if factors is None else tuple(factors))


def double(x: Tensor, factors: Sequence[int] | None = None) -> Tensor:
    """Repeat each element twice along every axis: (B, C, H, W) to (B, C, 2H, 2W).

    Args:
        x: (B, C, *space).
        factors: of each axis, 2 to double it, 1 to keep it; None doubles all.
    """
    scale = 2.0 if factors is None else tuple(float(factor) for factor in factors)
    return F.interpolate(x, scale_factor=scale, mode="nearest")


@dataclass(frozen=True)
class Spacing:
    """How the axes of an array shrink from one level of a network to the next.

    Args:
        factors: of each axis, 2 if it is halved and doubled, 1 if it is kept.
        smooth: resample through the filter (1, 3, 3, 1) / 8 along each axis that is halved, zeros lying beyond the
            border, instead of the average of two and the nearest neighbour: less aliasing.

    Raises:
        ValueError: for other numbers of axes than 1, 2, 3, or other factors than 1 and 2.
    """

    factors: tuple[int, ...] = (2, 2)
    smooth: bool = False

    def __post_init__(self) -> None:
        if len(self.factors) not in _POOLS or not set(self.factors) <= {1, 2}:
            raise ValueError(f"factors are {self.factors}; expected 1 (kept) or 2 (halved) for each of 1 to 3 axes.")

    @property
    def axes(self) -> int:
        """Number of axes of space."""
        return len(self.factors)

    def halve(self, x: Tensor) -> Tensor:
        """(B, C, *space) to the same with each axis divided by its factor."""
        if self.smooth:
            x = self._average(self._average(self._pad(x, 1)))
        return halve(x, self.factors)

    def double(self, x: Tensor) -> Tensor:
        """(B, C, *space) to the same with each axis multiplied by its factor."""
        x = double(x, self.factors)
        return self._average(self._average(self._pad(x, 1))) if self.smooth else x

    def blur(self, x: Tensor) -> Tensor:
        """Filter by (1, 3, 3, 1) / 8 along each axis that is halved; with 2 zeros on both sides it grows by 1."""
        return self._average(self._average(self._average(self._pad(x, 2))))

    def _average(self, x: Tensor) -> Tensor:
        """Average neighbours without halving. Thrice is the filter (1, 3, 3, 1) / 8, twice (1, 2, 1) / 4."""
        return _POOLS[self.axes](x, self.factors, stride=1)

    def _pad(self, x: Tensor, width: int) -> Tensor:
        return F.pad(x, [width if factor == 2 else 0 for factor in reversed(self.factors) for _ in range(2)])


IMAGE = Spacing()
"""Two axes, both of which are halved by averages."""


class Downsample(nn.Module):
    """Halve the resolution, by a convolution of side 3 with stride 2 or by the average.

    Args:
        channels: channels in, and out unless told otherwise.
        learned: True for the convolution, False for the average.
        same_padding: where the convolution's zero border lies. False puts one pixel on every side, so that
            output pixel i looks at inputs 2i - 1, 2i, 2i + 1 (ADM and most PyTorch code). True puts one pixel
            at the end only, so that it looks at 2i, 2i + 1, 2i + 2: this is what "SAME" means in TensorFlow for
            an even size, and published DDPM weights need it. Parameters are the same; outputs are not.
        spacing: which axes are halved. If it is smooth, the convolution looks at the blurred array.
        out_channels: channels out of the convolution; None is as many as come in.
    """

    def __init__(
        self,
        channels: int,
        *,
        learned: bool,
        same_padding: bool = False,
        spacing: Spacing = IMAGE,
        out_channels: int | None = None,
    ):
        super().__init__()
        self.same_padding = same_padding
        self.spacing = spacing
        self.conv = None
        if learned:
            padding = 0 if same_padding or spacing.smooth else 1
            out = channels if out_channels is None else out_channels
            self.conv = xavier(
                convolution(channels, out, 3, axes=spacing.axes, stride=spacing.factors, padding=padding)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2); H and W even."""
        if self.conv is None:
            return self.spacing.halve(x)
        factors = reversed(self.spacing.factors)
        if self.spacing.smooth:
            x = F.pad(self.spacing.blur(x), [0 if factor == 2 else 1 for factor in factors for _ in range(2)])
        elif self.same_padding:
            x = F.pad(x, [side for factor in factors for side in ((0, 1) if factor == 2 else (1, 1))])
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Double the resolution, followed by a convolution of side 3 if `learned`.

    Args:
        channels: channels in and out.
        learned: whether a convolution follows.
        spacing: which axes are doubled, and how.
    """

    def __init__(self, channels: int, *, learned: bool, spacing: Spacing = IMAGE):
        super().__init__()
        self.spacing = spacing
        self.conv = xavier(convolution(channels, channels, 3, axes=spacing.axes)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        x = self.spacing.double(x)
        if self.conv is not None:
            x = self.conv(x)
        return x


def fold(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Fold blocks of pixels into channels: (B, C, H, W) to (B, C p q, H/p, W/q) for sides (p, q).

    Args:
        x: (B, C, *space), each axis divisible by its side.
        sides: of a block along each axis, >= 1.

    Returns:
        The folded array; a channel's block lies in consecutive channels, its last axis fastest.
    """
    if len(sides) == 2 and sides[0] == sides[1]:
        return x if sides[0] == 1 else F.pixel_unshuffle(x, sides[0])
    inner, outer = _letters(len(sides))
    pairs = " ".join(f"({o} {i})" for o, i in zip(outer, inner, strict=True))
    pattern = f"b c {pairs} -> b (c {' '.join(inner)}) {' '.join(outer)}"
    return rearrange(x, pattern, **dict(zip(inner, sides, strict=True)))


def unfold(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Undo `fold` with the same sides: (B, C p q, H, W) to (B, C, H p, W q)."""
    if len(sides) == 2 and sides[0] == sides[1]:
        return x if sides[0] == 1 else F.pixel_shuffle(x, sides[0])
    inner, outer = _letters(len(sides))
    pairs = " ".join(f"({o} {i})" for o, i in zip(outer, inner, strict=True))
    pattern = f"b (c {' '.join(inner)}) {' '.join(outer)} -> b c {pairs}"
    return rearrange(x, pattern, **dict(zip(inner, sides, strict=True)))


def _letters(axes: int) -> tuple[list[str], list[str]]:
    return [f"i{axis}" for axis in range(axes)], [f"o{axis}" for axis in range(axes)]


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Pad both sides of every axis of space until it is a multiple of `multiple`.

    Reflection continues an image most naturally, but needs a side longer than the border; shorter sides repeat
    their edge. Each axis decides for itself. An array that fits already is returned as it is.

    Args:
        x: (B, C, *space), each axis of space >= 1.
        multiple: what the padded axes shall be divisible by, >= 1: one number for all or one for each.

    Returns:
        The padded array, and where the original starts in it along each axis; `crop` undoes it.
    """
    axes = x.ndim - 2
    multiples = (multiple,) * axes if isinstance(multiple, int) else tuple(multiple)
    corner = []
    for axis, (size, divisor) in enumerate(zip(x.shape[2:], multiples, strict=True)):
        missing = -size % divisor
        before = missing // 2
        if missing:
            border = [0, 0] * (axes - 1 - axis) + [before, missing - before] + [0, 0] * axis
            x = F.pad(x, border, mode=_border(size, missing - before))
        corner.append(before)
    return x, tuple(corner)


def _border(size: int, longest: int) -> str:
    return "reflect" if longest < size else "replicate"


def crop(x: Tensor, corner: Sequence[int], size: Sequence[int]) -> Tensor:
    """Cut from (B, C, *space) the block of `size` whose first element is at `corner`, both along each axis."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    for axis, (first, length) in enumerate(zip(corner, size, strict=True), start=2):
        x = x.narrow(axis, first, length)
    return x
