"""The loss where it can be read: on examples that were not trained on, and at each noise level apart.

The training loss mixes all noise levels, of which some are hopeless and some trivial, so its value alone says little.
Here the same examples with the same noise are judged at fixed levels, next to a network that always answers 0. The
same on training examples shows overfitting: the two curves part.

An error of the prediction F becomes one of x0 by the factor ``x0_out^2`` of the level (``parameterization``), so both
are had from one evaluation.

Source: D. P. Kingma, T. Salimans, B. Poole and J. Ho, "Variational diffusion models", 2021, arXiv 2107.00630,
appendix I.1: times that cover the density evenly lower the variance of the estimate, here for the overall number.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.times import Stratified
from unfog.metrics.interval import Score, mean
from unfog.tasks.denoising import Denoising, Errors

REACH = 10.0
"""Log-SNRs beyond plus and minus this are not looked at: there x_t is all but clean, or all but noise."""

LONE_DRAWS = 8
"""Noises at each level for the only example of a set, which has no spread over examples: theirs stands for it."""


@dataclass(frozen=True)
class Means:
    """Means over the examples, or over the noises of an only one, one a level, and their standard errors."""

    values: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class LossCurve:
    """Mean squared errors by noise level, from clean to noisy.

    Attributes:
        dataset: name of the set that the examples come from.
        count: how many examples, the same at every level.
        times: of the levels.
        log_snr: of the levels.
        weight: what the training loss multiplies the errors by.
        prediction: squared error of the network's prediction, per element.
        zero: that of a network that always answers 0.
        x0: squared error of the estimate of x0 that follows from the prediction, per element of data in [-1, 1].
    """

    dataset: str
    count: int
    times: tuple[float, ...]
    log_snr: tuple[float, ...]
    weight: tuple[float, ...]
    prediction: Means
    zero: Means
    x0: Means

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as a dictionary that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "LossCurve":
        """Return the curve that ``to_dict`` turned into a dictionary."""
        means = {
            name: Means(*(tuple(stored[name][part]) for part in ("values", "errors")))
            for name in ("prediction", "zero", "x0")
        }
        levels = {name: tuple(stored[name]) for name in ("times", "log_snr", "weight")}
        return LossCurve(**{**stored, **means, **levels})


@dataclass(frozen=True)
class ExpectedLoss:
    """What training minimises, as it is on one set: the weighted error, expected over the density of the times.

    Attributes:
        network: of the network.
        zero: of a network that always answers 0.
    """

    network: Score
    zero: Score

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "ExpectedLoss":
        """Return the numbers that ``to_dict`` turned into a dictionary."""
        return ExpectedLoss(Score(**stored["network"]), Score(**stored["zero"]))


def noise_levels(schedule: Schedule, count: int = 24) -> Tensor:
    """Return times that are evenly spaced in log-SNR, as far as the schedule reaches within ``REACH``.

    Args:
        schedule: the noise schedule.
        count: how many levels, at least 2.

    Returns:
        ``(count,)`` float64, rising.

    Raises:
        ValueError: if fewer than two are asked for, or the schedule lies outside.
    """
    require(count >= 2, f"at least 2 noise levels, got {count}")
    clean, noisy = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).clamp(-REACH, REACH).tolist()
    require(clean > noisy, f"a schedule whose log-SNR meets [-{REACH:g}, {REACH:g}], got {type(schedule).__name__}")
    return schedule.time(torch.linspace(clean, noisy, count, dtype=torch.float64))


def loss_by_level(
    task: Denoising,
    dataset: Dataset,
    *,
    times: Tensor | None = None,
    count: int = 512,
    seed: int = 0,
    batch_size: int = 256,
) -> LossCurve:
    """Measure the errors at fixed noise levels, each on the same examples with the same noise.

    The only example of a set is looked at with ``LONE_DRAWS`` noises, again the same at every level.

    Args:
        task: its denoiser is measured; conditions are given, never dropped.
        dataset: the examples.
        times: ``(L,)`` of the levels, in (0, 1]; ``noise_levels`` unless given.
        count: most examples, at least 2; a fixed random choice of the set.
        seed: of the choice and of the noise.
        batch_size: examples at a time; it changes speed and memory only.

    Raises:
        ValueError: if a number is out of its range.
    """
    schedule = task.denoiser.process.schedule
    levels = (noise_levels(schedule) if times is None else times).double().cpu()
    draws = LONE_DRAWS if len(dataset) == 1 else 1
    rows = [
        _joined([_errors(task, dataset, count, seed, batch_size, level=t, draw=(r, draws)) for r in range(draws)])
        for t in levels
    ]
    alpha_t, sigma_t = schedule.alpha(levels), schedule.sigma(levels)
    factor = task.denoiser.parameterization.solve(alpha_t, sigma_t).x0_out.square()
    prediction = torch.stack([row.prediction for row in rows])  # (L, N)
    zero = torch.stack([row.zero for row in rows])
    return LossCurve(
        dataset=dataset.info.name,
        count=min(count, len(dataset)),
        times=tuple(levels.tolist()),
        log_snr=tuple(schedule.log_snr(levels).tolist()),
        weight=tuple(float(row.weight[0]) for row in rows),
        prediction=means_of(prediction),
        zero=means_of(zero),
        x0=means_of(prediction * factor[:, None]),
    )


def expected_loss(
    task: Denoising, dataset: Dataset, *, count: int = 512, draws: int = 8, seed: int = 0, batch_size: int = 256
) -> ExpectedLoss:
    """Measure the loss that training minimises on any set of examples.

    The times are quantiles of the training density along a low-discrepancy sequence: every example meets ``draws``
    levels, and all together cover the density evenly. The intervals are over the examples, and of the only example of a
    set over its draws.

    Args:
        task: its denoiser is measured; conditions are given, never dropped.
        dataset: the examples.
        count: most examples, at least 2; a fixed random choice of the set.
        draws: times and noises for each example, at least 1; at least 2 for the only example of a set.
        seed: of the choice, the times and the noise.
        batch_size: examples at a time; it changes speed and memory only.

    Raises:
        ValueError: if a number is out of its range.
    """
    require(draws >= 1, f"at least 1 draw for each example, got {draws}")
    rows = [_errors(task, dataset, count, seed, batch_size, draw=(r, draws)) for r in range(draws)]
    weighted, zeros = (
        torch.stack([row.weight * value for row, value in zip(rows, values, strict=True)])  # (draws, N)
        for values in ([row.prediction for row in rows], [row.zero for row in rows])
    )
    examples = weighted.shape[1]
    other = 0 if examples > 1 else 1  # the axis that the spread is not over
    what = f"{examples} examples" if examples > 1 else "the only example"
    note = f"weighted squared error, {what} of {dataset.info.name} at {draws} training times" + " each" * (examples > 1)
    network, zero = (
        replace(mean(values.mean(other), note=words), count=examples)
        for values, words in ((weighted, note), (zeros, f"{note}, of a network that always answers 0"))
    )
    return ExpectedLoss(network, zero)


def _joined(parts: Sequence[Errors]) -> Errors:
    return Errors(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def _errors(
    task: Denoising,
    dataset: Dataset,
    count: int,
    seed: int,
    batch_size: int,
    *,
    level: Tensor | None = None,
    draw: tuple[int, int] = (0, 1),
) -> Errors:
    """Return the errors of the chosen examples, ``(N,)`` float64, at one level or at times of the training density.

    Args:
        task: is measured.
        dataset: the examples.
        count: how many.
        seed: of everything.
        batch_size: examples at a time.
        level: the time of all; None takes the density's.
        draw: number of this draw and how many there are of each example, which decide times and noise.
    """
    require(batch_size >= 1, f"a batch_size of at least 1, got {batch_size}")
    ids = chosen_examples(dataset, count, seed)
    number, draws = draw
    device = next(task.denoiser.parameters(), ids).device
    schedule = task.denoiser.process.schedule
    parts: list[Errors] = []
    with evaluating(task):
        for start in range(0, len(ids), batch_size):
            some = ids[start : start + batch_size]
            values = {name: value.to(device) for name, value in dataset.gather(some).items()}
            positions = torch.arange(start, start + len(some)) * draws + number
            rng = Rng.of(seed_of("held-out loss", seed), some, step=number, position=positions, device=device)
            drawn = Stratified(task.times.at_end())
            t = drawn.draw(rng, schedule) if level is None else level.to(device).expand(len(some))
            errors = task.errors(values["x0"].float(), t, task.conditioner(values), rng=rng)
            parts.append(Errors(*(value.double().cpu() for value in errors)))
    return _joined(parts)


def chosen_examples(dataset: Dataset, count: int, seed: int) -> Tensor:
    """Return the numbers of at most ``count`` examples, ``(N,)``: a fixed random choice, since sets may be sorted.

    Raises:
        ValueError: if fewer than two are asked for.
    """
    require(count >= 2, f"a count of at least 2 examples to tell a spread from, got {count}")
    return torch.from_numpy(permutation(len(dataset), seed_of("held-out examples", seed), 0)[:count])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode for a while; every submodule then has the mode it had before."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def means_of(values: Tensor) -> Means:
    """Return means and standard errors over the second axis of ``(L, N)``."""
    errors = values.std(1) / values.shape[1] ** 0.5
    return Means(tuple(values.mean(1).tolist()), tuple(errors.tolist()))
