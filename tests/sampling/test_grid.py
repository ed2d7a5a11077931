import math

import pytest
import torch

from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    linear,
    scaled_linear,
)
from unfog.sampling.grid import Karras, Leading, Linspace, LogSNRUniform, Quadratic, TimeGrid, Trailing


def levels(grid: TimeGrid, steps: int, table: object = None) -> list[float]:
    schedule = linear() if table is None else table
    index = schedule.index(grid.times(schedule, steps)[:-1])  # type: ignore[attr-defined]
    assert torch.allclose(index, index.round(), rtol=0, atol=1e-9)
    return index.round().tolist()


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        # Lin et al. 2024 (arXiv 2305.08891), table 2, whose levels count from 1, for T = 1000 and ten steps.
        (Leading(), [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (Linspace(), [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (Trailing(), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (Leading(offset=1), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    ],
)
def test_ten_steps_visit_the_published_levels(grid: TimeGrid, expected: list[float]) -> None:
    assert levels(grid, 10) == expected


@pytest.mark.parametrize("steps", [3, 7, 30, 333, 999])
def test_leading_levels_are_multiples_even_where_the_count_does_not_divide(steps: int) -> None:
    assert levels(Leading(), steps) == [i * (1000 // steps) for i in range(steps - 1, -1, -1)]


def test_leading_counts_the_levels_of_a_table_that_ends_at_its_first() -> None:
    table = scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    assert levels(Leading(offset=1), 10, table)[:2] == [901, 801]


def test_leading_levels_beyond_the_table_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an offset below 100 for 10 steps, not 100"):
        Leading(offset=100).times(linear(), 10)
    with pytest.raises(ValueError, match="expected an offset below 148 for 7 steps, not 148"):
        Leading(offset=148).times(linear(), 7)
    assert Leading(offset=147).times(linear(), 7)[0] == 1
    with pytest.raises(ValueError, match="at most 1000 steps on 1000 levels, not 1001"):
        Leading().times(linear(), 1001)
    with pytest.raises(ValueError, match="expected levels=100 as the schedule has, not 1000"):
        Leading().times(linear(100), 10)
    with pytest.raises(ValueError, match="offset of at least 1 on a schedule that ends at its first level"):
        Leading().times(scaled_linear(clean=CleanEnd.FIRST_LEVEL), 10)


def test_linspace_keeps_to_the_levels_of_the_table() -> None:
    assert levels(Linspace(100), 10, linear(100)) == [99, 88, 77, 66, 55, 44, 33, 22, 11, 0]
    assert levels(Linspace(100), 1, linear(100)) == [99]
    with pytest.raises(ValueError, match="expected levels=100 as the schedule has, not 1000"):
        Linspace().times(linear(100), 10)
    with pytest.raises(ValueError, match="a schedule that goes on below its first level, or another grid"):
        Linspace().times(scaled_linear(clean=CleanEnd.FIRST_LEVEL), 10)


def test_linspace_cuts_a_continuous_schedule_into_levels() -> None:
    times = Linspace(10).times(Cosine(), 4)
    torch.testing.assert_close(times, torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0], dtype=torch.float64))


def test_trailing_starts_at_pure_noise_and_is_uniform() -> None:
    times = Trailing().times(Cosine(), 7)
    assert times[0] == 1
    torch.testing.assert_close(times.diff(), torch.full((7,), -1 / 7, dtype=torch.float64))


def test_quadratic_is_a_square() -> None:
    times = Quadratic(0.8).times(Cosine(), 5)
    torch.testing.assert_close(times, 0.8 * torch.tensor([1, 0.64, 0.36, 0.16, 0.04, 0], dtype=torch.float64))


def test_karras_is_the_published_formula() -> None:
    # Karras et al. 2022 (arXiv 2206.00364), eq. 5.
    n, rho = 18, 7
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = [(high + i / (n - 1) * (low - high)) ** rho for i in range(n)] + [0.0]
    schedule = VarianceExploding(80.0)
    sigma = schedule.sigma(Karras().times(schedule, n))
    # Seventh powers of roots multiply a rounding by seven.
    torch.testing.assert_close(sigma, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "schedule", [VariancePreserving(), VarianceExploding(), scaled_linear()], ids=["vp", "ve", "sd"]
)
def test_log_snr_steps_are_equal(schedule: VariancePreserving) -> None:
    times = LogSNRUniform(0.05, 1000.0).times(schedule, 20)
    steps = schedule.log_snr(times[:-1]).diff()
    torch.testing.assert_close(steps, steps[:1].expand(19), rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [LogSNRUniform, Karras])
def test_the_range_is_cut_to_that_of_the_schedule(make: type[Karras]) -> None:
    schedule = VarianceExploding(2.0)
    times = make(sigma_min=0.1, sigma_max=80.0).times(schedule, 6)
    assert times[0] == 1
    assert schedule.sigma(times[-2]).item() == pytest.approx(0.1, rel=1e-12)
    with pytest.raises(ValueError, match="a range of sigma / alpha that meets the schedule's, 0 to 2"):
        make(sigma_min=3.0, sigma_max=80.0).times(schedule, 6)


@pytest.mark.parametrize("make", [LogSNRUniform, Karras])
def test_the_first_time_is_where_the_prior_is(make: type[Karras]) -> None:
    for schedule in (RectifiedFlow(), VariancePreserving()):
        times = make(sigma_min=0.1, sigma_max=5.0).times(schedule, 6)
        assert times[0] == 1
        assert schedule.sigma(times[1]) / schedule.alpha(times[1]) < 5.0


@pytest.mark.parametrize("make", [LogSNRUniform, Karras])
def test_a_table_is_not_evaluated_below_its_first_level(make: type[Karras]) -> None:
    for table in (linear(), scaled_linear()):
        assert levels(make(), 2, table) == [999, 0]
        assert (table.index(make().times(table, 50)[:-1]) > -1e-9).all()


@pytest.mark.parametrize("make", [LogSNRUniform, Karras])
def test_a_table_that_ends_at_its_first_level_is_stepped_evenly_to_it(make: type[Karras]) -> None:
    table = scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    grid = make()
    times = grid.times(table, 25)
    ratio = torch.exp(-0.5 * table.log_snr(times))
    rho = getattr(grid, "rho", math.inf)
    even = (ratio.log() if math.isinf(rho) else ratio ** (1 / rho)).diff()
    torch.testing.assert_close(even, even[:1].expand(25), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Leading(0),
        lambda: Leading(offset=-1),
        lambda: Linspace(1),
        lambda: Quadratic(0.0),
        lambda: Quadratic(1.5),
        lambda: LogSNRUniform(0.0, 1.0),
        lambda: LogSNRUniform(1.0, 1.0),
        lambda: LogSNRUniform(1.0, math.inf),
        lambda: Karras(rho=0.0),
        lambda: Karras(sigma_min=2.0, sigma_max=1.0),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"^expected"):
        make()
