import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unfog.data import loader as loader_module
from unfog.data.batch import Batch
from unfog.data.dataset import ArrayDataset, to_uint8
from unfog.data.loader import Prefetched, ShuffledBatches

COUNT = 7
# Each picture holds its own number in the left column and its label in the right one.
PIXELS = np.zeros((COUNT, 1, 2, 3), dtype=np.uint8)
PIXELS[..., 0] = 10 + np.arange(COUNT)[:, None, None]
PIXELS[..., 2] = 100 + np.arange(COUNT)[:, None, None] % 3
DATASET = ArrayDataset(PIXELS, np.arange(COUNT) % 3, raw=True)


def same(one: Batch, other: Batch) -> bool:
    return set(one.values) == set(other.values) and all(
        torch.equal(a, b)
        for a, b in zip(
            [*(one.values[name] for name in one.values), *one[1:]],
            [*(other.values[name] for name in one.values), *other[1:]],
            strict=True,
        )
    )


def joined(parts: list[Batch]) -> Batch:
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    return Batch(values, *(torch.cat([part[i] for part in parts]) for i in (1, 2, 3)))


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 40),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    flip=st.booleans(),
    shuffle=st.booleans(),
)
def test_any_split_of_a_range_gives_the_same_examples(start: int, sizes: list[int], flip: bool, shuffle: bool) -> None:
    batches = ShuffledBatches(DATASET, 3, flip=flip, shuffle=shuffle)
    starts = start + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parts = [batches.take(int(at), size) for at, size in zip(starts, sizes, strict=True)]
    assert same(joined(parts), batches.take(start, sum(sizes)))


def test_a_resumed_run_sees_the_rest_of_the_epoch() -> None:
    whole = ShuffledBatches(DATASET, 5, flip=True).take(0, 20)
    resumed = ShuffledBatches(DATASET, 5, flip=True).take(11, 9)
    assert same(resumed, Batch({name: v[11:] for name, v in whole.values.items()}, *(v[11:] for v in whole[1:])))


def test_pictures_labels_and_ids_belong_together() -> None:
    batch = ShuffledBatches(DATASET, 1).take(4, 30)
    levels = to_uint8(batch.values["x0"])
    assert (levels[:, 0, 0, 0] - 10).tolist() == batch.ids.tolist()
    assert (levels[:, 0, 0, 2] - 100).tolist() == batch.values["label"].tolist()


def test_each_epoch_shows_every_example_once() -> None:
    batch = ShuffledBatches(DATASET, 1).take(0, 3 * COUNT)
    for epoch in range(3):
        assert sorted(batch.ids[batch.epochs == epoch].tolist()) == list(range(COUNT))


def test_positions_count_from_the_start_of_the_run() -> None:
    assert ShuffledBatches(DATASET, 1).take(5, 4).positions.tolist() == [5, 6, 7, 8]


def test_another_seed_is_another_order() -> None:
    # Four epochs of 7 examples in the same order by chance: 1 in 5040**4.
    orders = {tuple(ShuffledBatches(DATASET, seed).take(0, 28).ids.tolist()) for seed in range(4)}
    assert len(orders) == 4


def test_a_flip_mirrors_left_to_right_or_does_nothing() -> None:
    plain = ShuffledBatches(DATASET, 2).take(0, 50).values["x0"]
    flipped = ShuffledBatches(DATASET, 2, flip=True).take(0, 50).values["x0"]
    mirrored = (flipped != plain).flatten(1).any(1)
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(-1))
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


def test_half_of_the_pictures_are_mirrored() -> None:
    # 2,000 fair coins: mean 1,000 and standard deviation 22; five of them are 112.
    left = ShuffledBatches(DATASET, 2, flip=True).take(0, 2000).values["x0"][:, 0, 0, 0]
    assert abs(int((to_uint8(left) >= 100).sum()) - 1000) < 112


def test_an_example_is_mirrored_anew_in_each_epoch() -> None:
    batch = ShuffledBatches(DATASET, 2, flip=True).take(0, 20 * COUNT)
    left = to_uint8(batch.values["x0"])[batch.ids == 0][:, 0, 0, 0]
    assert {bool(level >= 100) for level in left} == {True, False}


def test_both_forms_of_a_picture_are_mirrored_alike() -> None:
    values = ShuffledBatches(DATASET, 2, flip=True).take(0, 30).values
    assert torch.equal(to_uint8(values["x0"]), values["pixels"])


def test_only_the_chosen_fields_are_delivered() -> None:
    assert set(ShuffledBatches(DATASET, 0, fields=["label"]).take(0, 2).values) == {"label"}


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="its fields are x0, pixels, label"):
        ShuffledBatches(DATASET, 0, fields=["caption"])


