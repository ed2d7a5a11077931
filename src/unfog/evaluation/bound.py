"""Bits per dimension: the variational bound of a model on a set of pictures, term by term.

The bound is that of a chain of steps, each with the variance of the posterior, with that of the forward step, or with a
learned one; or that of continuous time. Each example meets its own times, one in each of equally many stretches along a
density that draws levels in proportion to the fall of the log-SNR there, which makes the terms alike; times are shifted
from example to example so that all together cover the stretches evenly. What is drawn more often weighs less, so the
estimate is unbiased. The interval is over examples.

A chain ends where the schedule does. In continuous time the bound is infinite where the log-SNR is, so it is cut off:
at the clean side where noise is as large as half a bin of the 256 levels (or where the schedule, or the first level of
a table, ends before), at the noisy side at a log-SNR of -12. Each cut gives the bound of a chain that begins and ends
there, and is as good a bound as any.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 5 and 13. Kingma, Salimans, Poole, Ho 2021 (2107.00630): continuous
    time, and times that cover the density evenly. Nichol, Dhariwal 2021 (2102.09672): learned variances, and the curve
    of the terms.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfog.data.dataset import Dataset
from unfog.diffusion.bound import (
    HALF_BIN,
    decoder_term,
    prior_term,
    rate_term,
    require_levels,
    step_log_variance,
    step_term,
)
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import CleanEnd, Schedule, Tabulated
from unfog.diffusion.times import Stratified, Uniform
from unfog.evaluation.loss import Means, chosen_examples, evaluating, means_of
from unfog.metrics.interval import Score, mean
from unfog.sampling.conditioning.conditioner import Conditioner

CLEANEST = -2.0 * math.log(HALF_BIN)
"""Log-SNR at which noise has the deviation of half a bin, 11.1."""

NOISIEST = -12.0
"""Log-SNR beyond which nothing of the data is left: what is cut off there is below 1e-5 nats for each element."""

_REACH = 20.0
"""Log-SNRs beyond plus and minus this count as this, where levels are drawn in proportion to their fall."""

_EVEN = 0.1
"""Share of the draws that go evenly to all steps of a chain, so that none is left out."""

_BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        count: most examples, at least 2; a fixed random choice of the set.
        draws: times for each example, at least 1.
        steps: of the chain, at least 2; None takes the levels of a table, or 1000.
        seed: of the choice, the times and the noise.
        batch_size: examples at a time; it changes speed and memory only.
    """

    count: int = 256
    draws: int = 32
    steps: int | None = None
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(self.count >= 2, f"a count of at least 2 examples to tell a spread from, got {self.count}")
        require(self.draws >= 1, f"at least 1 of draws for each example, got {self.draws}")
        require(self.steps is None or self.steps >= 2, f"at least 2 steps of the chain, got {self.steps}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Curve:
    """The term of diffusion along time, from clean to noisy, one number a stretch.

    Attributes:
        times: mean of the times that were drawn.
        log_snr: mean of their log-SNRs, as far as these are finite.
        terms: bits per dimension of one step of the chain, ``L_{t-1}``; in continuous time of a unit of log-SNR.
        shares: bits per dimension of the stretch; they add up to the term of diffusion.
    """

    times: tuple[float, ...]
    log_snr: tuple[float, ...]
    terms: Means
    shares: Means


@dataclass(frozen=True)
class Bound:
    """One bound on a set, its terms in bits per dimension.

    Attributes:
        method: "continuous time", or the variance of the steps of the chain.
        steps: of the chain; None in continuous time.
        total: the bound.
        prior: ``L_T``.
        diffusion: the sum of all ``L_{t-1}``.
        reconstruction: ``L_0``.
        nats: the bound in nats for a whole example.
        curve: the term of diffusion along time.
    """

    method: str
    steps: int | None
    total: Score
    prior: Score
    diffusion: Score
    reconstruction: Score
    nats: Score
    curve: Curve


@dataclass(frozen=True)
class Bounds:
    """All bounds of a model on a set.

    Attributes:
        dataset: name of the set.
        count: examples.
        dimensions: of one example.
        conditions: names of the conditions that were given; of each example the density given its own is bounded.
        draws: times for each example.
        seed: of the choice, the times and the noise.
        bounds: continuous time first.
    """

    dataset: str
    count: int
    dimensions: int
    conditions: tuple[str, ...]
    draws: int
    seed: int
    bounds: tuple[Bound, ...]

    @property
    def best(self) -> Bound:
        """The lowest."""
        return min(self.bounds, key=lambda bound: bound.total.value)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)


