import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfog.data.split import Choice, by_split, canonical, choose, hashed, held_out, limited, split_of

LABELS = st.lists(st.integers(0, 3), min_size=10, max_size=60).map(lambda given: np.array(given, dtype=np.int64))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("train-00000-of-00002", "train"),
        ("cifar10_TEST", "test"),
        ("val", "valid"),
        ("validation.part", "valid"),
        ("trainer", None),
        ("latest", None),
    ],
)
def test_a_file_name_tells_of_its_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_spellings_of_a_split_are_one() -> None:
    assert {canonical(name) for name in ("val", "valid", "Validation", "dev")} == {"valid"}


def test_files_without_a_split_in_their_names_are_one_set() -> None:
    assert by_split([("0000", 0), ("0001", 1)]) == {None: [0, 1]}


def test_files_are_grouped_by_the_split_in_their_names() -> None:
    names = ["train-00000-of-00002", "train-00001-of-00002", "test", "extra-00000-of-00001"]
    assert by_split([(name, name) for name in names]) == {"train": names[:2], "test": [names[2]], "extra": [names[3]]}


@pytest.mark.parametrize(
    ("available", "split", "holdout", "choice"),
    [
        (["train", "test"], "test", None, Choice("test", None)),
        (["train", "valid"], "validation", None, Choice("valid", None)),
        (["train", "valid"], "validation", 0.1, Choice("valid", None)),
        ([None], "train", None, Choice(None, None)),
        ([None], "train", 0.1, Choice(None, False)),
        ([None], "test", 0.1, Choice(None, True)),
        (["train"], "test", 0.1, Choice("train", True)),
        (["extra", "train"], "extra", None, Choice("extra", None)),
    ],
)
def test_a_split_is_found(available: list[str | None], split: str, holdout: float | None, choice: Choice) -> None:
    assert choose(available, split, holdout, "set") == choice


@pytest.mark.parametrize(
    ("available", "split", "holdout", "message"),
    [
        ([None], "test", None, "holdout=0.1"),
        (["train"], "test", None, "holdout=0.1"),
        (["test"], "train", None, "splits found: 'test'"),
        (["train", "test"], "train", 0.1, "leave holdout out"),
        ([None], "valid", 0.1, "undivided"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    available: list[str | None], split: str, holdout: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(available, split, holdout, "set")


def test_hashes_are_those_of_splitmix64() -> None:
    # The first outputs of the published generator for seed 0.
    assert [hex(key) for key in hashed(np.arange(2, dtype=np.int64))] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, share=st.floats(0.2, 0.8))
def test_the_test_part_has_its_share_of_every_class(labels: np.ndarray, share: float) -> None:
    test = held_out(len(labels), labels, share)
    for label in np.unique(labels):
        # Rounded to a whole number of examples.
        assert abs(test[labels == label].sum() - share * (labels == label).sum()) <= 0.5


def test_an_unlabelled_set_is_divided_as_one_class() -> None:
    assert held_out(1000, None, 0.25).sum() == 250


def test_the_test_part_is_not_a_stretch_of_the_set() -> None:
    # 500 of 1,000 chosen fairly: the first half holds 250 of them, give or take a standard deviation of 8.
    assert 200 < held_out(1000, None, 0.5)[:500].sum() < 300


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        held_out(1, None, 0.5)


@pytest.mark.parametrize(
    ("count", "labels", "share", "test"),
    [(2, None, 0.1, 1), (4, None, 0.1, 1), (3, None, 0.99, 2), (20, np.arange(20) % 10, 0.1, 2)],
)
def test_a_small_set_has_both_parts(count: int, labels: np.ndarray | None, share: float, test: int) -> None:
    assert held_out(count, labels, share).sum() == test


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, limit=st.integers(1, 80))
def test_a_limit_chooses_so_many_of_the_examples(labels: np.ndarray, limit: int) -> None:
    chosen = limited(np.arange(len(labels)), labels, limit)
    assert len(set(chosen)) == min(limit, len(labels))
    assert list(chosen) == sorted(chosen)


@pytest.mark.parametrize("labels", [np.repeat(np.arange(10), 50), np.tile(np.arange(10), 50)])
def test_a_limit_keeps_the_classes_in_proportion(labels: np.ndarray) -> None:
    chosen = limited(np.arange(500), labels, 50)
    assert np.bincount(labels[chosen]).tolist() == [5] * 10


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, limits=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_a_smaller_limit_chooses_from_a_larger_one(labels: np.ndarray, limits: tuple[int, int]) -> None:
    small, large = (set(limited(np.arange(len(labels)), labels, limit)) for limit in sorted(limits))
    assert small <= large


def test_without_a_limit_everything_is_chosen() -> None:
    assert list(limited(np.arange(4), None, None)) == [0, 1, 2, 3]
