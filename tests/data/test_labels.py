import numpy as np
import pytest

from unfog.data.labels import number_labels


def test_text_is_numbered_alike_in_every_split() -> None:
    labels = {"train": ["dog", "cat"], "test": ["emu", "cat"]}
    for split, numbers in (("train", [1, 0]), ("test", [2, 0])):
        found, classes = number_labels(split, labels, None, "set")
        assert found is not None
        assert (found.tolist(), classes) == (numbers, ("cat", "dog", "emu"))


def test_numbers_keep_their_value_and_are_named_by_their_digits() -> None:
    found, classes = number_labels("test", {"train": [0, 3], "test": [1]}, None, "set")
    assert (found, classes) == (np.array([1]), ("0", "1", "2", "3"))


@pytest.mark.parametrize("labels", [[0, None], [0, "a"], [0, 1.0], [0, True], [0, -1], [0, 2]])
def test_labels_that_mean_nothing_are_refused(labels: list[object]) -> None:
    with pytest.raises(ValueError, match="label"):
        number_labels(None, {None: labels}, ("a", "b"), "set")
