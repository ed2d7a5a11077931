import json

import numpy as np
import pytest
import torch

from unfog.data.dataset import ArrayDataset
from unfog.evaluation.accuracy import classification_accuracy_score
from unfog.evaluation.classifier import Budget

TINY = Budget(steps=15, batch_size=12, width=2, lr=2e-2)


def halves(count, seed):
    """Two classes of images, one bright on the left and one on the right, with noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = rng.integers(0, 80, (count, 1, 8, 8), dtype=np.uint8)
    pixels[label == 0, :, :, :4] += 150
    pixels[label == 1, :, :, 4:] += 150
    return pixels, label


def dataset(count, seed):
    pixels, label = halves(count, seed)
    return ArrayDataset(pixels, label, name="toy", classes=("left", "right"))


def samples(count=24, seed=0):
    pixels, label = halves(count, seed)
    return torch.from_numpy(pixels), torch.from_numpy(label)


def test_perfect_samples_score_as_high_as_real_examples():
    report = classification_accuracy_score(*samples(), dataset(20, 1), budget=TINY, real=dataset(30, 2))
    assert (report.score.value, report.yardstick.value) == (1.0, 1.0)
    assert report.score.count == 20


def test_samples_of_the_wrong_classes_teach_the_wrong_answers():
    images, label = samples()
    report = classification_accuracy_score(images, 1 - label, dataset(20, 1), budget=TINY, real=dataset(30, 2))
    assert (report.score.value, report.yardstick.value) == (0.0, 1.0)


def test_a_class_without_samples_is_named_and_fails():
    images, label = samples()
    left = label == 0
    report = classification_accuracy_score(images[left], label[left], dataset(20, 1), budget=TINY)
    assert report.score.note.count("no samples of right") == 1
    assert (report.per_class["left"].value, report.per_class["right"].value) == (1.0, 0.0)
    assert report.yardstick is None


def test_the_classes_together_make_up_the_score():
    report = classification_accuracy_score(*samples(12), dataset(21, 1), budget=Budget(steps=1, batch_size=2, width=1))
    right = sum(score.value * score.count for score in report.per_class.values())
    assert report.score.value == pytest.approx(right / 21, abs=1e-12)
    assert sum(score.count for score in report.per_class.values()) == 21


def test_the_seed_decides_the_outcome():
    budget = Budget(steps=3, batch_size=4, width=1)
    first, second = (
        classification_accuracy_score(*samples(12), dataset(40, 1), budget=budget, seed=4) for _ in range(2)
    )
    assert first == second


def test_a_report_turns_into_json():
    report = classification_accuracy_score(*samples(4), dataset(4, 1), budget=Budget(steps=1, batch_size=2, width=1))
    told = json.loads(json.dumps(report.to_dict()))
    assert told["score"]["value"] == report.score.value
    assert set(told["per_class"]) == {"left", "right"}


def test_labels_out_of_range_are_refused():
    images, label = samples(4)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 0 to 2"):
        classification_accuracy_score(images, label * 2, dataset(4, 1))


def test_a_label_for_each_sample_is_needed():
    images, label = samples(4)
    with pytest.raises(ValueError, match="each of 4 samples"):
        classification_accuracy_score(images, label[:3], dataset(4, 1))


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(1, 9, 8\)"):
        classification_accuracy_score(torch.zeros(4, 1, 9, 8), torch.zeros(4, dtype=torch.int64), dataset(4, 1))


def test_fewer_real_examples_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"at least 12 real examples.*got 10"):
        classification_accuracy_score(*samples(12), dataset(4, 1), real=dataset(10, 2))


def test_a_test_set_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs labels"):
        classification_accuracy_score(*samples(4), ArrayDataset(halves(4, 1)[0]))
