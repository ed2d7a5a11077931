"""Every sampler on every schedule, grid, parameterization, number of steps and scale of guidance.

No combination may yield a NaN, an infinity or residual noise, nor an error but a ``ValueError`` that says what is
expected. Data are three points; in each batch example 0 is answered with one point alone. What residual noise means:
that point is hit; other samples lie in the triangle of the three, to which guidance adds its scale; and unguided they
lie at one of the three where the last evaluation is at so little noise that it tells them apart.

The slow test runs every sampler on every schedule, grid and number of steps; parameterizations and scales take turns in
it, so that each meets each of these. The quick one runs a sample in which every pair of values occurs, so that whatever
goes wrong for two settings together is found.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.parameterization import Eps, Parameterization, Score
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, Schedule, Tabulated
from unfog.evaluation.lab.field import Predicting
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.fitted import Fitted
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.grid import TimeGrid, Trailing
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.langevin import AnnealedLangevin
from unfog.sampling.sampler import Sampler, sample

STEPS = (1, 2, 3, 5, 10, 20, 50)
SCALES = (0.0, 1.0, 3.0)
POINT = torch.tensor([0.7, -0.2], dtype=torch.float64)
MEANS = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.8]], dtype=torch.float64)
BATCH = 4
CLEAR = 0.12
"""The sigma / alpha at which points 1.2 apart are told from each other: half of that is 5 standard deviations."""
MOST_EVALUATIONS = 1000
"""In a combination of the quick test with more than two steps."""

Representatives = Callable[[type], list[Any]]


class Combination(NamedTuple):
    sampler: Sampler
    schedule: Schedule
    grid: TimeGrid
    parameterization: Parameterization
    steps: int
    scale: float

    def __str__(self) -> str:
        return ", ".join(str(value)[:120] for value in self)


class Answer(Denoiser):
    """the exact denoiser of three points, but for the examples whose data are one point.

    Args:
        schedule: of the noise.
        pointed: ``(B,)`` bool, which examples those are.
    """

    def __init__(self, schedule: Schedule, pointed: Tensor) -> None:
        super().__init__()
        self.inner = analytic.mixture(Gaussian(schedule), MEANS, 0.0)
        self.process, self.pointed = self.inner.process, pointed

    def select(self, index: Tensor) -> Denoiser:
        return Answer(self.process.schedule, self.pointed[index])

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        x0 = self.inner(x_t, t, cond).x0
        # Guidance puts two batches into one.
        x0 = torch.where(self.pointed.repeat(len(x0) // len(self.pointed))[:, None], POINT, x0)
        return Prediction(x0, torch.full_like(x0, 0.3))


def guided(schedule: Schedule, parameterization: Parameterization, scale: float) -> Denoiser:
    negative = {"label": torch.full((BATCH,), len(MEANS))}
    return ClassifierFree(
        Predicting(Answer(schedule, torch.arange(BATCH) == 0), parameterization, torch.float64), scale, negative
    )


Factors = tuple[Sequence[Sampler], Sequence[Schedule], Sequence[TimeGrid], Sequence[Parameterization]]


def factors_of(all_of: Representatives) -> Factors:
    """Return every setting of every sampler, and of schedules, grids and parameterizations one of each class."""
    # A fitted sampler is for one schedule and grid.
    samplers = [sampler for sampler in all_of(Sampler) if not isinstance(sampler, Fitted)]
    firsts = ({type(v): v for v in reversed(all_of(kind))} for kind in (Schedule, TimeGrid, Parameterization))
    schedules, grids, parameterizations = (list(first.values()) for first in firsts)
    return samplers, schedules, grids, parameterizations


def refusal(make: Callable[[], object]) -> str | None:
    """Return why something is refused; only a sentence that says what is expected is a refusal."""
    told = None
    try:
        make()
    except ValueError as error:
        told = str(error)
    assert told is None or "expected" in told, told
    return told


def tells(parameterization: Parameterization, schedule: Schedule) -> bool:
    """Tell whether a prediction leaves x0 digits at pure noise: eps loses 11 of 16 at a log-SNR of -50."""
    level = torch.exp(-0.5 * schedule.log_snr(torch.ones((), dtype=torch.float64))).item()
    return level < 1e6 or not isinstance(parameterization, (Eps, Score))


class Rules:
    """Which values go together: the documented refusals, each of which concerns two or three of them."""

    def __init__(self, factors: Factors) -> None:
        samplers, schedules, grids, parameterizations = factors
        self.predicted = {
            (id(s), id(p)): refusal(lambda s=s, p=p: p.check(s)) is None and tells(p, s)
            for s, p in product(schedules, parameterizations)
        }
        self.gridded = {
            (id(s), id(g), n): refusal(lambda s=s, g=g, n=n: g.times(s, n)) is None
            for s, g, n in product(schedules, grids, STEPS)
        }
        denoiser = Answer(Cosine(), torch.zeros(1, dtype=torch.bool))
        x, rng = torch.zeros(1, 2, dtype=torch.float64), Rng.of(0, 1)
        self.stepped = {
            (id(m), n): refusal(
                lambda m=m, n=n: next(iter(m.steps(denoiser, x, Trailing().times(Cosine(), n), rng=rng)))
            )
            is None
            for m, n in product(samplers, STEPS)
        }

    def allow(self, combination: Sequence[Any]) -> bool:
        """Tell whether a combination runs; of one that is not complete, with None, whether it still may."""
        sampler, schedule, grid, parameterization, steps, _ = combination
        asked = [
            (self.predicted, (schedule, parameterization)),
            (self.stepped, (sampler, steps)),
            (self.gridded, (schedule, grid, steps)),
        ]
        for table, values in asked:
            if all(value is not None for value in values):
                key = tuple(value if isinstance(value, int) else id(value) for value in values)
                if not table[key]:  #
                    return False
        return True


def covering(factors: Sequence[Sequence[Any]], allow: Callable[[Sequence[Any]], bool]) -> Iterator[tuple[Any, ...]]:
    """Yield combinations such that every allowed pair of values of two factors occurs in one of them.

    Each begins with the first pair that is still missing and takes, factor by factor, the value that adds most pairs.
    """
    missing = {
        (i, a, j, b): None
        for i, j in combinations(range(len(factors)), 2)
        for a, b in product(range(len(factors[i])), range(len(factors[j])))
    }

    def gain(chosen: dict[int, int], i: int, a: int) -> int:
        return sum(((i, a, j, b) if i < j else (j, b, i, a)) in missing for j, b in chosen.items())

    def values(chosen: dict[int, int]) -> list[Any]:
        return [factors[i][chosen[i]] if i in chosen else None for i in range(len(factors))]

    while missing:
        i, a, j, b = next(iter(missing))
        del missing[i, a, j, b]
        chosen = {i: a, j: b}
        if not allow(values(chosen)):
            continue
        for k in (k for k in range(len(factors)) if k not in chosen):
            fitting = [c for c in range(len(factors[k])) if allow(values({**chosen, k: c}))]
            if not fitting:
                break
            chosen[k] = max(fitting, key=lambda c: gain(chosen, k, c))
        else:
            for p, q in combinations(sorted(chosen), 2):
                missing.pop((p, chosen[p], q, chosen[q]), None)
            yield tuple(values(chosen))


def noise_left(sampler: Sampler, schedule: Schedule, times: Tensor) -> float:
    """Return the standard deviation of what is left of noise where a schedule ends above sigma = 0."""
    end, start, prior = schedule.sigma(torch.cat([times[[-1, 0]], torch.ones(1, dtype=torch.float64)])).tolist()
    inner = getattr(sampler, "inner", sampler)  # of a sampler that is told a learned variance
    if end > 0 and (inner == DDPM(Variance.BETA) or isinstance(inner, LearnedDDPM)):
        # Each step injects up to the noise of the forward step, as published: they keep no marginals, and the last step
        # may be too short to take away what the one before put in.
        return float(schedule.sigma(times).max()) * max(1.0, prior / start)
    if end > 0 and isinstance(sampler, AnnealedLangevin):
        return (
            math.inf
        )  # a few moves a level, as its representative makes, find nothing; an answer alone ends them well
    # The prior is pure noise, of which a grid that starts later keeps more.
    return end * max(1.0, prior / start)


def check(x: Tensor | None, told: Combination) -> None:
    """Hold what a batch of samples must keep.

    Args:
        x: ``(BATCH, 2)``, example 0 with a point for its data; None where there is nothing to hold.
        told: the combination.
    """
    if x is None:
        return
    schedule, scale = told.schedule, told.scale
    times = told.grid.times(schedule, told.steps)
    alpha, sigma = schedule.alpha(times[-1]).item(), noise_left(told.sampler, schedule, times)
    levels = torch.exp(-0.5 * schedule.log_snr(times[:-1])).tolist()
    if isinstance(schedule, Tabulated):
        # An adaptive sampler goes no lower, whatever the grid says.
        levels[-1] = max(levels[-1], torch.exp(-0.5 * schedule.log_snr(schedule.time_of(torch.zeros(())))).item())
    assert x.isfinite().all(), told
    # The last step returns the newest answer. A schedule that ends at its first level leaves that level's noise, of
    # which 8 standard deviations are never exceeded. From a log-SNR of -50 a long first step has weights of 1e9.
    rounding = 1e-3 if 1e6 < levels[0] < math.inf else 1e-9
    assert (x[0] - alpha * POINT).norm() <= rounding + 8 * sigma, told
    if sigma > 0:
        return  # such a schedule does not end with an answer, but with a step of the method
    # An answer is a mean of the points; guidance goes away from one by the scale less one and towards one by the scale.
    farthest = MEANS.norm(dim=1).max().item() * max(1.0, 2 * scale - 1)
    # A state that a long step of higher order threw far off costs digits when x0 is formed from it: a hundredth.
    assert x[1:].norm(dim=1).max() <= alpha * farthest + 0.01, told
    if scale <= 1 and told.steps >= 20 and levels[-1] <= CLEAR and levels[-2] <= 4 * CLEAR:
        assert torch.cdist(x[1:], alpha * MEANS).min(dim=1).values.max() <= 0.1, told


def run(told: Combination) -> Tensor | None:
    """Return samples ``(BATCH, 2)``; None where the combination is refused.

    That is by a sentence that says what is expected, or by an adaptive sampler whose tolerance cannot be met: the
    guided field of points all but jumps where little noise is left.
    """
    rng = Rng.of(1, BATCH)
    x = Gaussian(told.schedule).prior((2,), rng=rng, dtype=torch.float64)
    label = torch.arange(BATCH) % len(MEANS)
    denoiser = guided(told.schedule, told.parameterization, told.scale)
    try:
        with torch.inference_mode():
            return sample(
                denoiser, told.sampler, told.grid.times(told.schedule, told.steps), x, {"label": label}, rng=rng
            )
    except (ValueError, FloatingPointError) as error:
        documented = "expected" if isinstance(error, ValueError) else "allow a larger rtol and atol"
        if documented in str(error) and (told.scale > 1 or isinstance(error, ValueError)):
            return None
        raise


def test_every_pair_of_settings_works_together(all_of: Representatives) -> None:
    factors = factors_of(all_of)
    rules = Rules(factors)

    def allow(values: Sequence[Any]) -> bool:
        sampler, *_, steps, _ = values
        cheap = sampler is None or steps is None or steps <= 2 or sampler.evaluations(steps) <= MOST_EVALUATIONS
        return cheap and rules.allow(values)

    everything = (*factors, STEPS, SCALES)
    rows = list(covering(everything, allow))
    refused = 0
    for values in rows:
        one = Combination(*values)
        found = run(one)
        refused += found is None
        check(found, one)
    # All but a few run, or nothing would be shown; the rules know most of what is refused.
    assert refused <= len(rows) // 50
    for factor, met in zip(everything, zip(*rows, strict=True), strict=True):
        assert {id(value) for value in factor} == {id(value) for value in met}


@pytest.mark.slow
def test_all_settings_work_together(sampler: Sampler, all_of: Representatives) -> None:
    factors = ([sampler], *factors_of(all_of)[1:])
    rules = Rules(factors)
    for turn, (schedule, grid, steps) in enumerate(product(factors[1], factors[2], STEPS)):
        settings = [
            (parameterization, scale)
            for parameterization, scale in product(factors[3], SCALES)
            if rules.allow((sampler, schedule, grid, parameterization, steps, scale))
        ]
        if settings:
            # One further after each round of the steps, so that each of them meets each of the settings.
            parameterization, scale = settings[(turn + turn // len(STEPS)) % len(settings)]
            one = Combination(sampler, schedule, grid, parameterization, steps, scale)
            check(run(one), one)


def test_a_covering_sample_holds_every_allowed_pair() -> None:
    factors = [range(4), range(3), range(3), range(2)]

    def allow(values: Sequence[Any]) -> bool:
        return not (values[0] == 0 and values[1] == 1)

    rows = list(covering(factors, allow))
    for i, j in combinations(range(4), 2):
        pairs = {(row[i], row[j]) for row in rows}
        expected = {(a, b) for a, b in product(factors[i], factors[j]) if not (i == 0 and j == 1 and (a, b) == (0, 1))}
        assert pairs == expected
    assert len(rows) < 4 * 3 * 3 * 2 / 2
