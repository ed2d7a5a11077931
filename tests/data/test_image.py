import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data import image as image_module
from unfog.data.image import Content, Policy, Size, Stretch, colour, look

GREYS = np.array([[0, 100], [200, 255]], dtype=np.uint8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 200, 90]]], dtype=np.uint8)
RED, WHITE = [255, 0, 0], [255, 255, 255]


def decode(content: Content, size: Size | None, channels: int | None, **policy: object) -> np.ndarray:
    return image_module.decode(content, size, channels, Policy(**policy)).pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def planes(pixels: object) -> np.ndarray:
    return np.asarray(pixels, dtype=np.uint8).transpose(2, 0, 1)


def test_grey_pixels_are_kept() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GREYS)), None, 1), GREYS[None])


def test_colours_are_kept() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(COLOURS)), None, 3), planes(COLOURS))


def test_grey_becomes_colour_by_repetition() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GREYS)), None, 3), np.stack([GREYS] * 3))


def test_colour_becomes_grey_by_its_luma() -> None:
    # ITU-R 601: 0.299 of full red is 76.2.
    assert decode(encoded(Image.new("RGB", (1, 1), "red")), None, 1).item() == 76


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encoded(bits), None, 1).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_by_their_range(kind: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(levels), kind), None, 1).tolist() == [[[0, 1, 128, 255]]]


def test_a_transparent_level_of_16_bits_becomes_white() -> None:
    levels = np.array([[0, 257, 32896]], dtype=np.uint16)
    content = encoded(Image.fromarray(levels), transparency=257)
    assert decode(content, None, 1).tolist() == [[[0, 255, 128]]]


def png_of_16_bits(levels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write (ISO/IEC 15948, sections 11.2 and 9)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = levels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_of_colour_are_scaled_by_their_range_to_one_level() -> None:
    levels = np.arange(65536, dtype=np.uint16)[::13].reshape(1, -1, 1).repeat(3, axis=2)
    levels[..., 1] = 65535 - levels[..., 1]
    found = decode(png_of_16_bits(levels, 2), None, 3).astype(int)
    # Pillow hands out v // 256, which differs from v / 257 by less than 1 before it is rounded.
    assert np.abs(found - levels.transpose(2, 0, 1) / 257).max() <= 1
    assert (found.min(), found.max()) == (0, 255)


def test_palette_entries_become_their_colours() -> None:
    content = encoded(Image.fromarray(COLOURS).quantize(4))
    assert np.array_equal(decode(content, None, 3), planes(COLOURS))


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 255, 0])
    image.putdata([0, 1])
    assert np.array_equal(decode(encoded(image, transparency=1), None, 3), planes([[RED, WHITE]]))


def test_a_colour_key_becomes_white() -> None:
    image = Image.fromarray(np.array([[RED, [1, 2, 3]]], dtype=np.uint8))
    content = encoded(image, transparency=(1, 2, 3))
    assert np.array_equal(decode(content, None, 3), planes([[RED, WHITE]]))


def test_the_colour_under_full_transparency_does_not_show() -> None:
    content = encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)))
    assert np.array_equal(decode(content, None, 3), planes([[WHITE]]))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_the_declared_colour(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (90, 90, 90, 255))
    content = encoded(image.convert(mode))
    expected = planes([[[255, 136, 0], [90, 90, 90]]])
    assert np.array_equal(decode(content, None, 3, background=colour("#ff8800")), expected)


def test_a_transparent_level_of_16_bits_becomes_the_declared_colour() -> None:
    content = encoded(Image.fromarray(np.array([[257]], dtype=np.uint16)), transparency=257)
    assert decode(content, None, 3, background=(255, 0, 0)).ravel().tolist() == RED


@pytest.mark.parametrize(("background", "channels"), [((9, 9, 9), 1), ((255, 0, 0), 3)])
def test_transparency_over_colour_is_colour(background: tuple[int, int, int], channels: int) -> None:
    content = encoded(Image.new("LA", (1, 1), (0, 0)))
    assert look(content, Policy(background)).channels == channels
    assert len(decode(content, None, None, background=background)) == channels


def test_alpha_is_kept_where_four_channels_are_asked_for() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels, "RGBA"))
    assert np.array_equal(decode(content, None, 4), pixels.transpose(2, 0, 1))
    assert look(content).channels == 3


def test_a_fourth_channel_is_opaque_where_there_is_no_alpha() -> None:
    assert decode(encoded(Image.new("L", (1, 1), 7)), None, 4).ravel().tolist() == [7, 7, 7, 255]


def test_hidden_colours_do_not_bleed_when_alpha_is_resized() -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    image.paste((255, 0, 0, 0), (4, 0, 8, 8))
    found = decode(encoded(image), (2, 2), 4)
    assert (found[:3, :, 0] == 255).all()


def test_pictures_have_no_two_channels() -> None:
    with pytest.raises(ValueError, match=r"1 \(grey\), 3 \(RGB\) or 4"):
        decode(encoded(Image.fromarray(GREYS)), None, 2)


@pytest.mark.parametrize("text", ["whitish", "", "#12", "#ff000080"])
def test_what_names_no_opaque_colour_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="background"):
        colour(text)


def test_colours_go_by_name_and_by_number() -> None:
    assert colour("orange") == colour("#ffa500") == colour("rgb(255, 165, 0)") == (255, 165, 0)


def test_half_transparent_black_over_white_is_half_grey() -> None:
    content = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert decode(content, None, 1).item() == 127


def test_grey_with_alpha_is_composited_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(50, 255), (50, 0)])
    assert decode(encoded(image), None, 1).tolist() == [[[50, 255]]]