def measure_bounds(
    denoiser: Denoiser, conditioner: Conditioner, dataset: Dataset, effort: Effort | None = None
) -> Bounds:
    """Bound the negative log-likelihood of a set, in continuous time and for a chain with each variance that there is.

    Args:
        denoiser: of a Gaussian process.
        conditioner: conditions are given, never dropped.
        dataset: pictures of 8 bits.
        effort: how much is measured.

    Raises:
        ValueError: if the data are not of 8 bits, or the process is not Gaussian.
    """
    effort, process = effort or Effort(), denoiser.process
    if not isinstance(process, Gaussian):
        raise ValueError(f"expected a Gaussian process, which the bound is of, got {type(process).__name__}")
    line, chain = _Line.of(process.schedule), _Chain.of(process, effort.steps)
    found: dict[str, list[_Terms]] = {}
    names: tuple[str, ...] = ()
    with evaluating(denoiser):
        for asked in _batches(denoiser, process, conditioner, dataset, effort):
            names = tuple(asked.cond)
            found.setdefault("continuous time", []).append(line.terms(asked, effort.draws))
            for variance, terms in chain.terms(asked, effort.draws).items():
                found.setdefault(f"{variance} variance", []).append(terms)
    info = dataset.info
    count, size = min(effort.count, len(dataset)), math.prod(info.fields["x0"].shape)
    note = f"{count} examples of {info.name}, {effort.draws} times each, seed {effort.seed}"
    note += f", given {', '.join(names)}" if names else ""
    bounds = tuple(
        _bound(method, None if method == "continuous time" else chain.steps, parts, size, note)
        for method, parts in found.items()
    )
    return Bounds(info.name, count, size, names, effort.draws, effort.seed, bounds)


class _Asked(NamedTuple):
    """Examples, their keys, and the denoiser that is asked about them."""

    denoiser: Denoiser
    process: Gaussian
    x0: Tensor
    cond: Cond
    rng: Rng

    def at(self, t: Tensor, draw: int) -> Prediction:
        """Return what the denoiser says at times ``(B,)``, with the noise of a draw."""
        noise = self.process.noise_like(self.x0, rng=self.rng.at(draw))
        answer: Prediction = self.denoiser(self.process.add_noise(self.x0, noise, t), t, self.cond)
        return answer

    def places(self, draws: int) -> Tensor:
        """Return numbers in (0, 1), ``(draws, B)`` float64: for each example one in each of as many equal stretches."""
        shift = Stratified(Uniform()).uniforms(self.rng)
        return (torch.arange(draws, device=shift.device)[:, None] + shift) / draws

    def left_noisy(self, log_snr: Tensor, draw: int) -> Tensor:
        """Return ``L_0`` of each example at an end that leaves some noise: the decoder is a Gaussian of that noise."""
        noise = self.process.noise_like(self.x0, rng=self.rng.at(draw))
        blurred = self.x0.double() + torch.exp(-0.5 * log_snr) * noise
        return _summed(decoder_term(self.x0, blurred, -log_snr))


