import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, VarianceExploding
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.interval import Interval
from unfog.sampling.sampler import sample

PROCESS = Gaussian(RectifiedFlow())
X_T = torch.zeros(3, 2, dtype=torch.float64)


class Told(Denoiser):
    """Answers with one number, and notes what it is asked."""

    def __init__(self, value: float, fraction: float | None = None) -> None:
        super().__init__()
        self.process = PROCESS
        self.value, self.fraction = value, fraction
        self.asked: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.asked.append(len(x_t))
        fraction = None if self.fraction is None else torch.full_like(x_t, self.fraction)
        return Prediction(torch.full_like(x_t, self.value), fraction)


def at(level: float) -> Tensor:
    """The time at which sigma / alpha has a value."""
    return torch.tensor(level / (1 + level), dtype=torch.float64)


@pytest.mark.parametrize(("level", "inside"), [(0.1, False), (0.29, False), (0.31, True), (2.9, True), (3.1, False)])
@pytest.mark.parametrize("prepared", [False, True])
def test_one_denoiser_is_asked_within_and_the_other_outside(level: float, inside: bool, prepared: bool) -> None:
    guided, plain = Told(2.0), Told(1.0)
    denoiser: Denoiser = Interval(guided, plain, 0.3, 3.0)
    t = at(level)
    if prepared:
        denoiser = denoiser.prepared([at(1.0), t])
    assert (denoiser(X_T, t).x0 == (2.0 if inside else 1.0)).all()
    assert (guided.asked, plain.asked) == (([3], []) if inside else ([], [3]))


def test_the_ends_are_within() -> None:
    interval = Interval(Told(2.0), Told(1.0), 0.5, 1.0)
    # Times of which sigma / alpha comes out as these numbers.
    third, half = torch.tensor([1 / 3, 0.5], dtype=torch.float64)
    assert interval.inside(half)
    assert Interval(Told(2.0), Told(1.0), (third / (1 - third)).item(), 1.0).inside(third)


@pytest.mark.parametrize(("low", "t"), [(0.0, 0.0), (3.0, 1.0)])
def test_an_open_end_includes_clean_data_and_pure_noise(low: float, t: float) -> None:
    assert Interval(Told(2.0), Told(1.0), low, math.inf).inside(torch.tensor(t, dtype=torch.float64))


def test_times_on_both_sides_are_each_answered_by_their_own() -> None:
    guided, plain = Told(2.0, 0.8), Told(1.0, 0.1)
    found = Interval(guided, plain, 0.3, 3.0)(X_T, torch.stack([at(0.1), at(1.0), at(10.0)]))
    assert torch.equal(found.x0, torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64).expand(3, 2))
    assert found.variance_fraction is not None
    assert torch.equal(found.variance_fraction[:, 0], torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64))


def test_times_on_one_side_cost_one_evaluation() -> None:
    guided, plain = Told(2.0), Told(1.0)
    interval = Interval(guided, plain, 0.3, 3.0)
    interval(X_T, torch.stack([at(0.5), at(1.0), at(2.0)]))
    assert (guided.asked, plain.asked) == ([3], [])
    interval(X_T, torch.stack([at(0.1), at(5.0), at(9.0)]))
    assert (guided.asked, plain.asked) == ([3], [3])


def test_a_time_for_each_frame_decides_for_its_frame() -> None:
    x = torch.zeros(1, 3, 2, dtype=torch.float64)
    found = Interval(Told(2.0), Told(1.0), 0.3, 3.0)(x, torch.stack([at(0.1), at(1.0), at(9.0)])[None]).x0
    assert torch.equal(found[0, :, 0], torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


def test_a_sampler_reads_nothing_from_the_device_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its times are prepared: the loop does not compare them again. Its levels are inf, 7, 3, ..., 1 / 3, 1 / 7."""
    guided, plain = Told(2.0), Told(1.0)
    interval = Interval(guided, plain, 0.3, 3.5)
    calls = []
    inside = Interval.inside

    def noting(self: Interval, t: Tensor) -> Tensor:
        calls.append(tuple(t.shape))
        return inside(self, t)

    monkeypatch.setattr(Interval, "inside", noting)
    times = Trailing().times(PROCESS.schedule, 8)
    sample(interval, DDIM(), times, torch.ones(2, 2, dtype=torch.float64), rng=Rng.of(0, 2))
    assert calls == [(8,)]
    assert (guided.asked, plain.asked) == ([2] * 5, [2] * 3)


def test_the_level_is_that_of_the_schedule() -> None:
    class Elsewhere(Told):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.process = Gaussian(VarianceExploding(80.0))

    interval = Interval(Elsewhere(), Elsewhere(), 0.19, 1.61)
    t = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64) / 80.0
    assert interval.inside(t).tolist() == [False, True, False]


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0), (math.nan, 1.0)])
def test_ends_out_of_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= low < high"):
        Interval(Told(2.0), Told(1.0), low, high)


def test_another_process_is_refused() -> None:
    class Elsewhere(Told):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.process = Gaussian(Cosine())

    with pytest.raises(ValueError, match="expected denoisers of one process"):
        Interval(Told(2.0), Elsewhere(), 0.0, 1.0)
