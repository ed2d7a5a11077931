import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.random import Rng
from unfog.evaluation.families import Contender, Family, OneShot, baseline
from unfog.evaluation.features import feature_extractor
from unfog.evaluation.race import EXPLOSION, RECENT, RaceEffort, batches_for, race, spread, train_for
from unfog.metrics.interval import Score
from unfog.tasks.task import Loss, Task
from unfog.training.config import TrainConfig
from unfog.training.optim import LinearToZero, OptimizerConfig


class Clock:
    """A clock that goes on by a second for each loss that is asked for."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ticking(Task):
    """Pulls a number to zero; its gradient is what ``slopes`` says of the step."""

    def __init__(self, clock: Clock, slopes: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.clock, self.slopes = clock, slopes or {}
        self.network = nn.Linear(1, 1, bias=False)
        self.steps = 0

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        self.clock.now += 1.0
        self.steps += 1
        total = self.network.weight.sum() * self.slopes.get(self.steps, 1.0)
        return Loss(total, {})


def contender(task: Task, average=None) -> Contender:
    optimizer = OptimizerConfig(lr=1e-3, clip=None, decay=LinearToZero())
    config = TrainConfig(10_000, 4, ema=(0.05,), optimizer=optimizer)
    network = task.players()["model"]
    sampling = OneShot(network, lambda z, label: z.view(-1, 1, 8, 8), 64, "noise")
    return Contender(Family.GAN, task, config, average, 2, lambda: sampling, None, {"model": "toy"})


def test_training_ends_before_a_step_would_reach_beyond_the_time(toy_dataset) -> None:
    clock = Clock()
    effort = RaceEffort(seconds=30.5, marks=(0.5, 1.0))
    found = train_for(contender(Ticking(clock)), batches_for(toy_dataset(40, 0), 0), effort, clock=clock)
    assert (found.steps, found.seconds) == (30, 30.0)
    assert [(s.seconds, s.steps) for s in found.snapshots] == [(16.0, 16), (30.0, 30)]
    assert found.diverged is None


def test_the_learning_rate_comes_to_its_end_with_the_time(toy_dataset) -> None:
    clock = Clock()
    task = Ticking(clock)
    rates: list[float] = []
    made = contender(task)
    # AdamW moves a weight of constant slope by the learning rate.
    before = [float(task.network.weight.detach())]

    def note(found: object) -> None:
        rates.append(before[-1] - float(task.network.weight.detach()))
        before.append(float(task.network.weight.detach()))

    train_for(made, batches_for(toy_dataset(40, 0), 0), RaceEffort(seconds=100.5), clock=clock, tell=note)
    assert rates[-1] < 0.05 * max(rates)
    assert rates[len(rates) // 2] == pytest.approx(0.5 * max(rates), rel=0.15)


def test_snapshots_are_copies_of_their_moment(toy_dataset) -> None:
    clock = Clock()
    effort = RaceEffort(seconds=30.5, marks=(0.2, 1.0))
    found = train_for(contender(Ticking(clock)), batches_for(toy_dataset(40, 0), 0), effort, clock=clock)
    first, last = (snapshot.weights["weight"] for snapshot in found.snapshots)
    assert float(first) > float(last)


def test_gradients_that_shoot_up_are_counted_once_a_row(toy_dataset) -> None:
    clock = Clock()
    high = 2 * EXPLOSION
    slopes = {RECENT + 10: high, RECENT + 11: high, RECENT + 12: high, RECENT + 30: high, 5: high}
    task, seconds = Ticking(clock, slopes), RECENT + 50.5
    found = train_for(contender(task), batches_for(toy_dataset(40, 0), 0), RaceEffort(seconds=seconds), clock=clock)
    # That of step 5 has no hundred steps before it to be compared with.
    assert found.explosions == {"model": 2}


def test_a_training_that_breaks_off_is_told_and_keeps_what_it_had(toy_dataset) -> None:
    clock = Clock()
    # A step that cannot be applied asks for its loss again, to find out why, so these are steps 13 and after.
    task = Ticking(clock, dict.fromkeys(range(13, 60), float("nan")))
    effort = RaceEffort(seconds=40.5, marks=(0.2, 0.9, 1.0))
    found = train_for(contender(task), batches_for(toy_dataset(40, 0), 0), effort, clock=clock)
    assert found.diverged is not None
    assert "not finite" in found.diverged
    assert found.skipped == 3
    assert [snapshot.steps for snapshot in found.snapshots] == [9]


@pytest.fixture
def extractor(toy_dataset, effort, tmp_path):
    return feature_extractor(toy_dataset(60, 0), tmp_path, effort.features)


def cheap(effort, **changes: object) -> RaceEffort:
    made = RaceEffort(
        seconds=6.5, samples=24, curve_samples=12, marks=(0.5, 1.0), likelihood_examples=4, resamples=20,
        budget=effort.budget,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize("family", [Family.GAN, Family.VAE, Family.FLOW])
def test_a_model_is_trained_and_measured(family: Family, toy_dataset, effort, extractor) -> None:
    train, test = toy_dataset(60, 0), toy_dataset(30, 1)
    made = baseline(family, train, classes=2, target=3000, seed=0, batch_size=8)
    ticks = iter(range(1000))
    raced = race(made, train, test, extractor, cheap(effort), clock=lambda: float(next(ticks)))
    record = json.loads(json.dumps(raced.record))
    assert record["steps"] == 6
    assert record["scores"]["samples"]["precision"]["count"] == 24
    assert [point["steps"] for point in record["curve"]] == [4, 6]
    assert record["curve"][0]["precision"]["count"] == 12
    assert record["speed"]["evaluations"] == 1
    assert ("reason" in record["bits"]) == (family is Family.GAN)
    assert raced.images is not None
    assert raced.images.shape == (24, 1, 8, 8)


def test_what_was_drawn_is_of_the_averaged_weights(toy_dataset, effort, extractor) -> None:
    train, test = toy_dataset(60, 0), toy_dataset(30, 1)
    made = baseline(Family.GAN, train, classes=2, target=3000, seed=0, batch_size=8)
    seen = []
    ticks = iter(range(1000))
    raced = race(
        made, train, test, extractor, cheap(effort), clock=lambda: float(next(ticks)), tell=lambda found: seen.append(
            [parameter.clone() for parameter in made.task.players()["model"].parameters()]
        ),
    )  # fmt: skip
    assert raced.images is not None
    # The weights of the last step are not those that are left: averages of any length lie between the steps.
    assert not all(torch.equal(a, b) for a, b in zip(seen[-1], made.task.players()["model"].parameters(), strict=True))


def test_a_model_that_draws_what_is_not_finite_is_a_result(toy_dataset, effort, extractor) -> None:
    clock = Clock()
    task = Ticking(clock)
    broken = OneShot(task.network, lambda z, label: z.view(-1, 1, 8, 8) / 0.0, 64, "broken")
    made = replace(contender(task), sampling=lambda: broken)
    raced = race(made, toy_dataset(60, 0), toy_dataset(30, 1), extractor, cheap(effort), clock=clock)
    assert raced.images is None
    assert raced.record["scores"] is None
    assert "not finite" in raced.record["stability"]["diverged"]


def pictures(dataset, count: int) -> tuple[Tensor, Tensor]:
    values = dataset.gather(torch.arange(count))
    return values["x0"], values["label"]


def test_examples_of_the_data_are_spread_as_the_data_are(toy_dataset, extractor) -> None:
    images, labels = pictures(toy_dataset(200, 5), 200)
    found = spread(extractor, images, labels, toy_dataset(200, 6), seed=0, resamples=20)
    assert isinstance(found, Score)
    assert found.value == pytest.approx(1.0, abs=0.1)
    assert found.low < found.value < found.high


def test_one_picture_a_class_has_no_spread(toy_dataset, extractor) -> None:
    images, labels = pictures(toy_dataset(2, 5), 2)
    same, classes = images.repeat(20, 1, 1, 1), labels.repeat(20)
    found = spread(extractor, same, classes, toy_dataset(60, 6), seed=0, resamples=20)
    assert isinstance(found, Score)
    assert found.value == pytest.approx(0.0, abs=1e-4)  # cdist forms distances from squares


def test_too_few_samples_have_no_spread_to_speak_of(toy_dataset, extractor) -> None:
    images, labels = pictures(toy_dataset(2, 5), 2)
    assert not isinstance(spread(extractor, images, labels, toy_dataset(60, 6), seed=0), Score)


@pytest.mark.parametrize(
    "change",
    [{"seconds": 0.0}, {"marks": (0.5,)}, {"marks": (0.5, 0.4, 1.0)}, {"samples": 0}, {"likelihood_examples": 1}],
)
def test_effort_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(RaceEffort(), **change)
