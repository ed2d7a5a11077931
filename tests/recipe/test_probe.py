import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unfog.data.dataset import Dataset
from unfog.recipe import probe
from unfog.recipe.probe import (
    LiveTensors,
    activation_bytes,
    activations,
    available_memory,
    matrix_rate,
    time_sampling,
    time_steps,
)
from unfog.recipe.run import Run
from unfog.recipe.schema import Recipe
from unfog.training.config import Precision


@pytest.fixture(scope="module")
def dataset(trained: Run) -> Dataset:
    return trained.data().train


def test_live_tensors_are_followed_from_their_making_to_their_end() -> None:
    outside = torch.ones(1000)
    with LiveTensors() as live:
        one = outside + 1
        two = one.view(10, 100)  # no memory of its own
        three = two * 2
        assert live.bytes == 8000
        del one, two
        assert live.bytes == 4000
        three.add_(1)
        assert live.bytes == 4000
        assert live.peak == 8000


def test_live_tensors_see_what_the_backward_pass_makes() -> None:
    x = torch.ones(1000, requires_grad=True)
    with LiveTensors() as live:
        x.exp().sum().backward()
        # The exponential is kept for its gradient, which comes beside it before it ends.
        assert live.peak >= 8000


def test_activations_are_extrapolated_to_larger_micro_batches(tiny: Recipe, dataset: Dataset) -> None:
    line = activations(tiny, dataset)
    for size in (1, 8 * line.sizes[1]):
        assert line.activations.at(size) == pytest.approx(activation_bytes(tiny, dataset, size), rel=0.1)


def test_recomputing_takes_less_memory(tiny: Recipe, dataset: Dataset) -> None:
    again = replace(tiny, network=replace(tiny.network, checkpoint=True))
    assert activation_bytes(again, dataset, 16) < 0.8 * activation_bytes(tiny, dataset, 16)


def test_steps_are_those_of_the_recipe_where_time_allows(
    tiny: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Much time is given, and is over once the three steps are taken that are taken always.
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=itertools.count(0.0, 1e6).__next__))
    taken = time_steps(tiny, dataset, 1000.0)
    assert taken.batch == tiny.train.batch_size
    assert len(taken.seconds) == 3
    assert min(taken.seconds) > 0
    assert 0 <= taken.waited < 1


def test_steps_are_smaller_where_it_does_not(tiny: Recipe, dataset: Dataset) -> None:
    taken = time_steps(tiny, dataset, 0.0)
    assert (taken.batch, len(taken.seconds)) == (4, 3)


def test_a_micro_batch_stays_within_a_smaller_batch(tiny: Recipe, dataset: Dataset) -> None:
    assert time_steps(replace(tiny, train=replace(tiny.train, micro_batch=6)), dataset, 0.0).batch == 4


@pytest.mark.parametrize(("seconds", "evaluations_at_once"), [(1000.0, 1.0), (1.0, 16.0)])
def test_sampling_counts_every_evaluation(
    tiny: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, seconds: float, evaluations_at_once: float
) -> None:
    """Each timed call is told to take a second; 64 samples are 16 times the first look of 4."""
    monkeypatch.setattr(probe, "_seconds", lambda work: (work(), 1.0)[1])
    told = time_sampling(tiny, dataset, 64, seconds)
    assert told == evaluations_at_once * tiny.sample.evaluations


def test_a_matrix_product_has_a_rate() -> None:
    assert matrix_rate(Precision.FLOAT32, 0.0) > 1e8


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("300\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(probe, "_CGROUPS", ((limit, used),))
    limit.write_text("max\n")
    assert available_memory() > 10_000
    limit.write_text("1000\n")
    assert available_memory() == 700
