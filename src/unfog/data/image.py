"""One picture to pixels: the only place where pictures are decoded.

In this order, each step before the next because the other way round loses something:

1. the EXIF orientation is applied, so that what stood upright stands upright;
2. 16-bit grey is scaled by the range of the format (v / 257), not clipped to white;
3. transparency (alpha channel, palette entry or colour key) is composited on white, before any resampling, so that
   the colours hidden under it neither show nor bleed into their neighbours;
4. everything becomes grey (luma) or RGB; palettes are looked up, CMYK and YCbCr converted; colour profiles are ignored;
5. the largest centred box of the wanted shape is cut out and resampled with Lanczos.

Of an animation the first frame is taken. Only the formats in ``FORMATS`` are tried, whatever a file is called.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# A file may be named anything: without this list Pillow would, for one, hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

Content = bytes | Path | NDArray[np.uint8]
"""An encoded picture, the file that holds one, or pixels ``(H, W)`` or ``(H, W, 3)``."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Look(NamedTuple):
    """What can be told of a picture without decoding it: upright size ``(H, W)``, and whether it is stored grey."""

    size: Size
    grey: bool


def look(content: Content) -> Look:
    """Read the header of a picture.

    Grey means a grey mode (or a palette of greys): a colour file whose channels happen to agree counts as colour.

    Raises:
        Exception: whatever Pillow raises on a file that is no picture.
    """
    with _opened(content) as image:
        grey = _is_grey(image)
        # Formats differ in whether the size before loading is the turned one, hence the full decode.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        upright = ImageOps.exif_transpose(image) if turned else image
        return Look((upright.height, upright.width), grey)


def decode(content: Content, size: Size | None, channels: int) -> NDArray[np.uint8]:
    """Decode one picture.

    Args:
        content: the picture.
        size: height and width wanted; None keeps the picture's own.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        ValueError: if the pixels have no stated range (floats, integers beyond 16 bits).
        Exception: whatever Pillow raises on a broken file.
    """
    with _opened(content) as image:
        # Loading first: a truncated file must fail here, and some formats turn the picture as they load.
        image.load()
        upright = ImageOps.exif_transpose(image)
        flat = _flat(upright).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(flat if size is None else _fit(flat, size))
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)  # (C, H, W)
    return np.ascontiguousarray(planes)


@contextmanager
def _opened(content: Content) -> Iterator[Image.Image]:
    if isinstance(content, np.ndarray):
        yield Image.fromarray(content)
        return
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
        yield image


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _flat(image: Image.Image) -> Image.Image:
    """Return the picture without transparency, in mode L or RGB."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, which have no stated range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if _is_grey(image) else "RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)  # mode I is how some versions of Pillow read 16 bits
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"its pixels reach from {levels.min()} to {levels.max()}, beyond 16 bits: save it with 8 or 16 bits"
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[levels == transparent] = 65535
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def _fit(image: Image.Image, size: Size) -> Image.Image:
    """Cut the largest centred box of the wanted shape out of the picture and resample it."""
    height, width = size
    if (image.height, image.width) == size:
        return image
    scale = min(image.height / height, image.width / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image.width - wide) // 2, (image.height - tall) // 2
    box = image.crop((left, top, left + wide, top + tall))
    return box.resize((width, height), Image.Resampling.LANCZOS)
