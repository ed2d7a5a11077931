import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.data.image import decode, look

GREYS = np.array([[0, 100], [200, 255]], dtype=np.uint8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 200, 90]]], dtype=np.uint8)
RED, WHITE = [255, 0, 0], [255, 255, 255]


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


def test_ycbcr_is_converted() -> None:
    content = encoded(Image.new("RGB", (1, 1), "red").convert("YCbCr"), "TIFF")
    # The conversion rounds each of the three channels once in both directions.
    assert np.abs(decode(content, None, 3).astype(int) - planes([[RED]])).max() <= 2


def test_pixels_of_no_stated_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no stated range"):
        decode(encoded(Image.fromarray(np.zeros((1, 1), dtype=np.float32)), "TIFF"), None, 1)


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
    assert look(encoded(image)).grey is grey
