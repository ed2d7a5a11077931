import pytest
import torch
from benchmarks.campaign import equal
from torch import nn


class Clock:
    """Time that passes only when a step is taken."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2


class Stepping:
    """A training whose steps take given times, and whose learning rate falls until the planned end."""

    batch_size = 16

    def __init__(self, clock: Clock, seconds: list[float], planned: int | None) -> None:
        self.clock, self.seconds, self.planned, self.taken = clock, seconds, planned, 0
        self.plans: list[tuple[float, int]] = []

    def step(self) -> float:
        self.clock.now += self.seconds[min(self.taken, len(self.seconds) - 1)]
        self.taken += 1
        return float(self.taken)

    def plan(self, steps: int) -> None:
        self.plans.append((self.clock.now - 100, steps))
        if self.planned is not None:
            self.planned = steps

    def ema_network(self) -> nn.Module:
        return nn.Identity()

    def settings(self) -> dict[str, str]:
        return {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(equal, "time", clock)
    return clock


def test_no_step_reaches_beyond_the_time(clock: Clock) -> None:
    measured = equal.train_for(Stepping(clock, [0.75], None), 10.0)
    assert (measured["steps"], measured["seconds"]) == (13, 9.75)
    assert (measured["examples"], measured["examples_per_second"]) == (13 * 16, 13 * 16 / 9.75)
    assert measured["cpu_seconds"] == 9.75 / 2


def test_the_end_of_a_falling_rate_is_moved_to_what_the_speed_allows(clock: Clock) -> None:
    training = Stepping(clock, [0.5], planned=1000)
    measured = equal.train_for(training, 10.0)
    assert {steps for _, steps in training.plans} == {20}
    assert (measured["planned_steps"], measured["steps"]) == (20, 20)


def test_the_plan_follows_a_speed_that_changes(clock: Clock) -> None:
    training = Stepping(clock, [0.25] * 8 + [0.5], planned=1000)
    measured = equal.train_for(training, 10.0)
    first, last = training.plans[0][1], training.plans[-1][1]
    # At first 0.25 s a step; in all 8 * 0.25 + 16 * 0.5 = 10 s.
    assert (first, last) == (40, 24)
    assert measured["steps"] == 24


def test_training_ends_where_its_rate_has_come_to_zero(clock: Clock) -> None:
    assert equal.train_for(Stepping(clock, [0.5], planned=1), 10.0)["steps"] == 1


def test_the_loss_curve_holds_the_mean_of_every_loss_since_the_last_point(clock: Clock) -> None:
    measured = equal.train_for(Stepping(clock, [0.03125], None), 15.0)
    points = measured["loss_curve"]["points"]
    assert len(points) == 120
    # Four steps a point; each step's loss is its number.
    assert points[0] == (0.125, 64, 2.5)
    assert points[1] == (0.25, 128, 6.5)


def test_the_judge_resamples_every_system_alike() -> None:
    judge = object.__new__(equal.Judge)
    judge._resamples = 5
    judge._test = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).double()
    features = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)).double()
    one_way = torch.tensor([1.0, 0.0])
    zero, one, two = (torch.tensor(judge._resampled(features + k * one_way)) for k in range(3))
    # Of the same draws the distance is a quadratic in the shift, |mean + k|^2 plus what k does not touch.
    assert torch.allclose(two - 2 * one + zero, torch.tensor(2.0), atol=1e-6)
    assert zero.std() > 0