class _Terms(NamedTuple):
    """The terms of one bound for some examples, in nats for a whole example.

    Attributes:
        prior: ``(B,)``.
        reconstruction: ``(B,)``.
        diffusion: ``(draws, B)``: each draw's estimate of the whole term.
        terms: ``(draws, B)``: of the step that was drawn, or in continuous time of a unit of log-SNR.
        times: ``(draws, B)``.
        log_snr: ``(draws, B)``.
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor
    terms: Tensor
    times: Tensor
    log_snr: Tensor


class _Line(NamedTuple):
    """The bound in continuous time, between two log-SNRs."""

    schedule: Schedule
    clean: float
    noisy: float

    @staticmethod
    def of(schedule: Schedule) -> "_Line":
        """Return it with the ends of a schedule, cut off where they are infinite."""
        first = torch.zeros((), dtype=torch.float64)
        if isinstance(schedule, Tabulated):
            first = schedule.time_of(first)  # below it a table has not been trained
        clean, noisy = schedule.log_snr(torch.stack([first, torch.ones_like(first)])).tolist()
        clean, noisy = min(clean, CLEANEST), max(noisy, NOISIEST)
        require(noisy < clean, f"a schedule whose log-SNR meets [{NOISIEST:g}, {CLEANEST:.3g}]")
        return _Line(schedule, clean, noisy)

    def terms(self, asked: _Asked, draws: int) -> _Terms:
        span = self.clean - self.noisy
        log_snr = self.clean - span * asked.places(draws)
        t = self.schedule.time(log_snr)
        rates = torch.stack(
            [
                _summed(rate_term(asked.x0 - asked.at(t[draw], draw).x0, self.schedule.log_snr(t[draw])))
                for draw in range(draws)
            ]
        )
        clean, noisy = t.new_tensor([self.clean, self.noisy])
        return _Terms(
            _summed(prior_term(asked.x0, noisy)), asked.left_noisy(clean, draws), span * rates, rates, t, log_snr
        )


class _Chain(NamedTuple):
    """The bound of a chain of steps.

    Attributes:
        process: the Gaussian process.
        nodes: ``(N + 1,)`` float64 times, rising to 1, between which the reverse steps lie that leave noise.
        shares: ``(N,)``, how often each of them is drawn.
        steps: of the whole chain, the last one to clean data included.
    """

    process: Gaussian
    nodes: Tensor
    shares: Tensor
    steps: int

    @staticmethod
    def of(process: Gaussian, steps: int | None) -> "_Chain":
        """Return the chain of evenly spaced times; None stands for a table's own levels, or 1000."""
        schedule = process.schedule
        if steps is None:
            steps = 1000
            if isinstance(schedule, Tabulated):
                steps = schedule.levels - (schedule.clean is CleanEnd.FIRST_LEVEL)
        nodes = torch.arange(steps + 1, dtype=torch.float64) / steps
        if schedule.sigma(nodes[0]) == 0:
            nodes = nodes[1:]
        fall = -schedule.log_snr(nodes).clamp(-_REACH, _REACH).diff()
        shares = (1.0 - _EVEN) * fall / fall.sum() + _EVEN / len(fall)
        return _Chain(process, nodes, shares, steps)

    def terms(self, asked: _Asked, draws: int) -> dict[str, _Terms]:
        """Return the terms by the variance of the reverse step."""
        device, schedule = asked.x0.device, self.process.schedule
        nodes, shares = self.nodes.to(device), self.shares.to(device)
        step = torch.searchsorted(shares.cumsum(0)[:-1].contiguous(), asked.places(draws))
        s, t = nodes[step], nodes[step + 1]
        drawn: dict[str, list[Tensor]] = {}
        for draw in range(draws):
            prediction = asked.at(t[draw], draw)
            error = asked.x0 - prediction.x0
            for variance, fraction in _fractions(prediction).items():
                term = _summed(step_term(self.process, s[draw], t[draw], error, fraction))
                drawn.setdefault(variance, []).append(term)
        prior = _summed(prior_term(asked.x0, schedule.log_snr(nodes[-1])))
        last = self._last(asked, nodes, draws)
        log_snr = schedule.log_snr(t).clamp(-_REACH, _REACH)
        found = {}
        for variance, list_of_terms in drawn.items():
            terms = torch.stack(list_of_terms)
            found[variance] = _Terms(prior, last[variance], terms / shares[step], terms, t, log_snr)
        return found

    def _last(self, asked: _Asked, nodes: Tensor, draw: int) -> Mapping[str, Tensor]:
        """Return ``L_0`` by the variance: of the last step, or of the noise that the chain leaves.

        The last step has the mean x0_hat. The posterior's variance is 0 there; that of the step before stands for it.
        """
        t = nodes[0].expand(len(asked.x0))
        if len(nodes) == self.steps + 1:
            noisy = asked.left_noisy(self.process.schedule.log_snr(nodes[0]), draw)
            return dict.fromkeys(("posterior", "beta", "learned"), noisy)
        prediction = asked.at(t, draw)
        low = step_log_variance(self.process, nodes[0], nodes[1], 0.0)
        high = 2.0 * self.process.schedule.sigma(nodes[0]).log()
        return {
            variance: _summed(decoder_term(asked.x0, prediction.x0, low + fraction * (high - low)))
            for variance, fraction in _fractions(prediction).items()
        }


