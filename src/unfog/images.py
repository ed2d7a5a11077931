"""Samples as PNG files that carry text, and grids of them."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from unfog.data.dataset import to_uint8
from unfog.diffusion.checks import require

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


def write_png(path: Path, image: Tensor, text: Mapping[str, str]) -> None:
    """Write an image; a file of that name is replaced at once.

    Args:
        path: ends in ``.png``; its folder is made if it is not there.
        image: ``(C, H, W)`` with 1 or 3 channels, uint8, or floats in [-1, 1], which are clipped.
        text: kept in the file, by keyword; keywords are 1 to 79 Latin letters long.

    Raises:
        ValueError: if the image has another shape.
    """
    require(image.ndim == 3 and image.shape[0] in (1, 3), f"an image (1 or 3, H, W), got {tuple(image.shape)}")
    pixels = (image if image.dtype == torch.uint8 else to_uint8(image)).cpu().permute(1, 2, 0).numpy()
    info = PngImagePlugin.PngInfo()
    for keyword, words in text.items():
        info.add_itxt(keyword, words)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, but not forced to the disk: that would take longer than drawing a small sample.
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(stream.getvalue())
    draft.replace(path)


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
