"""What happens to pictures: blur, noise, compression, resampling, distortion; to measure what reads them."""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.data.dataset import to_float, to_uint8
from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng


class Disturbance(ABC):
    """Something that is done to pictures."""

    @abstractmethod
    def __str__(self) -> str:
        """Say what is done."""

    @abstractmethod
    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        """Return what becomes of pictures (hook).

        Args:
            pictures: ``(B, C, S, S)`` floats in [-1, 1].
            rng: keys of the pictures.
        """

    def __call__(self, pictures: Tensor, seed: int) -> Tensor:
        """Disturb pictures and round them to 8 bits.

        Args:
            pictures: ``(B, C, S, S)`` uint8.
            seed: of what is drawn; the disturbance of picture k is a function of the seed and of k.

        Returns:
            The same shape, uint8.
        """
        return to_uint8(self.disturbed(to_float(pictures), Rng.of(seed, len(pictures))))


@dataclass(frozen=True)
class Clean(Disturbance):
    """Nothing is done."""

    def __str__(self) -> str:
        return "clean"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return pictures


@dataclass(frozen=True)
class Blur(Disturbance):
    """A Gaussian blur, whose standard deviation is ``sigma`` pixels."""

    sigma: float

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"a blur of sigma > 0 pixels, got {self.sigma}")

    def __str__(self) -> str:
        return f"blurred, sigma {self.sigma:g} px"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return blurred(pictures, self.sigma)


@dataclass(frozen=True)
class Noise(Disturbance):
    """White noise of standard deviation ``sigma``, where black is -1 and white 1."""

    sigma: float

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"noise of sigma > 0, got {self.sigma}")

    def __str__(self) -> str:
        return f"noisy, sigma {self.sigma:g}"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return pictures + self.sigma * rng.normal(pictures.shape[1:], Purpose.NOISE)


@dataclass(frozen=True)
class Then(Disturbance):
    """One disturbance after another."""

    first: Disturbance
    second: Disturbance

    def __str__(self) -> str:
        return f"{self.first}, then {self.second}"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return self.second.disturbed(self.first.disturbed(pictures, rng), rng)


@dataclass(frozen=True)
class Jpeg(Disturbance):
    """Compression as JPEG of a quality from 1 to 95, with colours at half the resolution."""

    quality: int

    def __post_init__(self) -> None:
        require(1 <= self.quality <= 95, f"a JPEG quality from 1 to 95, got {self.quality}")

    def __str__(self) -> str:
        return f"JPEG, quality {self.quality}"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        from PIL import Image

        found = []
        for picture in to_uint8(pictures).permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
            found.append(np.asarray(Image.open(file)))
        return to_float(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Resized(Disturbance):
    """Resampling to ``share`` of the side, in (0, 1), and back."""

    share: float

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"a share of the side in (0, 1), got {self.share}")

    def __str__(self) -> str:
        return f"resized to {self.share:.0%} and back"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        side = pictures.shape[-1]
        less = F.interpolate(pictures, size=max(1, round(side * self.share)), mode="bilinear", antialias=True)
        return F.interpolate(less, size=side, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Elastic(Disturbance):
    """A smooth distortion: pixels are moved by normal distances of ``sigma`` thirty-seconds of the side."""

    sigma: float

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"a distortion of sigma > 0, got {self.sigma}")

    def __str__(self) -> str:
        return f"distorted, sigma {self.sigma:g}/32 of the side"

    def disturbed(self, pictures: Tensor, rng: Rng) -> Tensor:
        side = pictures.shape[-1]
        knots = rng.normal((2, 6, 6), Purpose.AUGMENT)
        moved = F.interpolate(knots, size=side, mode="bicubic", align_corners=True) * (self.sigma * 2 / 32)
        axis = (torch.arange(side) + 0.5) * (2 / side) - 1
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # (S, S, 2), x and y
        at = grid + moved.permute(0, 2, 3, 1)
        return F.grid_sample(pictures, at, mode="bilinear", padding_mode="border", align_corners=False)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Blur pictures ``(B, C, H, W)`` by a Gaussian of ``sigma`` pixels; their edges are continued."""
    reach = ceil(3 * sigma)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weight /= weight.sum()
    wide = F.pad(pictures, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    rows = F.conv2d(wide, weight.view(1, 1, 1, -1))
    return F.conv2d(rows, weight.view(1, 1, -1, 1)).view(pictures.shape)
