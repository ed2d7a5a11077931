"""Pictures that are moved, turned and stretched in training, while the network is told how.

A network that is told what was done to a picture learns one more condition, and draws pictures to which nothing was
done when it is told nothing: what it learned from the others does not leak into its samples. Small sets gain most.

Source:
    Karras et al. 2022 (arXiv 2206.00364), appendix F.2, after the geometric part of Karras et al. 2020 (2006.06676):
    the parameters, their order and the constants were looked up in a published reimplementation. Two things differ: a
    stretch is always one of at least 1 along its axis, which the numbers tell apart from one across it, as the
    published ones do not; and pictures are resampled by one bicubic step, instead of through a wavelet filter at twice
    the resolution.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng

NUMBERS = 9
"""Numbers that tell a network what was done: two flips, the change of size, cosine less 1 and sine of the turn, both
parts of the stretch, both of the shift. All are 0 of a picture to which nothing was done."""


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a picture, each by itself with ``probability``; a picture is mirrored half the time.

    Attributes:
        probability: of each change but mirroring, in [0, 1].
        mirror: whether pictures are mirrored, half of them.
        overturn: whether they are turned upside down, half of those that ``probability`` picks.
        scale: standard deviation of the binary logarithm of a change of size, >= 0.
        turn: largest angle, as a share of half a turn, in [0, 1].
        stretch: the same as ``scale`` for a change of shape, along an axis of any direction, that keeps the area.
        shift: standard deviation of a move, as a share of height and width, >= 0.
    """

    probability: float = 0.12
    mirror: bool = True
    overturn: bool = True
    scale: float = 0.2
    turn: float = 1.0
    stretch: float = 0.2
    shift: float = 0.125

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"a probability in [0, 1], got {self.probability}")
        require(0 <= self.turn <= 1, f"a turn in [0, 1], got {self.turn}")
        for name in ("scale", "stretch", "shift"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"a {name} of at least 0, got {value}")

    def __call__(self, x0: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Change pictures.

        Args:
            x0: ``(B, C, H, W)`` clean pictures of any range. Beyond their edges they are mirrored; no pixel leaves the
                range of its own picture.
            rng: one key for each; the changes of a picture are a function of its key.

        Returns:
            The pictures, those to which nothing was done bit for bit, and what the network is told, ``(B, 9)``.

        Raises:
            ValueError: if these are no pictures.
        """
        require(x0.ndim == 4, f"pictures (B, C, H, W) to augment, got examples of shape {tuple(x0.shape[1:])}")
        told = self._drawn(rng).to(x0.device, torch.float32)
        flipped = torch.where((told[:, 0] == 1)[:, None, None, None], x0.flip(3), x0)
        flipped = torch.where((told[:, 1] == 1)[:, None, None, None], flipped.flip(2), flipped)
        warped = _warped(flipped, self._source(told, x0.shape[2] / x0.shape[3]))
        return torch.where((told[:, 2:] != 0).any(1)[:, None, None, None], warped, flipped), told.to(x0.dtype)

    def _drawn(self, rng: Rng) -> Tensor:
        """Return what is done to each picture, ``(B, 9)`` float32."""
        u = rng.uniform((13,), Purpose.AUGMENT)
        done = (u[:, :5] < self.probability).float()  # overturned, scaled, turned, stretched, shifted
        normal = torch.special.ndtri(u[:, 5:9])
        angle, direction = (math.pi * (2 * u[:, k] - 1) for k in (9, 10))
        angle = self.turn * angle * done[:, 2]
        stretch = normal[:, 1] * done[:, 3] * (self.stretch > 0)
        shift = normal[:, 2:] * done[:, 4:] * (self.shift > 0)
        return torch.stack(
            [
                (u[:, 11] < 0.5).float() * self.mirror,
                (u[:, 12] < 0.5).float() * done[:, 0] * self.overturn,
                normal[:, 0] * done[:, 1] * (self.scale > 0),
                angle.cos() - 1,
                angle.sin(),
                stretch * direction.cos(),
                stretch * direction.sin(),
                shift[:, 0],
                shift[:, 1],
            ],
            dim=1,
        )

    def _source(self, told: Tensor, aspect: float) -> Tensor:
        """Return where each point of a changed picture lies in the one before, ``(B, 2, 3)``, sides being 2 long.

        Args:
            told: what is done.
            aspect: height over width, for a turn is one of squares.
        """
        size = torch.exp2(self.scale * told[:, 2])
        cos, sin = told[:, 3] + 1, told[:, 4]
        amount = torch.hypot(told[:, 5], told[:, 6])
        # Stretched along one axis, and as much narrower across it; of no amount any axis will do.
        axis = told[:, 5:7] / amount.clamp(min=1e-12)[:, None]
        along = axis[:, :, None] * axis[:, None, :]
        across = torch.eye(2, device=told.device) - along
        by = torch.exp2(self.stretch * amount)[:, None, None]
        turn = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
        back = (along / by + by * across) @ turn.mT / size[:, None, None]
        # In shares of half the width along x, and of half the height along y.
        units = torch.tensor([1.0, aspect], device=told.device)
        back = back * units[None, None, :] / units[None, :, None]
        move = 2 * self.shift * told[:, 7:]
        return torch.cat([back, -back @ move[:, :, None]], dim=2)


def _warped(x: Tensor, source: Tensor) -> Tensor:
    """Return pictures resampled at where their pixels come from, within the range of each."""
    grid = F.affine_grid(source.to(x.dtype), list(x.shape), align_corners=False)
    warped = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    low, high = (bound(x, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    return warped.clamp(low, high)
