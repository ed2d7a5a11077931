from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data.dataset import ArrayDataset
from unfog.data.sources import DataSpec, open_dataset

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def pixels(dataset: ArrayDataset) -> np.ndarray:
    values = dataset.gather(np.arange(len(dataset)))["x0"]
    return ((values + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x0", "label"), ("data", "y"), ("x", "y")])
def test_an_archive_is_read_by_its_keys(tmp_path: Path, images: str, labels: str) -> None:
    np.savez(tmp_path / "a.npz", **{images: PIXELS, labels: LABELS})
    dataset = open_dataset(DataSpec(str(tmp_path / "a.npz")))
    assert np.array_equal(pixels(dataset), PIXELS)
    assert dataset.gather(np.arange(6))["label"].tolist() == LABELS.tolist()


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_channels_may_come_second_or_last(tmp_path: Path, axes: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", PIXELS.transpose(axes))
    assert np.array_equal(pixels(open_dataset(DataSpec(str(tmp_path / "a.npy")))), PIXELS)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 1, 4, 5), (6, 4, 5, 1)])
def test_grey_pictures_need_no_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", PIXELS[:, 0].reshape(shape))
    assert np.array_equal(pixels(open_dataset(DataSpec(str(tmp_path / "a.npy")))), PIXELS[:, :1])


@pytest.mark.parametrize("shape", [(6, 3, 4, 3), (6, 5, 5, 5), (6, 4, 4, 2, 2), (6, 4), (0, 4, 5)])
def test_shapes_that_are_not_clear_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="shape"):
        open_dataset(DataSpec(str(tmp_path / "a.npy")))


@pytest.mark.parametrize("bands", [2, 4, 7])
@pytest.mark.parametrize("last", [False, True])
def test_arrays_have_any_number_of_channels(tmp_path: Path, bands: int, last: bool) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3, bands, 8, 9), dtype=np.uint8)
    np.save(tmp_path / "a.npy", levels.transpose(0, 2, 3, 1) if last else levels)
    assert np.array_equal(pixels(open_dataset(DataSpec(str(tmp_path / "a.npy")))), levels)


def test_the_channels_asked_for_tell_the_axes_apart(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3, 8, 5, 6), dtype=np.uint8)
    np.save(tmp_path / "a.npy", levels)
    assert np.array_equal(pixels(open_dataset(DataSpec(str(tmp_path / "a.npy"), channels=8))), levels)


def test_no_band_of_an_array_is_taken_for_transparency(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 8, 8), dtype=np.uint8))
    assert pixels(open_dataset(DataSpec(str(tmp_path / "a.npy"), background="red", size=4))).max() == 0


def test_each_band_is_resized_by_itself(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (1, 4, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", levels)
    np.save(tmp_path / "b.npy", levels[:, 2])
    whole, band = (pixels(open_dataset(DataSpec(str(tmp_path / name), size=3))) for name in ("a.npy", "b.npy"))
    assert np.array_equal(whole[:, 2], band[:, 0])


def test_bands_cannot_become_another_number_of_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="4 channels, which cannot become 3"):
        open_dataset(DataSpec(str(tmp_path / "a.npy"), channels=3))


def test_colour_becomes_grey_by_its_luma(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((1, 8, 8, 3), [255, 0, 0], dtype=np.uint8))
    # ITU-R 601: 0.299 of full red is 76.2.
    assert (pixels(open_dataset(DataSpec(str(tmp_path / "a.npy"), channels=1))) == 76).all()


def test_the_splits_of_an_archive_go_by_its_keys(tmp_path: Path) -> None:
    halves = {"x_train": PIXELS[:4], "y_train": LABELS[:4, None], "x_test": PIXELS[4:], "y_test": np.zeros(2, int)}
    np.savez(tmp_path / "a.npz", **halves)
    dataset = open_dataset(DataSpec(str(tmp_path / "a.npz"), "test"))
    assert np.array_equal(pixels(dataset), PIXELS[4:])
    assert dataset.info.classes == ("0", "1", "2")


def test_the_splits_of_a_folder_go_by_its_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=PIXELS[:4])
    np.savez(tmp_path / "test.npz", images=PIXELS[4:])
    assert np.array_equal(pixels(open_dataset(DataSpec(str(tmp_path), "test"))), PIXELS[4:])


