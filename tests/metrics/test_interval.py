import math

import pytest
import torch

from unfog.metrics.interval import Score, bootstrap, mean, proportion, wilson_interval


def test_the_wilson_interval_of_half_of_a_hundred_is_the_known_one():
    # z = 1.959964: centre 1/2, radius z sqrt(1/400 + z^2/40000) / (1 + z^2/100) = 0.096172.
    assert wilson_interval(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)


def test_the_wilson_interval_of_no_success_is_z_squared_over_n_plus_z_squared():
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10) == pytest.approx((0.0, z2 / (10 + z2)), abs=1e-12)


def test_the_ends_of_the_wilson_interval_solve_the_score_equation():
    z, n, share = 1.959963984540054, 37, 11 / 37
    for end in wilson_interval(11, 37):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-12)


def test_swapping_success_and_failure_mirrors_the_wilson_interval():
    low, high = wilson_interval(3, 17)
    assert wilson_interval(14, 17) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_a_proportion_says_which_interval_it_has():
    score = proportion(9, 10, note="hits")
    assert score.value == 0.9
    assert score.note == "hits; 95% Wilson interval"


@pytest.mark.parametrize(("successes", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes, count):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, count)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        wilson_interval(1, 2, level=level)


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Score(float("nan"), 0.0, 1.0, 3)


def test_a_score_turns_into_plain_values():
    assert Score(1.0, 0.5, 2.0, 3, "n").to_dict() == {
        "value": 1.0,
        "low": 0.5,
        "high": 2.0,
        "count": 3,
        "note": "n",
    }


def test_the_interval_of_a_mean_is_z_standard_errors_wide():
    score = mean(torch.tensor([1.0, 3.0]))
    assert (score.low, score.high) == pytest.approx((2 - 1.959964, 2 + 1.959964), abs=1e-5)


def test_the_bootstrap_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(100):
        data = torch.randn(60, generator=generator)
        score = bootstrap(lambda i, data=data: float(data[i[0]].mean()), [60], seed=trial, resamples=200)
        hits += score.low <= 0 <= score.high
    # 95 % nominal; with 60 examples the percentile interval is about 1 % short, and 100 trials have a spread
    # of 2.2 %.
    assert 86 <= hits <= 100


def test_the_bootstrap_value_is_the_statistic_of_the_data_themselves():
    data = torch.tensor([1.0, 2.0, 6.0])
    assert bootstrap(lambda i: float(data[i[0]].mean()), [3], seed=0).value == 3.0


def test_the_bootstrap_depends_on_its_seed_alone():
    data = torch.arange(30.0)

    def score(seed):
        return bootstrap(lambda i: float(data[i[0]].mean()), [30], seed=seed, resamples=50)

    assert score(1) == score(1)
    assert score(1) != score(2)


def test_a_recentred_bootstrap_interval_holds_the_value_of_a_biased_statistic():
    data = torch.arange(40.0)

    def duplicates(i):
        return 1 - len(data[i[0]].unique()) / 40

    plain = bootstrap(duplicates, [40], seed=0)
    assert not plain.low <= plain.value <= plain.high
    shifted = bootstrap(duplicates, [40], seed=0, recentre=True)
    assert shifted.low <= shifted.value <= shifted.high


def test_sets_are_resampled_independently():
    a, b = torch.arange(20.0), torch.arange(20.0)
    paired = bootstrap(lambda i: float(a[i[0]].mean() - b[i[1]].mean()), [20, 20], seed=0)
    assert paired.low < 0 < paired.high
