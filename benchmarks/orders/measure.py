"""Errors of one method on one case, at budgets of evaluations and on grids that grow finer."""

import warnings
from collections.abc import Callable

import torch

from benchmarks.orders.cases import Case
from benchmarks.orders.peer import Peer
from benchmarks.orders.record import Found
from unfog.evaluation.lab.measure import regressed
from unfog.sampling.sampler import TableSampler
from unfog.sampling.table import Grid

BUDGETS = (5, 10, 20, 50)
REFINED = (126, 252, 504)
"""Steps from which the order is regressed; multiples of every group of stages."""


Times = Callable[[int], torch.Tensor]
"""``(steps + 1,)`` times, for a number of steps."""
Solve = Callable[[int, Times], tuple[int, float]]
"""Evaluations and error, for a number of steps and the times they are to be at."""


def of_ours(sampler: TableSampler, case: Case) -> Found:
    """Measure one of our samplers, by its path, or by the variance it leaves if it injects noise."""
    laboratory = case.laboratory
    noisy = laboratory.is_noisy(sampler)

    def solve(steps: int, times: Times) -> tuple[int, float]:
        measure = laboratory.variance_error if noisy else laboratory.path_error
        return measure(sampler, times(steps))

    def evaluations(steps: int) -> int | None:
        try:
            return len(list(sampler.rows(Grid.of(case.schedule, case.times(steps)))))
        except ValueError:
            return None  # fewer steps than its order

    return _measured(case, solve, evaluations)


def of_peer(peer: Peer, case: Case) -> Found:
    """Measure one of theirs."""

    def solve(steps: int, times: Times) -> tuple[int, float]:
        calls = 0

        def denoise(y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return case.denoise(y, level)

        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what they deprecate
            end = peer.solve(denoise, case.start, lambda n: case.levels(times(n)), steps)
        if calls != peer.evaluations(steps):
            raise AssertionError(f"{peer.name} asked {calls} times in {steps} steps, not {peer.evaluations(steps)}")
        return calls, case.error(end)

    return _measured(case, solve, peer.evaluations)


def _measured(case: Case, solve: Solve, evaluations: Callable[[int], int | None]) -> Found:
    errors, asked = list[float | None](), list[int | None]()
    for budget in BUDGETS:
        fitting = [n for n in range(1, budget + 1) if (cost := evaluations(n)) is not None and cost <= budget]
        cost, error = solve(fitting[-1], case.times) if fitting else (None, None)
        asked.append(cost)
        errors.append(error)
    order, _ = regressed([solve(steps, case.even) for steps in REFINED])
    return Found(tuple(errors), tuple(asked), order)


def jump(case: Case, last: float | None) -> float:
    """Return how far the step to clean data leads exact states astray.

    Args:
        case: the mixture and the schedule.
        last: the time before the step; the end of the interval unless given.
    """
    laboratory, schedule = case.laboratory, case.schedule
    first, end = case.times(1).tolist()
    before, exact = laboratory.setup.field.solve(
        schedule, laboratory.start(), (first, end if last is None else last, 0.0)
    )[1:]
    t = torch.tensor(end if last is None else last, dtype=torch.float64)
    x0 = laboratory.setup.field.mixture.denoiser(schedule)(before, t).x0
    return float((x0 - exact).norm(dim=1).mean())
