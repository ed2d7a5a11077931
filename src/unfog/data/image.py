"""One picture to pixels: the only place where pictures are decoded, by one policy.

In this order, each step before the next because the other way round loses something:

1. of a file of several frames (an animation, a multi-page TIFF, a multi-picture JPEG) the first is taken;
2. the EXIF orientation is applied, so that what stood upright stands upright;
3. 16-bit grey is scaled by the range of the format (v / 257), not clipped to white. Of 16-bit colour Pillow hands out
   the upper byte (v // 256, whole range to whole range as well): at most one level of 255 from v / 257. Floats are
   scaled by the range that ``Policy.value_range`` declares, and refused without one or outside of it;
4. transparency (alpha channel, palette entry or colour key) is composited on ``Policy.background``, before any
   resampling, so that the colours hidden under it neither show nor bleed into their neighbours; only where four
   channels are asked for is alpha kept, as the fourth;
5. everything becomes grey (luma) or RGB; palettes are looked up, CMYK and YCbCr converted; colour profiles are ignored;
6. the largest centred box of the wanted shape is cut out and resampled with Lanczos.

Arrays have as many channels as they have, none of them alpha; they are cut and resampled channel by channel.
Only the formats in ``FORMATS`` are tried, whatever a file is called.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, ImageOps

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# A file may be named anything: without this list Pillow would, for one, hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PICTURE_CHANNELS = (1, 3, 4)
"""Channels that a picture can be brought to: grey, RGB, RGBA."""


class Stretch(NamedTuple):
    """Some bytes inside a file, such as a member of an archive."""

    path: Path
    offset: int
    size: int


Content = bytes | Path | Stretch | NDArray[np.uint8]
"""An encoded picture, the file or part of a file that holds one, or pixels ``(H, W)`` or ``(H, W, C)``."""

Size = tuple[int, int]
"""Height and width in pixels."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 .. 255."""

Range = tuple[float, float]
"""The numbers that mean black and white."""


def colour(text: str) -> Colour:
    """Return the colour that a text names: ``white``, ``#ff8800``, ``rgb(255, 136, 0)``, ...

    Raises:
        ValueError: if it names none, or one that is transparent itself.
    """
    try:
        found = ImageColor.getrgb(text)
    except ValueError:
        raise ValueError(f"expected a background such as white, black or '#ff8800', got {text!r}") from None
    if len(found) == 4 and found[3] != 255:
        raise ValueError(f"expected a background that is opaque, got {text!r}")
    return found[0], found[1], found[2]


@dataclass(frozen=True)
class Policy:
    """What is declared of decoding.

    Attributes:
        background: on which transparent pixels are composited.
        value_range: of pictures that hold floats: the numbers that mean black and white.
    """

    background: Colour = (255, 255, 255)
    value_range: Range | None = None


ON_WHITE = Policy()


class Look(NamedTuple):
    """What a picture was before it was decoded.

    Attributes:
        size: upright height and width.
        channels: 1 if it is stored grey, 3 in colour; of arrays, as many as they have.
        mode: how its pixels are stored, as Pillow calls it; of arrays, the number of channels.
        format: as the file itself has it, such as PNG, whatever its name says; ``array`` for arrays.
        several: whether it has more frames than the one taken.
        profile: whether it has a colour profile, which is ignored.
    """

    size: Size
    channels: int
    mode: str
    format: str
    several: bool = False
    profile: bool = False


class Picture(NamedTuple):
    """A decoded picture: pixels ``(C, H, W)`` uint8, and what it was before."""

    pixels: NDArray[np.uint8]
    look: Look


def stored(content: bytes | Path | Stretch) -> bytes:
    """Return the bytes of an encoded picture.

    Raises:
        OSError: if its file cannot be read.
    """
    match content:
        case bytes():
            return content
        case Stretch(path, offset, size):
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        case Path():
            return content.read_bytes()


def look(content: Content, policy: Policy = ON_WHITE) -> Look:
    """Read the header of a picture.

    Grey means a grey mode (or a palette of greys): a colour file whose channels happen to agree counts as colour, and
    so does a grey one that is partly transparent where the background is coloured.

    Raises:
        Exception: whatever Pillow raises on a file that is no picture.
    """
    if isinstance(content, np.ndarray):
        return _look_at_array(content)
    with _opened(content) as image:
        seen = _look_at(image, policy)
        # Formats differ in whether the size before loading is the turned one, hence the full decode.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        upright = ImageOps.exif_transpose(image) if turned else image
        return seen._replace(size=(upright.height, upright.width))


