import pytest
import torch
from torch import Tensor

from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import CleanEnd, Schedule, Tabulated, VariancePreserving, linear, scaled_linear
from unfog.diffusion.times import Levels, Stratified, Times

COUNT = 4096


def needs_levels(density: Times) -> bool:
    return isinstance(density.density if isinstance(density, Stratified) else density, Levels)


def schedules(density: Times) -> list[Schedule]:
    """A continuous schedule and two tables; the levels of a table can only be drawn from a table."""
    tables: list[Schedule] = [linear(), scaled_linear(clean=CleanEnd.FIRST_LEVEL)]
    return tables if needs_levels(density) else [VariancePreserving(), *tables]


def keys(count: int = COUNT, seed: int = 7) -> Rng:
    return Rng.of(seed, count)


def distance(draws: Tensor, density: Times, schedule: Schedule) -> float:
    """Return the Kolmogorov distance between draws and a density given by its quantile function."""
    # F(t) from the quantile function on a fine grid: the share of the grid's u whose quantile is at most t.
    u = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = density.quantile(u, schedule).contiguous()
    ordered = draws.sort().values
    below, upto = (torch.searchsorted(quantiles, ordered, right=right) / len(u) for right in (False, True))
    rank = torch.arange(len(draws), dtype=torch.float64) / len(draws)
    # Where the density has atoms (levels, ends) F jumps from below to upto: compare on the outer sides.
    return max((rank - upto).max().item(), (below - rank - 1 / len(draws)).max().item())


def test_the_quantile_function_rises_within_the_unit_interval(density: Times) -> None:
    u = torch.linspace(2.0**-24, 1 - 2.0**-24, 10001, dtype=torch.float64)
    for schedule in schedules(density):
        t = density.quantile(u, schedule)
        assert ((t >= 0) & (t <= 1)).all()
        assert (t.diff() >= 0).all()
        assert t[-1] > t[0]


def test_draws_follow_the_density(density: Times) -> None:
    for schedule in schedules(density):
        # 1.95 / sqrt(n) is exceeded by one fair sample in a thousand; the seed is fixed, so this is no lottery.
        assert distance(density.draw(keys(), schedule), density, schedule) < 1.95 / COUNT**0.5


def test_a_draw_depends_on_its_own_key_alone(density: Times) -> None:
    for schedule in schedules(density):
        whole = density.draw(keys(64), schedule)
        rng = keys(64)
        parts = torch.cat([density.draw(rng[:5], schedule), density.draw(rng[5:37], schedule)])
        # Elementary functions may differ in the last bit between vectors of different lengths.
        torch.testing.assert_close(parts, whole[:37], rtol=1e-14, atol=0)
        backwards = Rng.of(7, torch.arange(63, -1, -1))
        torch.testing.assert_close(density.draw(backwards, schedule).flip(0), whole, rtol=1e-14, atol=0)


def test_drawn_times_are_float64_and_carry_noise(density: Times) -> None:
    for schedule in schedules(density):
        t = density.draw(keys(), schedule)
        assert t.dtype is torch.float64
        assert t.shape == (COUNT,)
        assert (schedule.sigma(t) > 0).all()


@pytest.mark.parametrize("levels", [Levels(), Stratified(Levels())], ids=["independent", "stratified"])
def test_levels_are_whole(levels: Times) -> None:
    for table in (Tabulated((0.7, 0.2)), linear(), *(scaled_linear(30, clean) for clean in CleanEnd)):
        index = table.index(levels.draw(keys(), table))
        # The index of the time of a level is that level to a rounding of T.
        assert ((index - index.round()).abs() < 1e-12 * table.levels).all()
        assert set(index.round().int().unique().tolist()) <= set(range(table.levels))
        if table.levels <= 30:
            assert len(index.round().int().unique()) == table.levels


@pytest.mark.parametrize("levels", [Levels(), Stratified(Levels())], ids=["independent", "stratified"])
def test_only_tables_have_levels(levels: Times) -> None:
    with pytest.raises(ValueError, match="Levels needs a Tabulated schedule, not VariancePreserving: use Uniform"):
        levels.draw(keys(4), VariancePreserving())


def test_different_seeds_draw_different_times(density: Times) -> None:
    schedule = schedules(density)[0]
    first, second = (density.draw(keys(seed=seed), schedule) for seed in (1, 2))
    assert (first != second).float().mean() > 0.9


def test_epochs_and_examples_are_drawn_apart(density: Times) -> None:
    # Neighbours of a low-discrepancy sequence repel each other by design: its density is looked at without it.
    density = density.density if isinstance(density, Stratified) else density
    schedule = schedules(density)[-1]
    first, second = (density.draw(keys().at(epoch), schedule) for epoch in (0, 1))
    correlation = torch.corrcoef(torch.stack([first, second, first.roll(1)]))
    # 4 standard errors of a correlation of n independent pairs.
    assert (correlation - torch.eye(3)).abs().max() < 4 / COUNT**0.5
