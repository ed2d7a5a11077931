from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data.dataset import to_uint8
from unfog.images import read_png_text, tile, write_array, write_png


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_and_text_survive_being_written(tmp_path: Path, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    text = {"unfog": '{"seed": 3}', "Title": "Nebel über dem Fluß – 霧"}
    write_png(tmp_path / "deep" / "a.png", image, text)
    with Image.open(tmp_path / "deep" / "a.png") as read:
        pixels = np.atleast_3d(np.asarray(read))
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert read_png_text(tmp_path / "deep" / "a.png") == text


def test_an_array_and_its_record_stand_beside_each_other(tmp_path: Path) -> None:
    image = torch.linspace(-1.2, 1.2, 5 * 3 * 7).reshape(5, 3, 7)
    write_array(tmp_path / "deep" / "a.npy", image, '{"seed": "霧"}')
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.json", "a.npy"]
    read = np.load(tmp_path / "deep" / "a.npy", allow_pickle=False)
    assert read.dtype == np.uint8
    assert np.array_equal(read, to_uint8(image).numpy())
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == '{"seed": "霧"}'


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        write_array(tmp_path / "a.npy", torch.zeros(2, 5, 4, 4), "")
    assert list(tmp_path.iterdir()) == []


def test_floats_are_rounded_as_data_sets_hold_them(tmp_path: Path) -> None:
    image = torch.linspace(-1.2, 1.2, 64).reshape(1, 8, 8)
    write_png(tmp_path / "a.png", image, {})
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read), to_uint8(image)[0].numpy())


def test_no_other_files_are_left_beside_a_written_one(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", torch.zeros(1, 2, 2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_is_no_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no PNG file"):
        read_png_text(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(2, 4, 4), (5, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_an_image_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        write_png(tmp_path / "a.png", torch.zeros(shape), {})


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (6, 2, 3)])
def test_every_image_stands_once_in_a_grid_in_order(count: int, columns: int, rows: int) -> None:
    images = torch.arange(count).reshape(count, 1, 1, 1).expand(-1, 1, 3, 5) / 127.5 - 1.0
    sheet = tile(images, columns)
    assert sheet.shape[1] == rows * 5 - 2
    seen = [value for row in sheet[0, ::5, ::7].tolist() for value in row]
    assert seen == [*range(count), *[255] * (len(seen) - count)]
