import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.adaptive import RK45
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Karras, LogSNRUniform, Trailing
from unfog.sampling.noise import noises
from unfog.sampling.restart import Interval, Restart
from unfog.sampling.sampler import sample
from unfog.sampling.table import Row, gaussian_moments

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]
TWO = (Interval(), Interval(1.09, 1.92, 1, 4))


def levels(schedule: Schedule, rows: list[Row]) -> list[float]:
    times = torch.tensor([row.t for row in rows], dtype=torch.float64)
    return torch.exp(-0.5 * schedule.log_snr(times)).tolist()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_it_goes_back_as_often_as_asked_from_low_to_high(schedule: Schedule) -> None:
    times = LogSNRUniform(0.01).times(schedule, 20)
    rows = Restart(DDIM(), (Interval(repeats=3, steps=5),)).table(schedule, times)
    back = [k for k, row in enumerate(rows) if row.before is not None]
    assert len(back) == 3
    assert len(rows) == 20 + 3 * 5
    seen = levels(schedule, rows)
    for k in back:
        # The time of a level is found from its log-SNR.
        assert seen[k] == pytest.approx(0.3, rel=1e-9)
        reached = levels(schedule, [rows[k - 1]._replace(t=rows[k - 1].s)])[0]
        assert 0.06 / 2 < reached <= 0.06 * (1 + 1e-9)
    assert all(b < a for k, (a, b) in enumerate(pairwise(seen), start=1) if k not in back)
    # Karras' grid: uniform in the seventh root.
    roots = [level ** (1 / 7) for level in seen[back[0] : back[0] + 5]]
    assert [b - a for a, b in pairwise(roots)] == pytest.approx([roots[1] - roots[0]] * 4, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("intervals", [(Interval(),), TWO], ids=["one", "two"])
def test_no_move_leaves_the_marginals(schedule: Schedule, solver: DDIM | Heun, intervals: tuple[Interval, ...]) -> None:
    for grid, steps in ((Karras(0.5), 1), (Trailing(), 4), (LogSNRUniform(0.01), 18)):
        times = grid.times(schedule, steps)
        rows = Restart(solver, intervals).table(schedule, times)
        here = times[0].item()
        for row in rows:
            for move in row.all_moves:
                there = row.t if move is row.before else row.s
                (a, b), (c, d) = (
                    [v.item() for v in schedule.scales(torch.tensor(t, dtype=torch.float64))] for t in (here, there)
                )
                size = 1 + sum(abs(weight) for weight in move.x0)
                assert move.x * a + sum(move.x0) == pytest.approx(c, abs=1e-13 * size)
                assert (move.x * b) ** 2 + move.noise**2 == pytest.approx(d**2, rel=1e-12)
                here = there if move.commits else here
        assert here == 0


def test_it_is_algorithm_1_of_its_paper() -> None:
    # Xu et al. 2023 (arXiv 2306.14878), algorithm 1, with sigma(t) = t and Euler's method.
    schedule, rng = VarianceExploding(), Rng.of(2, 3)
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    denoise = analytic.mixture(Gaussian(schedule), means, 0.1)
    sigmas = [80.0, 10.0, 2.0, 0.5, 0.05, 0.0]
    piece = [(0.3 ** (1 / 7) + k / 3 * (0.05 ** (1 / 7) - 0.3 ** (1 / 7))) ** 7 for k in range(4)]
    sampler = Restart(DDIM(), (Interval(),))
    times = torch.tensor(sigmas, dtype=torch.float64) / 80.0
    start = x = Gaussian(schedule).prior((2,), rng=rng, dtype=torch.float64)
    draws = noises(sampler.table(schedule, times), x, rng)

    def euler(x: torch.Tensor, path: list[float]) -> torch.Tensor:
        for t, s in pairwise(path):
            x = x + (s - t) * (x - denoise(x, torch.tensor(t / 80.0, dtype=torch.float64)).x0) / t
        return x

    x = euler(x, sigmas[:5])
    for _ in range(2):
        x = x + math.sqrt(0.3**2 - 0.05**2) * next(draws)
        x = euler(x, piece)
    x = euler(x, sigmas[4:])
    found = sample(denoise, sampler, times, start, rng=rng)
    # States of size 80, times found from log-SNRs.
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_what_was_wrong_above_the_interval_is_partly_forgotten() -> None:
    # One Euler step from pure noise to sigma 1 is far too long; below it steps are fine. The start enters linearly, so
    # that the variance of the result says how much of the error is left.
    schedule = VarianceExploding()
    times = torch.cat([torch.tensor([80.0]), torch.linspace(1.0, 0.02, 60), torch.zeros(1)]).double() / 80.0
    variance = 0.5
    errors = []
    for repeats in (0, 1, 4):
        plain = DDIM().table(schedule, times)
        rows = Restart(DDIM(), (Interval(0.05, 0.9, repeats, 60),)).table(schedule, times) if repeats else plain
        errors.append(abs(gaussian_moments(rows, schedule, 0.0, variance)[1] - variance))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_a_grid_without_a_time_low_enough_restarts_from_its_end() -> None:
    schedule = VariancePreserving()
    rows = Restart(Heun(), (Interval(steps=3, repeats=2),)).table(schedule, Trailing().times(schedule, 1))
    # 1 of the first step, and of each way down two for each step but the one to clean data.
    assert len(rows) == 1 + 2 * 5
    assert len(rows) <= Restart().evaluations(1)
    assert [row.s for row in rows][-1] == 0


def test_evaluations_are_exact_where_the_grid_passes_low() -> None:
    for solver in (DDIM(), Heun()):
        sampler = Restart(solver, TWO)
        rows = sampler.table(Cosine(), LogSNRUniform(0.01).times(Cosine(), 18))
        assert len(rows) == sampler.evaluations(18)


@pytest.mark.parametrize(
    ("times", "intervals"), [((0.02, 0.0), (Interval(),)), ((1.0, 0.6), (Interval(),)), ((0.5, 0.0), TWO)]
)
def test_a_grid_that_misses_an_interval_is_refused(times: tuple[float, ...], intervals: tuple[Interval, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a grid that passes through the interval .* leave that"):
        Restart(DDIM(), intervals).table(RectifiedFlow(), torch.tensor(times))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="a solver without noise"):
        Restart(DDPM()).table(Cosine(), Trailing().times(Cosine(), 4))
    with pytest.raises(ValueError, match="a solver that is a table"):
        Restart(RK45())
    with pytest.raises(ValueError, match="at least one of the intervals"):
        Restart(intervals=())
    for change, message in (
        ({"low": 0.4}, "0 < low < high, not 0.4, 0.3"),
        ({"repeats": 0}, "repeats of at least 1"),
        ({"steps": 0}, "steps of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(Interval(), **change)
