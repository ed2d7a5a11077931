import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.diffusion.shapes import align
from unfog.sampling.flow import FlowField, flow_time, last_flow_time, selected
from unfog.sampling.table import Grid

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_slope_is_that_of_the_exact_solution_for_gaussian_data(schedule: Schedule) -> None:
    # Data N(0, v): in units of its standard deviation, sqrt((1 - f)^2 v + f^2), a state stays where it is.
    v = 0.3
    denoiser = analytic.gaussian(Gaussian(schedule), torch.zeros(2, dtype=torch.float64), v)
    f = torch.tensor([0.02, 0.4, 0.8, 0.9], dtype=torch.float64)
    y = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    expected = align((f - (1 - f) * v) / ((1 - f) ** 2 * v + f**2), y) * y
    field = FlowField(denoiser, None, 4)
    # A time goes through its log-SNR and back, which costs some roundings of 1 / f.
    torch.testing.assert_close(field(y, f, torch.arange(4)), expected, rtol=1e-9, atol=1e-12)


def test_pure_noise_points_from_the_mean() -> None:
    denoiser = analytic.gaussian(Gaussian(RectifiedFlow()), torch.full((2,), 0.7, dtype=torch.float64), 0.3)
    y, one = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(FlowField(denoiser, None, 1)(y, one, torch.arange(1)), y - 0.7)


def test_some_examples_of_the_batch_take_their_conditions_along() -> None:
    class Asked(Denoiser):
        process = Gaussian(VariancePreserving())

        def __init__(self, shift: Tensor) -> None:
            super().__init__()
            self.shift = shift

        def select(self, index: Tensor) -> Denoiser:
            return Asked(self.shift[index])

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            return Prediction((cond["a"] + self.shift)[:, None].expand_as(x_t))

    cond = {"a": torch.arange(4.0)}
    field = FlowField(Asked(10.0 * torch.arange(4.0)), cond, 4)
    y, f = torch.zeros(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    whole = field(y, f, torch.arange(4))
    index = torch.tensor([1, 3])
    assert torch.equal(field(y[index], f[index], index), whole[index])
    assert selected(None, index) is None


def test_flow_times_run_from_noise_to_data() -> None:
    for schedule in SCHEDULES:
        noise, data = Grid.of(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64))
        assert flow_time(noise) > 0.95
        assert flow_time(data) == 0


def test_a_table_is_not_left_below_its_first_level() -> None:
    assert last_flow_time(Cosine(), 0.25) == pytest.approx(0.2, rel=1e-15)
    table = linear()
    first = Grid.of(table, torch.tensor([1.0, 1 / table.levels], dtype=torch.float64))[-1]
    assert last_flow_time(table, 1e-4) == pytest.approx(flow_time(first), rel=1e-12)
    assert last_flow_time(table, 0.25) == pytest.approx(0.2, rel=1e-15)
