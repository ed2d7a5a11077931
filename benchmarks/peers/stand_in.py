"""A stand-in for torchvision, whose wheels do not import beside every build of torch.

``denoising_diffusion_pytorch`` imports it at its top for a data set of picture files and for saving grids. What we run
of that library (networks, diffusion, sampling) uses none of it; the few names below are nevertheless real, so that its
own ``Dataset`` and ``Trainer`` work with them too.
"""

import importlib.machinery
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Compose:
    """Apply one function after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value


class Lambda:
    """Apply one function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        return self.function(value)


class Resize:
    """Bring a picture to ``(height, width)``, or its shorter side to a length, bilinearly."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        if not isinstance(self.size, int):
            height, width = self.size
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        short = min(picture.size)
        width, height = (int(self.size * side / short) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BILINEAR)


class RandomHorizontalFlip:
    """Mirror a picture with a probability."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else picture


class CenterCrop:
    """Cut ``(height, width)``, or a square, out of the middle of a picture that is at least as large."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = round((picture.width - self.width) / 2), round((picture.height - self.height) / 2)
        return picture.crop((left, top, left + self.width, top + self.height))


class ToTensor:
    """Turn an 8-bit picture into ``(C, H, W)`` float32 in [0, 1]."""

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = np.array(picture, dtype=np.uint8)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def make_grid(images: Tensor, nrow: int = 8, padding: int = 2) -> Tensor:
    """Lay ``(N, C, H, W)`` out in rows of ``nrow`` on black, with gaps: ``(C, H', W')``."""
    count, channels, height, width = images.shape
    columns = min(nrow, count)
    rows = -(-count // columns)
    grid = images.new_zeros(channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    for k, image in enumerate(images):
        top, left = padding + k // columns * (height + padding), padding + k % columns * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_image(images: Tensor, path: str | Path, nrow: int = 8) -> None:
    """Write a grid of ``(N, C, H, W)`` images in [0, 1] to a file."""
    pixels = make_grid(images, nrow).mul(255).add(0.5).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


@contextmanager
def present() -> Iterator[None]:
    """Put the stand-in where torchvision is imported from, for a while, unless torchvision itself is installed.

    Whoever asks later whether torchvision is there, as transformers does, shall hear that it is not.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    whole = _module("torchvision", {})
    pictures = (Compose, Lambda, Resize, RandomHorizontalFlip, CenterCrop, ToTensor)
    whole.transforms = _module("torchvision.transforms", {part.__name__: part for part in pictures})  # type: ignore[attr-defined]
    # k-diffusion imports it by name, for pictures that are no part of sampling.
    whole.transforms.functional = _module("torchvision.transforms.functional", {})
    whole.utils = _module("torchvision.utils", {"make_grid": make_grid, "save_image": save_image})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def _module(name: str, content: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, "A stand-in; see benchmarks/peers/stand_in.py.")
    # Libraries that ask whether torchvision is there look for a specification.
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module
