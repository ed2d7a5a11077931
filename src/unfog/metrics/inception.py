"""The Inception-v3 network that the published Fréchet Inception Distance and Inception Score are defined by.

It is the network of December 2015, not the later one that libraries of vision offer: 1008 logits, and four places where
the architecture differs, which are part of the definition of the number. Names of parameters and their shapes are those
of the published file ``pt_inception-2015-12-05-6726825d.pth``, so that its weights load strictly.

- The average pools of the mixed blocks leave the padding out of the mean.
- The last mixed block pools by the maximum, the one before it by the average.
- Pictures are brought to 299 x 299 by bilinear interpolation without antialiasing, whatever their size, also where that
  makes them smaller; to what the corners are aligned is the caller's choice of a published protocol (``Alignment``).
- Pixels of 0 .. 255 are scaled to [-1, 1]: by ``2 (x / 255) - 1`` in the PyTorch port, by ``(x - 128) / 128`` in the
  TensorFlow graph.

Source: C. Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015, arXiv 1512.00567
(architecture, figures 5 to 7). M. Heusel et al., 2017, arXiv 1706.08500 (its use for distances). The names, shapes and
differences are facts of the public port mseitzer/pytorch-fid; nothing of its code is used.
"""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.checks import require

SIZE = 299
"""Side of the pictures that the network takes."""

DIM = 2048
"""Features of the last pool."""

CLASSES = 1008
"""Logits; the last ones stand for no class that was ever published."""


class Alignment(Enum):
    """How the published programs bring pictures to the network; the scores differ by it.

    ``PYTORCH``: centres of pixels are aligned, scaled by 255 (pytorch-fid). ``TENSORFLOW``: the top left corners of the
    pictures are aligned, as TensorFlow 1 does, scaled by 128 (the graph itself, which torch-fidelity follows).
    """

    PYTORCH = "bilinear, pixel centres aligned, no antialiasing"
    TENSORFLOW = "bilinear, top left corners aligned, no antialiasing"


class Unit(nn.Module):
    """Convolution without bias, batch normalisation and ReLU.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        kernel: height and width, or the side.
        stride: of the convolution.
        same: pad so that at stride 1 the size stays.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1, *, same: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, H', W')``."""
        answer: Tensor = self.bn(self.conv(x))
        return answer.relu()


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """Mixed block at 35 x 35: 1x1, 5x5, two 3x3 after each other, and a pool."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(channels, 64, 1)
        self.branch5x5_1 = Unit(channels, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, same=True)
        self.branch3x3dbl_1 = Unit(channels, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Unit(96, 96, 3, same=True)
        self.branch_pool = Unit(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 224 + pooled, H, W)``."""
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_mean_pool(x))], 1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(channels, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, same=True)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 480 + channels, H', W')``."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """Mixed block at 17 x 17: 7x7 as 1x7 and 7x1, once and twice."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(channels, 192, 1)
        self.branch7x7_1 = Unit(channels, middle, 1)
        self.branch7x7_2 = Unit(middle, middle, (1, 7), same=True)
        self.branch7x7_3 = Unit(middle, 192, (7, 1), same=True)
        self.branch7x7dbl_1 = Unit(channels, middle, 1)
        self.branch7x7dbl_2 = Unit(middle, middle, (7, 1), same=True)
        self.branch7x7dbl_3 = Unit(middle, middle, (1, 7), same=True)
        self.branch7x7dbl_4 = Unit(middle, middle, (7, 1), same=True)
        self.branch7x7dbl_5 = Unit(middle, 192, (1, 7), same=True)
        self.branch_pool = Unit(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 768, H, W)``."""
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))], 1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(channels, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(channels, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 512 + channels, H', W')``."""
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """Mixed block at 8 x 8, whose branches end in 1x3 and 3x1 side by side.

    Args:
        channels: of its input.
        by_maximum: pool by the maximum instead of the average.
    """

    def __init__(self, channels: int, *, by_maximum: bool) -> None:
        super().__init__()
        self.by_maximum = by_maximum
        self.branch1x1 = Unit(channels, 320, 1)
        self.branch3x3_1 = Unit(channels, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), same=True)
        self.branch3x3_2b = Unit(384, 384, (3, 1), same=True)
        self.branch3x3dbl_1 = Unit(channels, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, same=True)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), same=True)
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), same=True)
        self.branch_pool = Unit(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 2048, H, W)``."""
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _max_pool(x) if self.by_maximum else _mean_pool(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        branches += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """The network of December 2015 that FID and the Inception Score are defined by, with fresh weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, by_maximum=False)
        self.Mixed_7c = BlockE(2048, by_maximum=True)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last pool.

        Args:
            x: ``(B, 3, 299, 299)`` in [-1, 1], from ``prepared``.

        Returns:
            ``(B, 2048)``.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # (B, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of the Inception Score, ``(B, 1008)``, of features ``(B, 2048)``.

        As in the program of the publication, the bias of the last layer is left out.
        """
        return F.linear(features, self.fc.weight)


def prepared(pixels: Tensor, alignment: Alignment = Alignment.PYTORCH) -> Tensor:
    """Bring pictures to what the network takes.

    Args:
        pixels: ``(B, 3, H, W)`` uint8.
        alignment: which published program to follow.

    Returns:
        ``(B, 3, 299, 299)`` float32 in [-1, 1].

    Raises:
        ValueError: if the pictures are something else.
    """
    require(
        pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.dtype == torch.uint8,
        f"pictures (B, 3, H, W) uint8, got {tuple(pixels.shape)} {pixels.dtype}",
    )
    x = pixels.float()
    if alignment is Alignment.PYTORCH:
        x = F.interpolate(x / 255, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=False)
        return 2 * x - 1
    for axis in (2, 3):
        x = _stretched(x, axis)
    return (x - 128) / 128


def _stretched(x: Tensor, axis: int) -> Tensor:
    """Interpolate along one axis to 299 points, point i being taken at ``i * length / 299``."""
    length = x.shape[axis]
    # In float32, as TensorFlow computes it.
    places = torch.arange(SIZE, device=x.device, dtype=torch.float32) * (length / SIZE)
    below = places.floor().long().clamp(max=length - 1)
    above = (below + 1).clamp(max=length - 1)
    share = (places - below).reshape([SIZE if k == axis else 1 for k in range(4)])
    low, high = x.index_select(axis, below), x.index_select(axis, above)
    return low + (high - low) * share