def decode(content: Content, size: Size | None, channels: int | None, policy: Policy = ON_WHITE) -> Picture:
    """Decode one picture.

    Args:
        content: the picture.
        size: height and width wanted; None keeps the picture's own.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA; straight alpha, opaque where the file has none); of arrays, as many as
            they have, or 3 of 1 and 1 of 3. None keeps the picture's own, without alpha.
        policy: how to decode.

    Raises:
        ValueError: if the pixels have no stated range (floats without one, integers beyond 16 bits), or leave it, or
            cannot be brought to so many channels.
        Exception: whatever Pillow raises on a broken file.
    """
    if isinstance(content, np.ndarray):
        return _decode_array(content, size, channels)
    with _opened(content) as image:
        seen = _look_at(image, policy)
        # Loading first: a truncated file must fail here, and some formats turn the picture as they load.
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        upright = (image.height, image.width)
        wanted = seen.channels if channels is None else channels
        flat = _in_channels(_in_8_bits(image, policy.value_range), wanted, policy.background)
        pixels = np.asarray(flat if size is None else _fit(flat, size))
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (C, H, W)
    return Picture(np.ascontiguousarray(planes), seen._replace(size=upright))


@contextmanager
def _opened(content: bytes | Path | Stretch) -> Iterator[Image.Image]:
    place = content if isinstance(content, Path) else io.BytesIO(stored(content))
    if not (place.stat().st_size if isinstance(place, Path) else place.getbuffer().nbytes):
        raise ValueError("it is empty (0 bytes)")
    with Image.open(place, formats=FORMATS) as image:
        yield image


def _look_at(image: Image.Image, policy: Policy) -> Look:
    red, green, blue = policy.background
    grey = _is_grey(image) and (red == green == blue or not image.has_transparency_data)
    return Look(
        size=(image.height, image.width),
        channels=1 if grey else 3,
        mode=image.mode,
        format=image.format or "",
        several=_has_several_frames(image),
        profile="icc_profile" in image.info,
    )


def _has_several_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return True  # there is a second frame, which is broken: no reason to lose the first


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _in_8_bits(image: Image.Image, value_range: Range | None) -> Image.Image:
    """Return a picture of floats or 16 bits as one of 8 bits, and others as they are."""
    if image.mode == "F":
        if value_range is None:
            raise ValueError(
                "its pixels are floats, which have no stated range: declare it with value_range, "
                "or save it with 8 or 16 bits"
            )
        return Image.fromarray(to_levels(np.asarray(image), value_range))
    return _from_16_bits(image) if image.mode.startswith("I") else image


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)  # mode I is how some versions of Pillow read 16 bits
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"its pixels reach from {levels.min()} to {levels.max()}, beyond 16 bits: save it with 8 or 16 bits"
        )
    scaled = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return scaled


def outside(values: NDArray[np.number], value_range: Range) -> tuple[int, ...] | None:
    """Return the index of the first number that is outside of a range, or is none, or None if there is no such."""
    low, high = value_range
    wrong = ~((values >= low) & (values <= high))  # also true where there is a NaN
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape)) if wrong.any() else None


def to_levels(values: NDArray[np.number], value_range: Range) -> NDArray[np.uint8]:
    """Round numbers of a range to 256 levels.

    Raises:
        ValueError: if one lies outside; says which is the first.
    """
    low, high = value_range
    first = outside(values, value_range)
    if first is not None:
        raise ValueError(f"{beyond(values, value_range)}; the first such number is {values[first]} at {first}")
    return np.asarray(np.rint((values.astype(np.float64) - low) * (255.0 / (high - low))), dtype=np.uint8)


def beyond(values: NDArray[np.number], value_range: Range) -> str:
    """Say from where to where numbers reach that leave a range, passing over those that are none."""
    least, most = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    return f"its numbers reach from {least} to {most}, outside of value_range={value_range}"


def _in_channels(image: Image.Image, channels: int, background: Colour) -> Image.Image:
    """Return a picture of 8 bits as grey (1), RGB (3) or RGBA (4)."""
    if channels not in PICTURE_CHANNELS:
        raise ValueError(f"a picture can have 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {channels}")
    if channels == 4:
        return _in_mode(image, "RGBA")
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(under, _in_mode(image, "RGBA"))
    flat = _in_mode(image, "L" if _is_grey(image) else "RGB")
    return _in_mode(flat, "L" if channels == 1 else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy it for nothing


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


def _look_at_array(pixels: NDArray[np.uint8]) -> Look:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return Look((pixels.shape[0], pixels.shape[1]), channels, f"{channels} x 8 bits", "array")


def _decode_array(pixels: NDArray[np.uint8], size: Size | None, channels: int | None) -> Picture:
    seen = _look_at_array(pixels)
    wanted = seen.channels if channels is None else channels
    if (seen.channels, wanted) == (3, 1):
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    elif wanted != seen.channels and (seen.channels, wanted) != (1, 3):
        raise ValueError(f"it has {seen.channels} channels, which cannot become {wanted}")
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (C, H, W)
    if size is not None:
        planes = np.stack([np.asarray(_fit(Image.fromarray(plane), size)) for plane in planes])
    return Picture(np.ascontiguousarray(np.broadcast_to(planes, (wanted, *planes.shape[1:]))), seen)
