import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unfog.data.dataset import ArrayDataset
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Uniform
from unfog.evaluation.noisy_accuracy import LEVELS, accuracy_by_level, levels_of
from unfog.tasks.noisy_classification import NoisyClassification


class Mean(nn.Module):
    """Names class 1 where the mean of a picture is above 0, sure of it in proportion."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([-50 * mean, 50 * mean], dim=1)


class Ignorant(nn.Module):
    """Finds both classes equally likely."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.zeros(len(x), 2)


def task(network: nn.Module) -> NoisyClassification:
    return NoisyClassification(network, 2, Gaussian(Cosine()), Uniform())


def test_levels_go_from_almost_no_noise_to_almost_nothing_else() -> None:
    schedule = Cosine()
    times = levels_of(schedule)
    assert len(times) == LEVELS
    assert (times.diff() > 0).all()
    assert schedule.log_snr(times[0]) > 8
    assert schedule.log_snr(times[-1]) < -8


def test_a_classifier_that_knows_nothing_pays_the_logarithm_of_the_classes(toy_dataset) -> None:
    found = accuracy_by_level(task(Ignorant()), toy_dataset(30, 0))
    assert [level.cross_entropy.value for level in found] == pytest.approx([math.log(2)] * LEVELS)


def test_batches_do_not_change_what_is_measured(toy_dataset) -> None:
    few, many = (accuracy_by_level(task(Mean()), toy_dataset(30, 0), batch_size=size) for size in (7, 30))
    assert [level.accuracy for level in few] == [level.accuracy for level in many]


def test_examples_without_labels_are_refused() -> None:
    unlabelled = ArrayDataset(np.zeros((4, 1, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="examples with labels"):
        accuracy_by_level(task(Mean()), unlabelled)
