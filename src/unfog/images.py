"""Samples as PNG files that carry text, as arrays where PNG has no room for their channels, and grids of them."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from unfog.data.dataset import to_uint8
from unfog.diffusion.checks import require

PNG_CHANNELS = (1, 3, 4)
"""Channels that a PNG file holds: grey, RGB, and RGB with alpha."""

_GAP = 2


def tile(images: Tensor, columns: int) -> Tensor:
    """Lay images out in rows, with white gaps between them.

    Args:
        images: ``(N, C, H, W)`` floats in [-1, 1]; what lies outside is clipped.
        columns: images in a row.

    Returns:
        ``(C, H', W')`` uint8.

    Raises:
        ValueError: if there is no image or no column.
    """
    require(images.ndim == 4 and len(images) > 0, f"images (N, C, H, W) with N >= 1, got {tuple(images.shape)}")
    require(columns >= 1, f"at least 1 column, got {columns}")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = torch.full((channels, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), 255).byte()
    for k, image in enumerate(to_uint8(images).cpu()):
        top, left = k // columns * (height + _GAP), k % columns * (width + _GAP)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def png_bytes(image: Tensor, text: Mapping[str, str] | None = None, *, optimize: bool = False) -> bytes:
    """Return an image as a PNG file.

    Args:
        image: ``(C, H, W)`` with 1, 3 or 4 channels, uint8, or floats in [-1, 1], which are clipped.
        text: kept in the file, by keyword; keywords are 1 to 79 Latin letters long.
        optimize: make it as small as it can be, which takes longer.

    Raises:
        ValueError: if the image has another shape.
    """
    require(
        image.ndim == 3 and image.shape[0] in PNG_CHANNELS,
        f"an image (C, H, W) with C among {PNG_CHANNELS}, got {tuple(image.shape)}",
    )
    pixels = _as_pixels(image).permute(1, 2, 0).numpy()
    info = PngImagePlugin.PngInfo()
    for keyword, words in (text or {}).items():
        info.add_itxt(keyword, words)
    stream = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(stream, "PNG", pnginfo=info, optimize=optimize)
    return stream.getvalue()


def write_png(path: Path, image: Tensor, text: Mapping[str, str]) -> None:
    """Write an image; a file of that name is replaced at once.

    Args:
        path: ends in ``.png``; its folder is made if it is not there.
        image: ``(C, H, W)`` with 1, 3 or 4 channels, uint8, or floats in [-1, 1], which are clipped.
        text: kept in the file, by keyword; keywords are 1 to 79 Latin letters long.

    Raises:
        ValueError: if the image has another shape.
    """
    _write(path, png_bytes(image, text))


def write_array(path: Path, image: Tensor, record: str, *, exact: bool = False) -> None:
    """Write an image of any number of channels as an array, and a text beside it; such files are replaced at once.

    Args:
        path: ends in ``.npy`` and holds ``(C, H, W)`` uint8; the text goes to the file that ends in ``.json`` instead.
            Their folder is made if it is not there.
        image: ``(C, H, W)`` uint8, or floats in [-1, 1], which are clipped.
        record: the text.
        exact: keep numbers as they are, of any range, as float32: those of latents, which are no pixels.

    Raises:
        ValueError: if the image has another shape.
    """
    require(image.ndim == 3, f"an image (C, H, W), got {tuple(image.shape)}")
    stream = io.BytesIO()
    np.save(stream, (image.float().cpu() if exact else _as_pixels(image)).numpy(), allow_pickle=False)
    # The record first: an array is never without one.
    _write(path.with_suffix(".json"), record.encode())
    _write(path, stream.getvalue())


def read_png_text(path: Path) -> dict[str, str]:
    """Return the text that a PNG file carries, by keyword.

    Raises:
        ValueError: if it is no PNG file.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text = image.text if isinstance(image, PngImagePlugin.PngImageFile) else {}
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is no PNG file") from error
    return {str(keyword): str(words) for keyword, words in text.items()}


def _as_pixels(image: Tensor) -> Tensor:
    return (image if image.dtype == torch.uint8 else to_uint8(image)).cpu()


def _write(path: Path, content: bytes) -> None:
    """Write whole or not at all, but not forced to the disk: that would take longer than drawing a small sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(content)
    draft.replace(path)
