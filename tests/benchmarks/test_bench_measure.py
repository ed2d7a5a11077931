import random

import pytest
from benchmarks.bench.measure import Comparison, Median, Share, Unit, Verdict, alternate, median, per, verdict


@pytest.mark.parametrize(
    ("count", "low", "high", "level"),
    # 1 - 2 P(fewer than k of n coins): 1 - 2/32, 1 - 2/64, 1 - 2 (1 + 8) / 256, and the book's case of n = 20.
    [(5, 0, 4, 0.9375), (6, 0, 5, 0.96875), (8, 0, 7, 0.9921875), (9, 1, 7, 0.9609375), (20, 5, 14, 0.9586105)],
)
def test_the_interval_of_a_median_is_made_of_order_statistics(count: int, low: int, high: int, level: float) -> None:
    values = [float(k) for k in range(count)]
    random.Random(0).shuffle(values)
    found = median(values)
    assert (found.value, found.low, found.high, found.count) == ((count - 1) / 2, low, high, count)
    assert found.level == pytest.approx(level, abs=1e-7)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(1)
    trials = [median([generator.expovariate(1.0) for _ in range(9)]) for _ in range(4000)]
    held = sum(found.low <= 0.6931471805599453 <= found.high for found in trials) / len(trials)
    # 0.961 +- 4 standard errors of 4000 trials, sqrt(0.961 * 0.039 / 4000) = 0.0031.
    assert held == pytest.approx(trials[0].level, abs=0.0123)


def test_one_value_has_no_interval() -> None:
    assert median([3.0]) == Median(3.0, 3.0, 3.0, 0.0, 1)


def test_no_value_has_no_median() -> None:
    with pytest.raises(ValueError, match="expected at least one value"):
        median([])


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (1.1, 1.2, 1.3, Verdict.REACHED),
        (0.9, 1.1, 1.2, Verdict.BY_MEDIAN),
        (0.8, 0.9, 1.1, Verdict.OPEN),
        (0.7, 0.8, 0.9, Verdict.MISSED),
    ],
)
def test_a_goal_is_reached_only_where_the_whole_interval_lies_above_it(
    low: float, value: float, high: float, expected: Verdict
) -> None:
    assert verdict(Median(value, low, high, 0.97, 6), 1.0) is expected


def test_a_machine_that_slows_down_does_not_change_a_gain() -> None:
    drift = [1.0, 1.3, 1.9, 2.0, 5.0, 0.7]
    row = Comparison("", "", "", Unit.SECONDS, tuple(2.0 * d for d in drift), tuple(3.0 * d for d in drift))
    assert row.gain == Median(1.5, pytest.approx(1.5), pytest.approx(1.5), 0.96875, 6)


def test_a_share_is_taken_of_the_machine_in_the_same_repeat() -> None:
    assert Share("", (50.0, 100.0), (100.0, 200.0)).share.value == pytest.approx(0.5)


def test_contenders_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    seconds = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abc" * 4
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 3)
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_a_cost_is_shared_out() -> None:
    assert per((6.0, 9.0), 3) == (2.0, 3.0)