def test_hidden_colours_do_not_bleed_when_resized() -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    image.paste((255, 0, 0, 0), (4, 0, 8, 8))
    assert np.array_equal(decode(encoded(image), (2, 2), 3), np.full((3, 2, 2), 255))


def test_cmyk_is_converted() -> None:
    content = encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")
    assert np.array_equal(decode(content, None, 3), planes([[RED]]))


def test_cmyk_of_a_jpeg_is_converted() -> None:
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    # A flat picture in JPEG at quality 100 is off by its rounding alone.
    assert np.abs(decode(content, None, 3)[:, 0, 0].astype(int) - RED).max() <= 2


def test_ycbcr_is_converted() -> None:
    content = encoded(Image.new("RGB", (1, 1), "red").convert("YCbCr"), "TIFF")
    # The conversion rounds each of the three channels once in both directions.
    assert np.abs(decode(content, None, 3).astype(int) - planes([[RED]])).max() <= 2


def test_pixels_of_no_stated_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no stated range"):
        decode(encoded(Image.fromarray(np.zeros((1, 1), dtype=np.float32)), "TIFF"), None, 1)


def test_floats_of_a_declared_range_are_read() -> None:
    content = encoded(Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)), "TIFF")
    assert decode(content, None, 1, value_range=(-1.0, 1.0)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("worst", [1.5, -2.0, np.nan])
def test_floats_outside_of_the_declared_range_are_refused_with_the_first(worst: float) -> None:
    content = encoded(Image.fromarray(np.array([[0, 0], [worst, 9]], dtype=np.float32)), "TIFF")
    with pytest.raises(ValueError, match=rf"to 9\.0, outside of value_range.*{worst} at \(1, 0\)"):
        decode(content, None, 1, value_range=(-1.0, 1.0))


def test_integers_beyond_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond 16 bits"):
        decode(encoded(Image.fromarray(np.full((1, 1), 70000, dtype=np.int32)), "TIFF"), None, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # What the tag says the file's rows and columns are: Exif 2.3, table of tag 0x0112.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert look(content).size == (2, 3)
    assert np.array_equal(decode(content, None, 1), upright[None])


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.fromarray(np.full((2, 2), level, dtype=np.uint8)) for level in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content, None, 1) == 10).all()


@pytest.mark.parametrize(("kind", "several"), [("GIF", True), ("WEBP", True), ("PNG", True), ("TIFF", True)])
def test_a_look_tells_of_further_frames(kind: str, several: bool) -> None:
    frames = [Image.fromarray(np.full((2, 2), level, dtype=np.uint8)).convert("RGB") for level in (10, 200)]
    assert look(encoded(frames[0], kind, save_all=True, append_images=frames[1:])).several is several
    assert look(encoded(frames[0], kind)).several is False


def test_an_animation_whose_second_frame_is_broken_keeps_its_first() -> None:
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(2)]
    whole = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    expected = decode(whole, None, 1)
    assert np.array_equal(decode(whole[: len(whole) * 3 // 4], None, 1), expected)


def test_a_look_tells_of_a_colour_profile() -> None:
    assert look(encoded(Image.fromarray(GREYS), icc_profile=b"profile")).profile
    assert not look(encoded(Image.fromarray(GREYS))).profile


def test_a_part_of_a_file_is_a_picture(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(GREYS))
    (tmp_path / "pack").write_bytes(b"before" + content + b"after")
    assert np.array_equal(decode(Stretch(tmp_path / "pack", 6, len(content)), None, 1), GREYS[None])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3000, 3), (3, 3000)])
def test_pictures_of_any_shape_are_brought_to_a_size(height: int, width: int) -> None:
    assert (decode(encoded(Image.new("L", (width, height), 50)), (8, 8), 1) == np.full((1, 8, 8), 50)).all()


def test_resizing_keeps_the_centre_square() -> None:
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 255
    assert np.array_equal(decode(encoded(Image.fromarray(wide)), (4, 4), 1), np.full((1, 4, 4), 255))


def test_resizing_to_another_shape_keeps_the_largest_box_of_that_shape() -> None:
    tall = np.zeros((12, 4), dtype=np.uint8)
    tall[5:7] = 255
    assert np.array_equal(decode(encoded(Image.fromarray(tall)), (2, 4), 1), np.full((1, 2, 4), 255))


def test_a_picture_that_fits_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), (5, 7), 1), pixels[None])


def test_resizing_is_lanczos() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((5, 5), Image.Resampling.LANCZOS))
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), (5, 5), 1), expected[None])


def test_a_flat_picture_stays_flat_at_any_size() -> None:
    content = encoded(Image.new("RGB", (13, 7), (10, 20, 30)))
    assert {tuple(pixel) for pixel in decode(content, (3, 5), 3).reshape(3, -1).T.tolist()} == {(10, 20, 30)}


def test_files_bytes_and_arrays_decode_alike(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(COLOURS))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    pixels = [decode(given, None, 3) for given in (content, path, COLOURS)]
    assert all(np.array_equal(each, planes(COLOURS)) for each in pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_an_error(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), kind)
    with pytest.raises(OSError, match="truncated"):
        decode(content[: len(content) // 2], None, 3)


def test_postscript_in_disguise_is_not_opened() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n", None, 3)


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (Image.new("L", (1, 1)), True),
        (Image.new("1", (1, 1)), True),
        (Image.new("LA", (1, 1)), True),
        (Image.fromarray(np.zeros((1, 1), dtype=np.uint16)), True),
        (Image.new("RGB", (1, 1)), False),
        (Image.new("RGBA", (1, 1)), False),
        (Image.fromarray(COLOURS).quantize(4), False),
        (Image.fromarray(GREYS).quantize(4), True),
    ],
)
def test_a_look_tells_grey_from_colour(image: Image.Image, grey: bool) -> None:
    assert (look(encoded(image)).channels == 1) is grey
