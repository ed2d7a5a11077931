import pytest
import torch

from unfog.metrics import shares
from unfog.metrics.interval import Score, proportion


def drawn(weights, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, True, generator=generator)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        a, b = (int((drawn([p, 1 - p], 300, 2 * seed + k) == 0).sum()) for k, p in enumerate((0.2, 0.1)))
        found = shares.ratio(proportion(a, 300), proportion(b, 300))
        covered += found.low <= 2.0 <= found.high
    # 95 % of 400 with a standard error of 1.1 %; the interval is known to be a little wide.
    assert 0.92 <= covered / 400 <= 0.99


def test_a_value_that_no_sample_has_has_a_ratio_between_zero_and_something():
    found = shares.ratio(proportion(0, 200), proportion(20, 200))
    assert found.value == found.low == 0
    # Zero of 200 leaves up to 1.9 %, over a tenth.
    assert 0.1 < found.high < 0.35


def test_a_ratio_over_next_to_nothing_is_refused():
    with pytest.raises(ValueError, match="known to be above 0"):
        shares.ratio(proportion(5, 10), Score(0.1, 0.0, 0.3, 10))


def test_the_same_shares_are_told_apart_as_often_as_chance_has_it():
    sets = [(drawn([1, 2, 3], 80, k), drawn([1, 2, 3], 60, 1000 + k)) for k in range(60)]
    found = [shares.compared(*both, 3, seed=k, resamples=49) for k, both in enumerate(sets)]
    below = sum(one.p_value <= 0.2 for one in found) / 60
    # 20 % of 60 with a standard error of 5 %.
    assert 0.05 <= below <= 0.36


def test_other_shares_are_told_apart():
    found = shares.compared(drawn([3, 2, 1], 300), drawn([1, 2, 3], 300, 1), 3, seed=0, resamples=200)
    assert found.p_value == pytest.approx(1 / 201)
    assert found.expected_variation < 0.1


def test_total_variation_is_the_share_that_would_have_to_be_moved():
    a, b = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    found = shares.total_variation(a, b, 2, seed=0)
    assert found.value == pytest.approx(0.5)
    assert 0 <= found.low <= 0.5 <= found.high <= 1


def test_amplification_is_the_gain_of_what_is_common():
    data, samples = torch.tensor([0] * 70 + [1] * 30), torch.tensor([0] * 90 + [1] * 10)
    assert shares.amplification(samples, data, 2, seed=0).value == pytest.approx(0.2)
    assert shares.amplification(torch.tensor([0, 1]), data, 2, seed=0).value == pytest.approx(-0.2)


def test_even_data_can_not_be_amplified():
    assert shares.amplification(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1]), 2, seed=0).value == 0


def test_shares_behind_a_confusion_are_found():
    # A classifier that is right in 80 % and names the next class otherwise.
    truth = drawn([1, 1, 1], 6000)
    wrong = drawn([0.8, 0.2], 6000, 1)
    hidden = drawn([0.6, 0.3, 0.1], 6000, 2)
    told = (hidden + drawn([0.8, 0.2], 6000, 3)) % 3
    found = shares.behind_confusion(told, truth, (truth + wrong) % 3, 3)
    as_read = shares.counts_of(told, 3) / 6000
    expected = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    # Standard errors of the shares are about 0.01.
    assert torch.allclose(found, expected, atol=0.03)
    assert (as_read - expected).abs().max() > 0.05
    assert float(found.sum()) == pytest.approx(1)


def test_a_perfect_reader_needs_no_correction():
    truth = drawn([1, 1], 4000)
    told = torch.tensor([0] * 30 + [1] * 70)
    # Half a made-up example among 2,000 of each class.
    assert shares.behind_confusion(told, truth, truth, 2).tolist() == pytest.approx([0.3, 0.7], abs=1e-3)


def test_adjusted_p_values_are_holms():
    assert shares.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert shares.holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("values", [torch.tensor([], dtype=torch.int64), torch.tensor([3]), torch.tensor([-1])])
def test_values_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="from 0 to 2"):
        shares.counts_of(values, 3)
