import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfog.data.order import Order, permutation


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_the_order_is_a_permutation_each_epoch(count: int, seed: int, epoch: int) -> None:
    ids = Order(count, seed).ids(np.arange(epoch * count, (epoch + 1) * count))
    assert sorted(ids) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    # Of the 1000! orders two agree by chance with probability 0 for all purposes.
    orders = {tuple(permutation(1000, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_order_does_not_depend_on_what_was_asked_before() -> None:
    used = Order(7, 5)
    used.ids(np.arange(100))
    assert np.array_equal(used.ids([3, 20]), Order(7, 5).ids([3, 20]))


@settings(max_examples=30, deadline=None)
@given(positions=st.lists(st.integers(0, 60), max_size=20))
def test_positions_in_any_order_and_several_epochs_are_looked_up_one_by_one(positions: list[int]) -> None:
    order = Order(6, 1)
    assert list(order.ids(positions)) == [int(order.ids(p)) for p in positions]


def test_an_order_without_shuffling_counts_through_the_set() -> None:
    assert list(Order(3, 9, shuffle=False).ids(range(7))) == [0, 1, 2, 0, 1, 2, 0]


def test_epochs_count_the_passes_through_the_set() -> None:
    assert list(Order(3, 0).epochs([0, 2, 3, 8])) == [0, 0, 1, 2]


def test_every_place_of_the_order_is_equally_likely() -> None:
    # 2,000 epochs of 5 examples: a count has mean 400 and standard deviation 18, and five of them lie above 300.
    counts = np.zeros((5, 5), dtype=int)
    for epoch in range(2000):
        counts[np.arange(5), permutation(5, 3, epoch)] += 1
    assert counts.min() > 300


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    # A recorded number on purpose: runs are resumed elsewhere, so this order must never change.
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Order(0, 0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        Order(3, -1)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="start of the run"):
        Order(3, 0).ids([-1])


def test_positions_that_are_not_whole_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        Order(3, 0).ids([0.5])
