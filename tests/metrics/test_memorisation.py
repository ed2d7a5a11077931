import pytest
import torch

from unfog.metrics.memorisation import (
    calibrated,
    false_discovery_rates,
    feature_likeness,
    p_values,
    picture_likeness,
    thumbnails,
)


def pictures(count, side=8, channels=1, seed=0):
    """Noise of a few pixels' extent, so that shifted ones resemble each other as pictures do."""
    coarse = torch.rand(count, channels, side // 2, side // 2, generator=torch.Generator().manual_seed(seed))
    return (255 * torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")).to(torch.uint8)


def uniform(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("side", [8, 20, 48])
def test_a_copy_is_traced_whatever_small_change_it_went_through(side):
    training = pictures(60, side)
    source = training[7:8].float()
    moved = source.roll(1, -1)  # its border is another one, as that of a shifted picture is
    changed = torch.cat([source, source.flip(-1), moved, 0.7 * source + 20]).round().to(torch.uint8)
    found = picture_likeness(changed, training, neighbours=10)
    assert found.indices.tolist() == [7] * 4
    # Rounding to whole grey levels is all that is left where the change is undone exactly; at 48 pixels a shift by one
    # is a part of a pixel of what is compared.
    assert found.ratios.max() < (0.05 if side < 40 else 0.35)


def test_new_pictures_have_ratios_near_those_of_other_new_ones():
    training = pictures(200)
    a, b = (picture_likeness(pictures(100, seed=seed), training).ratios for seed in (1, 2))
    # Standard errors of medians of 100 ratios, which scatter by 0.1, are about 0.0125.
    assert a.median() == pytest.approx(float(b.median()), abs=0.05)
    assert a.min() > 0.2


def test_the_result_does_not_depend_on_how_samples_are_put_together():
    training, samples = pictures(40), pictures(9, seed=3)
    whole = picture_likeness(samples, training, neighbours=5)
    single = [picture_likeness(one[None], training, neighbours=5) for one in samples]
    assert torch.equal(whole.indices, torch.cat([one.indices for one in single]))
    # float32 products of different shapes are summed in different orders.
    assert torch.allclose(whole.ratios, torch.cat([one.ratios for one in single]), atol=1e-4)


def test_blank_pictures_are_copies_of_each_other_and_of_nothing_else():
    training = torch.cat([pictures(20), torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)])
    found = picture_likeness(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), training, neighbours=10)
    assert found.indices.tolist() == [20]
    assert found.ratios[0] < 1e-3


def test_a_training_set_of_one_picture_many_times_gives_ratio_zero():
    training = pictures(1).expand(5, -1, -1, -1)
    assert feature_likeness(training.flatten(1)[:1].float(), training.flatten(1).float(), neighbours=5).ratios[0] == 0


def test_features_are_compared_by_their_distances():
    training = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]])
    found = feature_likeness(torch.tensor([[0.0, 1.0]]), training)
    assert found.indices.tolist() == [0]
    others = (18**0.5 + 9) / 2
    assert float(found.ratios[0]) == pytest.approx(1 / others, rel=1e-12)


def test_large_pictures_are_means_over_areas_and_small_ones_are_left():
    large = torch.arange(64 * 64).reshape(1, 1, 64, 64).remainder(200).to(torch.uint8)
    small = thumbnails(large)
    assert small.shape == (1, 1, 32, 32)
    assert int(small[0, 0, 0, 0]) == round(float(large[0, 0, :2, :2].float().mean()))
    assert thumbnails(small) is small


def test_new_ratios_are_flagged_as_often_as_the_level_says():
    held_out, new = uniform(999), uniform(200_000, seed=1)
    threshold = calibrated(held_out, 0.05)
    share = float((new < threshold.ratio).double().mean())
    assert threshold.false_positives.value == pytest.approx(0.05)
    assert threshold.false_positives.low <= share <= threshold.false_positives.high


def test_the_interval_of_the_false_positives_covers_them_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        found = calibrated(uniform(199, seed), 0.05)
        # Of uniform ratios the share below the threshold is the threshold.
        covered += found.false_positives.low <= found.ratio <= found.false_positives.high
    # 95 % of 400 with a standard error of 1.1 %.
    assert 0.915 <= covered / 400 <= 0.985


def test_p_values_and_the_threshold_agree():
    held_out, ratios = uniform(300), torch.cat([uniform(500, seed=1), uniform(300)])
    threshold = calibrated(held_out, 0.03)
    assert torch.equal(p_values(ratios, held_out) <= 0.03, ratios < threshold.ratio)


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    p = torch.tensor([0.01, 0.04, 0.03, 0.5])
    assert false_discovery_rates(p).tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_no_more_false_discoveries_are_made_than_the_rate_allows():
    held_out = uniform(2000)
    found = torch.cat([torch.zeros(50, dtype=torch.float64), uniform(950, seed=2)])
    chosen = false_discovery_rates(p_values(found, held_out)) <= 0.1
    assert bool(chosen[:50].all())
    # 10 % are expected at most; the number of false ones scatters by about 2 around 5.
    assert int(chosen[50:].sum()) <= 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: calibrated(uniform(98), 0.01), "needs 99 held-out examples or more; got 98"),
        (lambda: calibrated(uniform(98), 0.0), "strictly between 0 and 1"),
        (lambda: calibrated(uniform(4)[None], 0.5), "a vector of ratios"),
        (lambda: picture_likeness(pictures(2), pictures(3, 20)), "same trailing shape"),
        (lambda: picture_likeness(pictures(2), pictures(3), neighbours=1), "2 neighbours or more"),
        (lambda: picture_likeness(pictures(2, 2), pictures(3, 2)), "at least 4 pixels"),
        (lambda: thumbnails(torch.zeros(3, 8, 8, dtype=torch.uint8)), "pictures \\(N, C, H, W\\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_floats_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        thumbnails(torch.zeros(1, 1, 8, 8))