def test_a_flip_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="flip=True"):
        ShuffledBatches(DATASET, 0, flip=True, fields=["label"])


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 0)])
def test_a_range_that_is_none_is_refused(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="start"):
        ShuffledBatches(DATASET, 0).take(start, count)


class Recorded:
    """Batches that remember who asked for what, and fail at one position."""

    def __init__(self, fails_at: int = -1) -> None:
        self.inner = ShuffledBatches(DATASET, 3)
        self.asked: list[tuple[int, int]] = []
        self.in_background: list[tuple[int, int]] = []
        self.fails_at = fails_at

    def take(self, start: int, count: int) -> Batch:
        here = self.asked if threading.current_thread() is threading.main_thread() else self.in_background
        here.append((start, count))
        if start == self.fails_at:
            raise OSError("the disk went away")
        return self.inner.take(start, count)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetched_batches_equal_direct_ones(depth: int) -> None:
    direct = ShuffledBatches(DATASET, 3, flip=True)
    with Prefetched(ShuffledBatches(DATASET, 3, flip=True), depth) as ahead:
        assert all(same(ahead.take(at, 4), direct.take(at, 4)) for at in range(0, 60, 4))


@settings(max_examples=20, deadline=None)
@given(asked=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=12))
def test_prefetched_batches_equal_direct_ones_whatever_is_asked(asked: list[tuple[int, int]]) -> None:
    direct = ShuffledBatches(DATASET, 3)
    with Prefetched(ShuffledBatches(DATASET, 3)) as ahead:
        assert all(same(ahead.take(*each), direct.take(*each)) for each in asked)


def test_the_next_batches_are_made_in_the_background() -> None:
    batches = Recorded()
    with Prefetched(batches) as ahead:
        for at in range(0, 12, 3):
            ahead.take(at, 3)
    assert batches.asked == [(0, 3)]
    assert batches.in_background[:3] == [(3, 3), (6, 3), (9, 3)]


def test_one_of_several_processes_passes_over_the_parts_of_the_others() -> None:
    batches = Recorded()
    with Prefetched(batches, stride=8) as ahead:
        for at in range(2, 26, 8):
            ahead.take(at, 3)
    assert batches.asked == [(2, 3)]
    assert batches.in_background[:2] == [(10, 3), (18, 3)]


def test_a_wrong_guess_is_made_good_on_the_spot() -> None:
    batches = Recorded()
    with Prefetched(batches) as ahead:
        ahead.take(0, 3)
        ahead.take(50, 3)
    assert batches.asked == [(0, 3), (50, 3)]


def test_an_error_in_the_background_reaches_the_take_that_asks_for_it() -> None:
    with Prefetched(Recorded(fails_at=6)) as ahead:
        ahead.take(0, 3)
        ahead.take(3, 3)
        with pytest.raises(OSError, match="went away"):
            ahead.take(6, 3)


def test_an_error_that_nobody_asks_for_is_not_raised() -> None:
    with Prefetched(Recorded(fails_at=6)) as ahead:
        ahead.take(0, 3)
        ahead.take(3, 3)
        assert ahead.take(9, 3).positions.tolist() == [9, 10, 11]


def test_after_an_error_the_batches_go_on() -> None:
    batches = Recorded(fails_at=3)
    with Prefetched(batches) as ahead:
        ahead.take(0, 3)
        with pytest.raises(OSError, match="went away"):
            ahead.take(3, 3)
        batches.fails_at = -1
        assert same(ahead.take(3, 3), batches.inner.take(3, 3))


def test_closing_ends_the_thread() -> None:
    before = set(threading.enumerate())
    ahead = Prefetched(Recorded())
    ahead.take(0, 3)
    started = set(threading.enumerate()) - before
    ahead.close()
    assert started
    assert not any(thread.is_alive() for thread in started)


def test_closing_twice_does_no_harm() -> None:
    ahead = Prefetched(Recorded())
    ahead.close()
    ahead.close()


def test_closed_batches_are_refused() -> None:
    ahead = Prefetched(Recorded())
    ahead.close()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.take(0, 1)


def test_the_seconds_of_waiting_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loader_module.time, "perf_counter", lambda: clock[0])

    class Slow(Recorded):
        def take(self, start: int, count: int) -> Batch:
            if threading.current_thread() is threading.main_thread():
                clock[0] += 3.0
            return super().take(start, count)

    with Prefetched(Slow()) as ahead:
        ahead.take(0, 2)
        assert ahead.waited == 3.0


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        Prefetched(Recorded(), 0)
