import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data.dataset import ArrayDataset, Report, Skipped, printable, to_float, to_uint8

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_all_levels_survive_the_way_to_float_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)


def test_levels_are_mapped_by_the_stated_formula() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(levels), levels.float() / 127.5 - 1)


def test_black_and_white_are_the_ends_of_the_range() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_values_outside_the_range_are_clipped() -> None:
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_only_uint8_becomes_float() -> None:
    with pytest.raises(TypeError, match="uint8"):
        to_float(torch.zeros(3))


def test_only_floats_become_uint8() -> None:
    with pytest.raises(TypeError, match="floating"):
        to_uint8(torch.zeros(3, dtype=torch.int64))


def test_gathered_pictures_and_labels_belong_together() -> None:
    values = ArrayDataset(PIXELS, LABELS).gather(np.array([4, 0, 4]))
    assert torch.equal(to_uint8(values["x0"]), torch.from_numpy(PIXELS[[4, 0, 4]]))
    assert values["label"].tolist() == [1, 0, 1]


def test_what_is_gathered_has_the_declared_fields() -> None:
    dataset = ArrayDataset(PIXELS, LABELS, raw=True)
    values = dataset.gather(np.arange(2))
    assert {name: (tuple(v.shape[1:]), v.dtype) for name, v in values.items()} == dict(dataset.info.fields)


def test_raw_pixels_are_the_stored_ones() -> None:
    values = ArrayDataset(PIXELS, raw=True).gather(np.arange(6))
    assert torch.equal(values["pixels"], torch.from_numpy(PIXELS))


def test_ids_may_be_a_tensor() -> None:
    dataset = ArrayDataset(PIXELS, LABELS)
    assert torch.equal(dataset.gather(torch.tensor([2]))["x0"], dataset.gather(np.array([2]))["x0"])


def test_a_set_without_labels_has_neither_classes_nor_labels() -> None:
    dataset = ArrayDataset(PIXELS)
    assert dataset.info.classes is None
    assert set(dataset.gather(np.arange(1))) == {"x0"}


def test_changing_a_batch_leaves_the_set_alone() -> None:
    dataset = ArrayDataset(PIXELS.copy(), LABELS, raw=True)
    dataset.gather(np.arange(1))["pixels"].zero_()
    assert torch.equal(dataset.gather(np.arange(1))["pixels"], torch.from_numpy(PIXELS[:1]))


def test_the_size_and_channels_are_those_of_the_pictures() -> None:
    info = ArrayDataset(PIXELS).info
    assert (info.channels, info.size) == (3, (4, 5))


@pytest.mark.parametrize("ids", [[-1], [6], [[0]]])
def test_ids_outside_the_set_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 5"):
        ArrayDataset(PIXELS).gather(np.array(ids))


def test_the_fingerprint_does_not_depend_on_the_name() -> None:
    one, other = ArrayDataset(PIXELS, LABELS, name="a"), ArrayDataset(PIXELS, LABELS, name="b", raw=True)
    assert one.info.fingerprint == other.info.fingerprint


def test_the_fingerprint_changes_with_a_pixel_the_labels_the_classes_and_the_shape() -> None:
    changed = PIXELS.copy()
    changed[3, 1, 2, 2] ^= 1
    sets = [
        ArrayDataset(PIXELS, LABELS),
        ArrayDataset(changed, LABELS),
        ArrayDataset(PIXELS, LABELS[::-1]),
        ArrayDataset(PIXELS, LABELS, classes=("a", "b", "c")),
        ArrayDataset(PIXELS),
        ArrayDataset(PIXELS.reshape(6, 3, 5, 4), LABELS),
    ]
    assert len({dataset.info.fingerprint for dataset in sets}) == len(sets)


def test_classes_are_named_by_their_numbers_where_names_are_left_out() -> None:
    assert ArrayDataset(PIXELS, LABELS).info.classes == ("0", "1", "2")


def test_a_label_without_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        ArrayDataset(PIXELS, LABELS, classes=("a", "b"))


def test_labels_of_another_number_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each picture"):
        ArrayDataset(PIXELS, LABELS[:5])


def test_classes_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        ArrayDataset(PIXELS, classes=("a",))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        ArrayDataset(PIXELS.astype(np.float32))  # type: ignore[arg-type]


def test_a_report_names_what_was_left_out() -> None:
    text = str(Report(3, (Skipped("a.png", "truncated"),)))
    assert "1 of 3" in text
    assert "a.png: truncated" in text


def test_captions_go_by_the_number_of_the_example() -> None:
    dataset = ArrayDataset(PIXELS, captions=["a", "b", None, "", "e", "f"])
    assert dataset.captions(np.array([4, 2, 3])) == ["e", None, ""]
    assert dataset.info.captioned == 5


def test_a_set_without_captions_has_none_for_each_example() -> None:
    dataset = ArrayDataset(PIXELS)
    assert dataset.captions(torch.tensor([0, 1])) == [None, None]
    assert dataset.info.captioned == 0


def test_captions_of_another_number_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 6 captions"):
        ArrayDataset(PIXELS, captions=["a"])


def test_the_fingerprint_changes_with_a_caption() -> None:
    sets = [ArrayDataset(PIXELS, captions=[text] * 6).info.fingerprint for text in ("a", "b")]
    assert len({*sets, ArrayDataset(PIXELS).info.fingerprint}) == 3


def test_a_mapped_set_is_pickled_without_its_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.tile(PIXELS, (200, 1, 1, 1)))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    packed = pickle.dumps(ArrayDataset(mapped))
    assert len(packed) < 2000 < mapped.nbytes
    assert torch.equal(
        pickle.loads(packed).gather(np.array([7]))["x0"], ArrayDataset(mapped).gather(np.array([7]))["x0"]
    )


def test_a_part_of_a_mapped_array_is_pickled_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    part = ArrayDataset(np.load(tmp_path / "a.npy", mmap_mode="r")[2:])
    again = pickle.loads(pickle.dumps(part))
    assert torch.equal(again.gather(np.arange(4))["x0"], part.gather(np.arange(4))["x0"])


def test_names_are_shown_without_line_breaks_and_broken_text() -> None:
    assert printable("a\nb\udcff\x1b ü日.png") == "a\\nb\\xff\\x1b ü日.png"


def test_a_report_tells_the_share_of_bad_pictures() -> None:
    assert Report(4, (Skipped("a", ""),)).share == 0.25
