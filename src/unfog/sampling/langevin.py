"""Samplers with Langevin steps: moves at one noise level that have the distribution there as their equilibrium.

With the score ``g = (alpha x0 - x) / sigma^2`` a step of size e is ``x <- x + e g + sqrt(2 e) z``. It brings samples
whose marginal is a little wrong nearer to the right one, whatever made it wrong; its own discretisation leaves an error
of the order of e. None of these samplers has an order of convergence.

Sources:
    Song et al. 2021 (arXiv 2011.13456), algorithms 2 to 5: predictor and corrector. Song, Ermon 2019 (1907.05600),
    algorithm 1: annealed Langevin dynamics. Jolicoeur-Martineau et al. 2021 (2009.05475): a last step to the expected
    clean data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.diffusion.random import Purpose, Rng
from unfog.sampling.gaussian import DDPM
from unfog.sampling.noise import noises
from unfog.sampling.sampler import Sampler, Step, TableSampler, applied, instants
from unfog.sampling.table import Grid, Node, Row, transition

_LANGEVIN = 3 << 30
"""From here on are the keys of the noise of Langevin steps: those of tables lie below."""


def require_single(sampler: Sampler, role: str) -> None:
    """Raise ``ValueError`` unless a sampler is a table of one evaluation a step; the message names its role."""
    single = isinstance(sampler, TableSampler) and all(sampler.evaluations(steps) == steps for steps in (8, 9))
    require(single, f"{role} to be a table of one evaluation a step, such as DDIM() or DDPM(), not {sampler}")


def single_rows(sampler: Sampler, grid: Grid, role: str) -> list[Row]:
    """Return the rows of a table, each of which makes one move, of the state to the next node.

    Raises:
        ValueError: if some make others, as those of a method that corrects its states afterwards; the message names the
            role of the sampler.
    """
    assert isinstance(sampler, TableSampler)
    rows = list(sampler.rows(grid))
    plain = len(rows) == grid.steps and all(len(row.moves) == 1 and row.moves[0].commits for row in rows)
    require(plain, f"{role} to move once a step, such as DDIM(), or UniPC(corrector=False), not {sampler}")
    return rows


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A table, and after each of its steps but the one to clean data some Langevin steps.

    The step size is that of algorithms 4 and 5, ``2 (snr |z| / |g|)^2`` (in the latter times 1 - beta, near 1), for
    each sample by itself. The norm of z is taken as expected, sqrt(D). That of g comes near 0 for single samples of
    few dimensions, where the step would be without bound: it is taken as at least ``sqrt(D / (alpha^2 + sigma^2))``,
    which its root mean square exceeds for all data of variance up to 1.

    Attributes:
        predictor: a table of one evaluation a step.
        snr: ratio of the norms of drift and noise in a Langevin step, r of the paper.
        corrections: Langevin steps at a time.
    """

    predictor: Sampler = field(default_factory=DDPM)
    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        require_single(self.predictor, "predictor")
        require(0 < self.snr < 1, f"snr in (0, 1), not {self.snr}")
        require(self.corrections >= 1, f"corrections of at least 1, not {self.corrections}")

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
        grid = Grid.of(denoiser.process.schedule, times)
        rows = single_rows(self.predictor, grid, "predictor")
        depth = max(len(move.x0) for row in rows for move in row.all_moves)
        noise = noises(rows, x, rng)
        predicting = instants([row.t for row in rows], x.device).unbind()
        correcting = instants([row.s for row in rows], x.device).unbind()
        denoiser = denoiser.begin().prepared([*predicting, *correcting])
        total, index, estimates = self._count(grid), 0, list[Tensor]()
        for k, (row, s) in enumerate(zip(rows, grid[1:], strict=True)):
            if row.before is not None:
                x = applied(row.before, x, estimates, noise)
            x0 = denoiser(x, predicting[k], cond).x0
            estimates = [x0, *estimates[: depth - 1]]
            x = applied(row.moves[0], x, estimates, noise)
            yield Step(index, correcting[k], x, x0, (index + 1) / total)
            index += 1
            for j in range(self.corrections if s.t > 0 else 0):
                x0 = denoiser(x, correcting[k], cond).x0
                z = rng.at(_LANGEVIN + k * self.corrections + j).normal(x.shape[1:], Purpose.STEP).to(x)
                x = self._corrected(x, x0, z, s)
                yield Step(index, correcting[k], x, x0, (index + 1) / total)
                index += 1

    def check(self, denoiser: Denoiser, times: Tensor) -> None:
        single_rows(self.predictor, Grid.of(denoiser.process.schedule, times), "predictor")

    def evaluations(self, steps: int) -> int:
        return steps + self.corrections * (steps - 1)

    def _count(self, grid: Grid) -> int:
        return grid.steps + self.corrections * sum(node.t > 0 for node in grid[1:])

    def _corrected(self, x: Tensor, x0: Tensor, z: Tensor, s: Node) -> Tensor:
        drift = (s.alpha * x0 - x) / s.sigma**2
        elements = x[0].numel()
        square = drift.flatten(1).square().sum(1).clamp_min(elements / (s.alpha**2 + s.sigma**2))
        size = (2.0 * self.snr**2 * elements / square).reshape(-1, *(1,) * (x.ndim - 1))
        return x + size * drift + (2.0 * size).sqrt() * z


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Langevin steps at the noise levels of the grid, one after the other, and a last step to clean data.

    It is written for data with noise added, ``x / alpha``, which a fall of the noise level leaves as it is: the steps
    there have to take the surplus away. So neighbouring levels must lie close (the paper's ten from 1 to 0.01 have a
    ratio of 1.7), as on ``LogSNRUniform``. At the first level pure noise is in equilibrium already, and no step is
    made. From one without any signal noise is carried over at the size of the next level's.

    Attributes:
        rate: the step size over the variance of the noise, ``epsilon / sigma_L^2`` of the paper (2e-5 / 0.01^2).
        repeats: steps a level, T of the paper.
    """

    rate: float = 0.2
    repeats: int = 100

    def __post_init__(self) -> None:
        require(0 < self.rate < 2, f"rate in (0, 2), not {self.rate}: beyond it the noise grows")
        require(self.repeats >= 1, f"repeats of at least 1, not {self.repeats}")

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        require(len(rng) == len(x), f"one key per sample: {len(x)}, not {len(rng)}")
        grid = Grid.of(denoiser.process.schedule, times)
        ask = instants([node.t for node in grid], x.device).unbind()
        denoiser = denoiser.begin().prepared(ask)
        total, index = self.evaluations(grid.steps), 0
        for k in range(1, grid.steps):
            above, level = grid[k - 1], grid[k]
            x = x * (level.alpha / above.alpha if above.alpha > 0 else level.sigma / above.sigma)
            for _ in range(self.repeats):
                x0 = denoiser(x, ask[k], cond).x0
                z = rng.at(_LANGEVIN + index).normal(x.shape[1:], Purpose.STEP).to(x)
                x = x + (0.5 * self.rate) * (level.alpha * x0 - x) + (math.sqrt(self.rate) * level.sigma) * z
                yield Step(index, ask[k], x, x0, (index + 1) / total)
                index += 1
        x0 = denoiser(x, ask[-2], cond).x0
        move = transition(grid[-2], grid[-1])
        yield Step(index, ask[-1], applied(move, x, [x0], iter(())), x0, 1.0)

    def evaluations(self, steps: int) -> int:
        return (steps - 1) * self.repeats + 1
