import json

import numpy as np
import pytest
import torch

from unfog.data.dataset import ArrayDataset
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig, feature_extractor
from unfog.evaluation.scores import Missing, compare, evaluate
from unfog.metrics.interval import Score

TINY = Budget(steps=6, batch_size=12, width=1, lr=2e-2)


def halves(count, seed):
    """Two classes of images, one bright on the left and one on the right, with noise."""
    rng = np.random.default_rng(seed)
    label = np.sort(np.arange(count) % 2)
    pixels = rng.integers(0, 100, (count, 1, 8, 8), dtype=np.uint8)
    pixels[label == 0, :, :, :4] += 120
    pixels[label == 1, :, :, 4:] += 120
    return pixels, label


def dataset(count, seed):
    pixels, label = halves(count, seed)
    return ArrayDataset(pixels, label, name="toy", classes=("left", "right"))


def images(data):
    values = data.gather(torch.arange(len(data)))
    return values["x0"], values["label"]


@pytest.fixture(scope="module")
def train():
    return dataset(60, 0)


@pytest.fixture(scope="module")
def test():
    return dataset(30, 1)


@pytest.fixture(scope="module")
def extractor(train, tmp_path_factory):
    return feature_extractor(train, tmp_path_factory.mktemp("cache"), FeatureConfig(budget=TINY))


@pytest.fixture(scope="module")
def perfect(train, test, extractor):
    """The scores of the test examples themselves, in another order."""
    x0, label = images(test)
    return evaluate(x0.flip(0), label.flip(0), train, test, extractor, budget=TINY, resamples=20)


def test_the_test_examples_as_samples_are_at_distance_zero_with_full_precision_and_recall(perfect):
    # Features are float32 and depend on their place in a batch by rounding.
    assert perfect.samples.frechet.value < 1e-6
    assert (perfect.samples.precision.value, perfect.samples.recall.value) == (1.0, 1.0)
    assert perfect.samples.coverage.value == 1.0


def test_the_floor_compares_real_examples_at_the_same_count(perfect):
    assert perfect.floor.frechet.count == perfect.samples.frechet.count == perfect.count == 30
    assert perfect.floor.frechet.value > perfect.samples.frechet.value


def test_the_distance_says_whose_features_it_is_of(perfect, extractor):
    assert extractor.card.name in perfect.samples.frechet.note
    assert "not FID" in perfect.samples.frechet.note


def test_the_interval_holds_the_distance(perfect):
    floor = perfect.floor.frechet
    assert floor.low < floor.value < floor.high


def test_the_accuracy_has_a_yardstick_at_the_same_count(perfect):
    assert perfect.accuracy.examples == 30
    assert perfect.accuracy.yardstick is not None


def test_scores_turn_into_json(perfect, extractor):
    told = json.loads(json.dumps(perfect.to_dict()))
    assert told["samples"]["frechet"]["value"] == perfect.samples.frechet.value
    assert told["features"]["sha256"] == extractor.card.sha256


def test_copies_of_training_examples_are_found_and_count_as_copying(train, test, extractor):
    ids = torch.tensor([7, 50, 23, 11, 40, 3])
    scores = evaluate(train.gather(ids)["x0"], None, train, test, extractor, resamples=20)
    found = {r.sample: r.training for r in scores.nearest}
    assert found == dict(enumerate(ids.tolist()))
    assert scores.copying.value == 1.0
    assert isinstance(scores.accuracy, Missing)


def test_noise_scores_worse_than_the_floor(train, test, extractor):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=generator)
    scores = evaluate(noise, None, train, test, extractor, resamples=20)
    assert scores.samples.frechet.low > scores.floor.frechet.high


def test_the_order_of_the_samples_does_not_matter_if_all_are_used(train, test, extractor, perfect):
    scores = evaluate(images(test)[0], None, train, test, extractor, resamples=20)
    assert scores.samples.precision == perfect.samples.precision
    assert scores.samples.frechet.value == pytest.approx(perfect.samples.frechet.value, abs=1e-6)


def test_an_extractor_of_other_data_is_refused(train, test, extractor):
    with pytest.raises(ValueError, match="was made from"):
        evaluate(images(test)[0], None, dataset(60, 5), test, extractor)


@pytest.mark.parametrize(
    ("count", "formed"),
    [
        (1, set()),
        (3, set()),
        (4, {"precision", "recall"}),
        (6, {"precision", "recall", "density", "coverage"}),
        (8, {"precision", "recall", "density", "coverage"}),
        (9, {"frechet", "precision", "recall", "density", "coverage"}),
        (32, {"frechet", "limit", "precision", "recall", "density", "coverage"}),
        (40, {"frechet", "limit", "kernel", "precision", "recall", "density", "coverage"}),
    ],
)
def test_a_comparison_holds_what_so_many_examples_suffice_for(count, formed):
    generator = torch.Generator().manual_seed(0)
    real, features = torch.randn(2, count, 8, generator=generator)
    found = vars(compare(real, features, ExtractorCard("toy", "0", "none", "none", "3"), 0, "of toys there are few"))
    assert {name for name, score in found.items() if isinstance(score, Score)} == formed
    reasons = {name: score.reason for name, score in found.items() if isinstance(score, Missing)}
    assert all(reason.endswith("; of toys there are few") for reason in reasons.values())
    if "frechet" in reasons:
        assert "more than 8 examples" in reasons["frechet"]


def test_without_features_the_accuracy_is_formed_all_the_same(train, test, perfect):
    x0, label = images(test)
    scores = evaluate(x0.flip(0), label.flip(0), train, test, Missing("no network"), budget=TINY, resamples=20)
    assert scores.accuracy == perfect.accuracy
    feature_scores = ("Fréchet distance", "precision", "recall", "density", "coverage")
    assert scores.missing == {
        "no network": (*feature_scores, "Fréchet distance at infinite counts", "kernel distance", "copying")
    }
    assert (scores.count, scores.nearest) == (0, ())
    told = json.loads(json.dumps(scores.to_dict()))
    assert told["samples"]["frechet"] == told["features"] == {"reason": "no network"}


def test_one_class_and_no_labels_leave_out_the_accuracy_alone(train, test, extractor):
    pixels, _ = halves(20, 0)
    one = ArrayDataset(pixels, np.zeros(20, int), name="toy", classes=("left",))
    scores = evaluate(images(test)[0], torch.zeros(30).long(), one, one, Missing("no network"), budget=TINY)
    assert "two classes" in scores.accuracy.reason
    scores = evaluate(images(test)[0], None, train, test, extractor, resamples=20)
    # Of 30 test examples there is no interval of the kernel distance.
    assert list(scores.missing.values()) == [("kernel distance",), ("classification accuracy score",)]


def test_a_single_sample_has_no_spread_to_judge_copying_by(train, test, extractor):
    scores = evaluate(images(test)[0][:1], None, train, test, extractor, resamples=20)
    assert "of samples there are 1, of test examples 1" in scores.copying.reason
    assert len(scores.nearest) == 1
