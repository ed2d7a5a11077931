"""Samplers measured against the exact solution: error against evaluations, order of convergence, law of the samples.

A sampler without noise solves the probability-flow ODE: its *path error* is the mean distance between its samples and
the exact solution from the same noise. It is split: the *jump* is what the last step, to clean data, would add to an
exact state before it, whatever the sampler. Its *order* is measured on a fixed interval of log-SNR that ends before
clean data, for the jump spoils the order of every method.

A sampler that injects noise is right if its samples have the right law: its *law error* is the sliced Wasserstein
distance of its samples to the mixture, and its order that of the variance of Gaussian data, which a table propagates
in closed form.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.lab.field import Field, Predicting, times_between
from unfog.evaluation.lab.law import exact_quantiles, quantiles_of, sliced_distance
from unfog.metrics.interval import Score, mean
from unfog.sampling.grid import TimeGrid, Trailing
from unfog.sampling.sampler import Sampler, Step, TableSampler, require_finite
from unfog.sampling.table import gaussian_moments

INTERVAL = (-5.0, 4.0)
"""Of log-SNR: where orders are measured."""
FLOOR = 1e-10
"""Errors below are not told from those of the exact solution."""
_LIMIT_STEPS = 400
_PATHS = 500
_PATH_RTOL = 1e-8  # the path error is told in a few digits; orders need more
"""Samples whose exact solution is computed for the path error."""
_ORDER_PATHS = 200


@dataclass(frozen=True)
class Setup:
    """What a sampler is run on.

    Attributes:
        field: the mixture, and how it is guided.
        schedule: the noise schedule.
        grid: the times of the samplers' steps.
        parameterization: through which the exact answer passes.
        dtype: of the network's output that it passes through; the states are float64.
        samples: how many.
        seed: of their noise.
    """

    field: Field
    schedule: Schedule
    grid: TimeGrid
    parameterization: Parameterization
    dtype: torch.dtype = torch.float64
    samples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.samples >= 50, f"at least 50 samples for intervals that mean something, not {self.samples}")
        self.parameterization.check(self.schedule)

    def denoiser(self, count: int) -> Denoiser:
        """Return what the samplers ask, for a batch of the first samples."""
        exact = self.field.mixture.denoiser(self.schedule)
        return self.field.guide(Predicting(exact, self.parameterization, self.dtype), count)

    def rng(self, count: int, purpose: str = "sampling") -> Rng:
        """Return a key for each of the first samples."""
        return Rng.of(seed_of("laboratory", purpose, self.seed), count)

    def prior(self, count: int, purpose: str = "sampling") -> Tensor:
        """Return the noise that every sampler starts from, ``(count, 2)`` float64."""
        return Gaussian(self.schedule).prior((2,), rng=self.rng(count, purpose), dtype=torch.float64)


class Run(NamedTuple):
    """A whole trajectory: steps, evaluations of the denoiser (a sampler's own count), and seconds."""

    steps: list[Step]
    evaluations: int
    seconds: float


class Reading(NamedTuple):
    """What one sampler did on a grid of some steps.

    Attributes:
        steps: of the grid.
        evaluations: of the denoiser.
        seconds: wall time for all samples, which tells little.
        path: distance to the exact solution; None if the sampler injects noise.
        jump: what of it the last step alone would make; None where ``path`` is, and where no step goes to clean data.
        law: distance of the samples' law to the right one.
    """

    steps: int
    evaluations: int
    seconds: float
    path: Score | None
    jump: float | None
    law: Score


class Refusal(NamedTuple):
    """A number of steps at which a sampler or a grid said no, and why."""

    steps: int
    reason: str


class Order(NamedTuple):
    """The order of convergence on the fixed interval.

    Attributes:
        claimed: by the sampler; None if it claims none.
        slope: measured: minus the slope of log error over log evaluations; None if fewer than two errors could be told
            from those of the exact solution.
        spread: standard error of the slope; None of two points.
        evaluations: numbers of evaluations.
        errors: at each of them.
        of: "path" or "variance".
    """

    claimed: int | None
    slope: float | None
    spread: float | None
    evaluations: tuple[int, ...]
    errors: tuple[float, ...]
    of: str


@dataclass(frozen=True)
class Result:
    """What a sampler did.

    Attributes:
        name: of the sampler.
        sampler: itself.
        noisy: whether it injects noise.
        readings: one a number of steps that was not refused.
        refusals: the others.
        order: None where none can be measured: of a sampler that injects noise and is no table.
    """

    name: str
    sampler: Sampler
    noisy: bool
    readings: tuple[Reading, ...]
    refusals: tuple[Refusal, ...]
    order: Order | None


class Counting(Denoiser):
    """Counts the evaluations of a denoiser, of a batch or of some examples of it.

    Args:
        denoiser: answers.
        asked: where the evaluations are noted, one element each; a list of its own unless given.
    """

    def __init__(self, denoiser: Denoiser, asked: list[int] | None = None) -> None:
        super().__init__()
        self.process, self.denoiser = denoiser.process, denoiser
        self.asked: list[int] = [] if asked is None else asked

    def select(self, index: Tensor) -> Denoiser:
        return Counting(self.denoiser.select(index), self.asked)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.asked.append(len(x_t))
        prediction: Prediction = self.denoiser(x_t, t, cond)
        return prediction


class Laboratory:
    """A setup with what all its samplers share: exact solutions and laws, computed once.

    Args:
        setup: what the samplers run on.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._solutions: dict[tuple[float, ...], list[Tensor]] = {}

    def result(self, name: str, sampler: Sampler, steps: Sequence[int], order_steps: Sequence[int] = ()) -> Result:
        """Run a sampler at some numbers of steps, and measure its order.

        Args:
            name: what it is called.
            sampler: the method.
            steps: of the setup's grid.
            order_steps: of the interval, from which the order is regressed; none measures no order.
        """
        noisy = self.is_noisy(sampler)
        law, readings, refusals = self._law(sampler, noisy=noisy), list[Reading](), list[Refusal]()
        for count in steps:
            try:
                readings.append(self._reading(sampler, count, law, noisy=noisy))
            except (ValueError, FloatingPointError) as error:
                refusals.append(Refusal(count, str(error)))
        order = self.order(sampler, order_steps, noisy=noisy) if order_steps else None
        return Result(name, sampler, noisy, tuple(readings), tuple(refusals), order)

    def times(self, steps: int) -> Tensor:
        """Return the times of the setup's grid."""
        return self.setup.grid.times(self.setup.schedule, steps)

    def run(self, sampler: Sampler, times: Tensor, x: Tensor, purpose: str = "sampling") -> Run:
        """Run a sampler from given states of the first samples.

        Raises:
            ValueError: if the sampler refuses the grid.
            FloatingPointError: if the result is not finite.
        """
        denoiser, cond = Counting(self.setup.denoiser(len(x))), self.setup.field.cond(len(x))
        rng = self.setup.rng(len(x), purpose)
        began = time.perf_counter()
        with torch.inference_mode():
            steps = list(sampler.steps(denoiser, x, times, cond, rng=rng))
        seconds = time.perf_counter() - began
        require_finite(steps[-1].x)
        return Run(steps, len(denoiser.asked), seconds)

    def _reading(self, sampler: Sampler, steps: int, law: Tensor, *, noisy: bool) -> Reading:
        times = self.times(steps)
        run = self.run(sampler, times, self.setup.prior(self.setup.samples))
        x, path, jump = run.steps[-1].x, None, None
        if not noisy:
            before, exact = self.solution((times[0].item(), times[-2].item(), times[-1].item()))[-2:]
            path = mean((x[: len(exact)] - exact).norm(dim=1), note="distance to the exact solution")
            jump = self._jump(times, before, exact)
        distance = sliced_distance(x, law, seed=self.setup.seed)
        return Reading(steps, run.evaluations, run.seconds, path, jump, distance)

    def order(self, sampler: Sampler, steps: Sequence[int], *, noisy: bool) -> Order | None:
        """Measure the order of convergence on the interval, on grids uniform in log-SNR.

        Args:
            sampler: the method.
            steps: of the grids, rising; what the sampler refuses is left out.
            noisy: whether it injects noise.
        """
        if noisy and not isinstance(sampler, TableSampler):
            return None
        points = list[tuple[int, float]]()
        for count in steps:
            try:
                times = times_between(self.setup.schedule, *INTERVAL, count)
                if isinstance(sampler, TableSampler) and noisy:
                    points.append(self.variance_error(sampler, times))
                else:
                    points.append(self.path_error(sampler, times))
            except (ValueError, FloatingPointError):
                continue
        slope, spread = regressed(points)
        costs, errors = tuple(cost for cost, _ in points), tuple(error for _, error in points)
        claimed = sampler.claimed_order if isinstance(sampler, TableSampler) else None
        return Order(claimed, slope, spread, costs, errors, "variance" if noisy else "path")

    def is_noisy(self, sampler: Sampler) -> bool:
        """Tell whether a sampler injects noise: whether the same start gives other samples with other keys."""
        times = Trailing().times(self.setup.schedule, 12)
        x = self.setup.prior(8)
        runs = [self.run(sampler, times, x, purpose).steps[-1].x for purpose in ("one", "other")]
        return not torch.equal(*runs)

    def solution(self, times: tuple[float, ...]) -> list[Tensor]:
        """Return the exact solution from the noise of the first samples at some times; it is kept."""
        if times not in self._solutions:
            prior = self.setup.prior(min(_PATHS, self.setup.samples))
            self._solutions[times] = self.setup.field.solve(self.setup.schedule, prior, times, rtol=_PATH_RTOL)
        return self._solutions[times]

    def start(self) -> Tensor:
        """Return states with the exact marginal at the beginning of the interval."""
        t = times_between(self.setup.schedule, *INTERVAL, 1)[0]
        count, process = min(_ORDER_PATHS, self.setup.samples), Gaussian(self.setup.schedule)
        data = self.setup.field.mixture.draw(self.setup.rng(count, "data"))
        return process.add_noise(data, process.noise_like(data, rng=self.setup.rng(count, "noise")), t)

    def path_error(self, sampler: Sampler, times: Tensor) -> tuple[int, float]:
        """Return evaluations and mean distance to the exact solution at the end of times that span the interval."""
        run = self.run(sampler, times, self.start())
        return run.evaluations, float((run.steps[-1].x - self.end).norm(dim=1).mean())

    @cached_property
    def end(self) -> Tensor:
        """The exact solution at the end of the interval."""
        low, high = times_between(self.setup.schedule, *INTERVAL, 1).tolist()
        return self.setup.field.solve(self.setup.schedule, self.start(), (low, high))[-1]

    def variance_error(self, sampler: TableSampler, times: Tensor) -> tuple[int, float]:
        """Return evaluations and error of the variance at the end of such times, for Gaussian data, in closed form."""
        schedule, data = self.setup.schedule, self.setup.field.mixture.denoiser(self.setup.schedule)
        mean_0, variance_0 = data.data_mean[0].item(), data.data_variance[0].item()
        start, end = (
            (alpha * mean_0, alpha**2 * variance_0 + sigma**2)
            for alpha, sigma in zip(*(scale[[0, -1]].tolist() for scale in schedule.scales(times)), strict=True)
        )
        rows = sampler.table(schedule, times)
        found = gaussian_moments(rows, schedule, mean_0, variance_0, start=start)
        return len(rows), abs(found[1] - end[1])

    def _jump(self, times: Tensor, before: Tensor, exact: Tensor) -> float | None:
        """Return how far the last step alone leads an exact state from the exact solution."""
        schedule = self.setup.schedule
        if schedule.sigma(times[-1]) > 0:
            return None
        with torch.inference_mode():
            x0 = self.setup.denoiser(len(before))(before, times[-2], self.setup.field.cond(len(before))).x0
        alpha = schedule.alpha(times[-1]).item()
        return float((alpha * x0 - exact).norm(dim=1).mean())

    def floor(self) -> Score | None:
        """Return the law error of as many exact samples; None where the law is not known in closed form."""
        if self.setup.field.guidance is not None:
            return None
        exact = self.setup.field.mixture.draw(self.setup.rng(self.setup.samples, "floor"))
        return sliced_distance(exact, self._exact_quantiles, seed=self.setup.seed)

    def _law(self, sampler: Sampler, *, noisy: bool) -> Tensor:
        """Return the right quantiles along each direction, ``(samples, directions)``.

        A guided field is no score of any data: its ODE and its SDE end in different laws, and a sampler with noise is
        compared with its own limit.
        """
        if self.setup.field.guidance is None:
            return self._exact_quantiles
        if not noisy:
            prior = self.setup.prior(self.setup.samples, "limit")
            return quantiles_of(self.setup.field.curve(self.setup.schedule, prior, (1.0, 0.0))[-1])
        limit = self.run(sampler, self.times(_LIMIT_STEPS), self.setup.prior(self.setup.samples, "limit"), "limit")
        return quantiles_of(limit.steps[-1].x)

    @cached_property
    def _exact_quantiles(self) -> Tensor:
        alpha, sigma = (scale.item() for scale in self.setup.schedule.scales(torch.zeros((), dtype=torch.float64)))
        return exact_quantiles(self.setup.field.mixture, self.setup.samples, alpha, sigma)


def regressed(points: Sequence[tuple[int, float]]) -> tuple[float | None, float | None]:
    """Return the order: minus the slope of log error over log cost by least squares, and its standard error.

    Points whose error is below the floor are left out; two make a slope, three a standard error.
    """
    told = [(math.log(cost), math.log(error)) for cost, error in points if error > FLOOR]
    if len(told) < 2:
        return None, None
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*told, strict=True))
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx @ dy / dx.square().sum()).item()
    if len(told) == 2:
        return -slope, None
    residual = (dy - slope * dx).square().sum() / (len(told) - 2)
    return -slope, (residual / dx.square().sum()).sqrt().item()