def _fractions(prediction: Prediction) -> dict[str, Tensor | float]:
    """Return the variances that there are, as fractions of the way from the posterior's to the forward step's."""
    fixed: dict[str, Tensor | float] = {"posterior": 0.0, "beta": 1.0}
    learned = prediction.variance_fraction
    return fixed if learned is None else {**fixed, "learned": learned.double()}


def _batches(
    denoiser: Denoiser, process: Gaussian, conditioner: Conditioner, dataset: Dataset, effort: Effort
) -> Iterator[_Asked]:
    """Yield the chosen examples with their conditions and keys."""
    ids = chosen_examples(dataset, effort.count, effort.seed)
    device = next(denoiser.parameters(), ids).device
    for start in range(0, len(ids), effort.batch_size):
        some = ids[start : start + effort.batch_size]
        values = {name: value.to(device) for name, value in dataset.gather(some).items()}
        x0 = values["x0"].float()
        require_levels(x0)
        places = torch.arange(start, start + len(some))
        rng = Rng.of(seed_of("bound", effort.seed), some, position=places, device=device)
        yield _Asked(denoiser, process, x0, conditioner(values), rng)


def _bound(method: str, steps: int | None, parts: Sequence[_Terms], size: int, note: str) -> Bound:
    """Return the bound over all examples.

    Args:
        method: which one it is.
        steps: of the chain.
        parts: of the examples.
        size: elements of an example.
        note: of all scores.
    """
    whole = _Terms(*(torch.cat(pieces, -1).cpu() for pieces in zip(*parts, strict=True)))
    diffusion = whole.diffusion.mean(0)
    total = whole.prior + diffusion + whole.reconstruction
    unit = _BITS / size

    def score(values: Tensor, what: str) -> Score:
        return mean(unit * values, note=f"{what} in bits per dimension of 256 levels, {note}")

    return Bound(
        method=method,
        steps=steps,
        total=score(total, f"variational bound, {method}"),
        prior=score(whole.prior, "prior term"),
        diffusion=score(diffusion, "diffusion term"),
        reconstruction=score(whole.reconstruction, "reconstruction term"),
        nats=mean(total, note=f"variational bound, {method}, in nats for an example, {note}"),
        curve=Curve(
            tuple(whole.times.mean(1).tolist()),
            tuple(whole.log_snr.mean(1).tolist()),
            means_of(unit * whole.terms),
            means_of(unit / len(whole.diffusion) * whole.diffusion),
        ),
    )


def _summed(values: Tensor) -> Tensor:
    """Return sums over the elements of each example, ``(B,)``."""
    return values.flatten(1).sum(1)
