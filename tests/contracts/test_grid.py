from collections.abc import Callable
from typing import Any

import pytest
import torch

from unfog.diffusion.schedule import CleanEnd, Schedule, Tabulated
from unfog.sampling.fitted import Given
from unfog.sampling.grid import Leading, Linspace, TimeGrid

STEPS = (1, 2, 3, 7, 30, 50, 333, 999, 1000)


def test_times_fall_strictly_to_zero_on_every_schedule(grid: TimeGrid, all_of: Callable[[type], list[Any]]) -> None:
    for schedule in all_of(Schedule):
        for steps in STEPS:
            try:
                times = grid.times(schedule, steps)
            except ValueError:
                assert refuses(grid, schedule, steps)
                continue
            assert not refuses(grid, schedule, steps)
            assert times.dtype is torch.float64
            assert times.shape == (steps + 1,)
            assert times[0] <= 1
            assert times[-1] == 0
            assert (times.diff() < 0).all()
            assert (schedule.sigma(times[:-1]) > 0).all()


def refuses(grid: TimeGrid, schedule: Schedule, steps: int) -> bool:
    """Given times are so many; levels must be those of the table, lie within it, and not be evaluated at t = 0."""
    if isinstance(grid, Given):
        return steps != len(grid.given)
    if not isinstance(grid, Leading | Linspace):
        return False
    if isinstance(grid, Leading) and (steps - 1) * (grid.levels // steps) + grid.offset >= grid.levels:
        return True
    if not isinstance(schedule, Tabulated):
        return False
    # The only step of Linspace is at the last level.
    first = grid.offset == 0 if isinstance(grid, Leading) else steps > 1
    return schedule.levels != grid.levels or (schedule.clean is CleanEnd.FIRST_LEVEL and first)


def test_more_steps_make_no_jump_longer(grid: TimeGrid, all_of: Callable[[type], list[Any]]) -> None:
    for schedule in all_of(Schedule):
        if not any(refuses(grid, schedule, steps) for steps in (5, 500)):
            coarse, fine = (grid.times(schedule, steps).diff().abs().max() for steps in (5, 500))
            assert fine <= coarse


def test_less_than_one_step_is_refused(grid: TimeGrid, all_of: Callable[[type], list[Any]]) -> None:
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"at least 1 step, not {steps}"):
            grid.times(all_of(Schedule)[0], steps)