def test_a_folder_of_single_arrays_is_read_by_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "train_images.npy", PIXELS)
    np.save(tmp_path / "train_labels.npy", LABELS)
    dataset = open_dataset(DataSpec(str(tmp_path)))
    assert dataset.gather(np.arange(6))["label"].tolist() == LABELS.tolist()


def test_classes_are_named_by_the_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS, classes=np.array(["a", "b", "c"]))
    assert open_dataset(DataSpec(str(tmp_path / "a.npz"))).info.classes == ("a", "b", "c")


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16])
def test_other_numbers_than_uint8_are_refused(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", PIXELS.astype(dtype))
    with pytest.raises(ValueError, match=r"value_range=\(-1, 1\)"):
        open_dataset(DataSpec(str(tmp_path / "a.npy")))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_numbers_of_a_stated_range_are_read(tmp_path: Path, value_range: tuple[float, float]) -> None:
    low, high = value_range
    np.save(tmp_path / "a.npy", (PIXELS / 255 * (high - low) + low).astype(np.float32))
    # float32 may exceed the range by half a unit in the last place.
    dataset = open_dataset(DataSpec(str(tmp_path / "a.npy"), value_range=value_range))
    assert np.array_equal(pixels(dataset), PIXELS)


@pytest.mark.parametrize("worst", [1.5, -0.1, np.nan])
def test_numbers_outside_the_stated_range_are_refused(tmp_path: Path, worst: float) -> None:
    values = np.full((2, 4, 5), 0.5)
    values[1, 2, 3] = worst
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match="outside of value_range") as caught:
        open_dataset(DataSpec(str(tmp_path / "a.npy"), value_range=(0.0, 1.0), max_bad=1.0))
    reach = sorted(value for value in (0.5, worst) if not np.isnan(value))
    assert f"reach from {reach[0]} to {reach[-1]}" in str(caught.value)
    assert f"{worst} at (1, 2, 3)" in str(caught.value)


def test_an_archive_without_pictures_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", atoms=LABELS)
    with pytest.raises(ValueError, match="found: atoms"):
        open_dataset(DataSpec(str(tmp_path / "a.npz")))


def test_two_arrays_of_pictures_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, x0=PIXELS)
    with pytest.raises(ValueError, match="several arrays of images"):
        open_dataset(DataSpec(str(tmp_path / "a.npz")))


def test_labels_below_zero_are_refused_with_the_one_that_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS - 1)
    with pytest.raises(ValueError, match=r"labels of .*a\.npz.* must be 0, 1, 2 and so on, but one is -1"):
        open_dataset(DataSpec(str(tmp_path / "a.npz"), holdout=0.5))


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.eye(6))
    with pytest.raises(ValueError, match="whole numbers"):
        open_dataset(DataSpec(str(tmp_path / "a.npz")))


def test_an_archive_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        open_dataset(DataSpec(str(tmp_path / "a.npz")))


def test_arrays_are_resized_like_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 9, 7), 50, dtype=np.uint8))
    dataset = open_dataset(DataSpec(str(tmp_path / "a.npy"), size=3, channels=3))
    assert np.array_equal(pixels(dataset), np.full((2, 3, 3, 3), 50))


def test_the_fingerprint_is_that_of_the_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    assert (
        open_dataset(DataSpec(str(tmp_path / "a.npz"))).info.fingerprint
        == ArrayDataset(PIXELS, LABELS).info.fingerprint
    )


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"no array"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        open_dataset(DataSpec(str(tmp_path / name)))
