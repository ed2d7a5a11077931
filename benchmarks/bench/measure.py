"""Timing in alternation, and what a measurement is: values of one thing, or of two beside each other.

A machine that others use drifts by a fifth within minutes. Contenders therefore take turns (A B C A B C ...), and what
is compared are the ratios of neighbours in time. Their median is given with an interval that assumes nothing about how
they are distributed: two order statistics, between which the true median lies with the probability that is told.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

LEVEL = 0.95


@dataclass(frozen=True)
class Median:
    """A median with its interval.

    Attributes:
        value: the median.
        low: lower end of the interval.
        high: upper end of the interval.
        level: probability with which the interval holds the true median; below 0.95 for fewer than six values.
        count: how many values there are.
    """

    value: float
    low: float
    high: float
    level: float
    count: int


def median(values: Sequence[float]) -> Median:
    """Return the median and the narrowest interval of order statistics that holds it with 95 %, or the widest.

    Raises:
        ValueError: if there is no value.
    """
    if not values:
        raise ValueError("expected at least one value to take the median of")
    ordered, count = sorted(values), len(values)
    # The true median lies outside the k-th smallest and k-th largest if fewer than k values fell on one side.
    outside = [2.0 * sum(math.comb(count, i) for i in range(k)) / 2.0**count for k in range(1, count // 2 + 1)]
    k = max([k for k, p in enumerate(outside, 1) if p <= 1.0 - LEVEL], default=1)
    level = 1.0 - outside[k - 1] if outside else 0.0
    return Median(statistics.median(ordered), ordered[k - 1], ordered[count - k], level, count)


class Verdict(Enum):
    """How a goal stands."""

    REACHED = "reached"
    BY_MEDIAN = "reached by the median; the interval reaches below"
    OPEN = "not reached by the median; the interval reaches above"
    MISSED = "not reached"


def verdict(found: Median, goal: float) -> Verdict:
    """Judge a number of which more is better."""
    if found.low >= goal:
        return Verdict.REACHED
    if found.value >= goal:
        return Verdict.BY_MEDIAN
    return Verdict.OPEN if found.high >= goal else Verdict.MISSED


class Unit(Enum):
    """What the values of a measurement are; all of them are costs, of which less is better."""

    SECONDS_A_SAMPLE = "seconds a sample"
    MICROSECONDS_A_STEP = "microseconds a step"
    NANOSECONDS_A_NUMBER = "nanoseconds a number"
    SECONDS = "seconds"
    MEBIBYTES = "MiB"
    ERROR = "squared error"


@dataclass(frozen=True)
class Comparison:
    """Ours beside another, measured in turns.

    Attributes:
        what: is compared.
        ours: what ours is, in words.
        other: what the other is, in words.
        unit: of the values.
        ours_values: one a repeat.
        other_values: one a repeat, measured next to ours.
        goal: how many times the other's cost ours should be able to bear at least; None where none is set.
    """

    what: str
    ours: str
    other: str
    unit: Unit
    ours_values: tuple[float, ...]
    other_values: tuple[float, ...]
    goal: float | None = None

    @property
    def gain(self) -> Median:
        """The other's cost over ours: above 1 ours is better."""
        return median([other / ours for ours, other in zip(self.ours_values, self.other_values, strict=True)])


@dataclass(frozen=True)
class Share:
    """A rate of arithmetic as a share of what the machine reached in the same repeat.

    Attributes:
        what: was computed.
        rates: GFLOP/s reached, one a repeat.
        machine: GFLOP/s of the machine's own matrix product in that precision, one a repeat.
        goal: least share; None where none is set.
    """

    what: str
    rates: tuple[float, ...]
    machine: tuple[float, ...]
    goal: float | None = None

    @property
    def share(self) -> Median:
        """The shares."""
        return median([rate / machine for rate, machine in zip(self.rates, self.machine, strict=True)])


@dataclass(frozen=True)
class Quantity:
    """A number that stands alone, such as a rate of the machine."""

    what: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Operator:
    """A row of a profile: calls of an operator, and its own time in milliseconds, what it calls left out."""

    name: str
    calls: int
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a piece of work goes.

    Attributes:
        what: was profiled.
        milliseconds: of all operators together.
        operators: those with the most time of their own, most first.
    """

    what: str
    milliseconds: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Section:
    """What one part of the benchmark found.

    Attributes:
        comparisons: ours beside others.
        shares: of the machine's rate.
        quantities: numbers that stand alone.
        profiles: where time goes.
        notes: what a reader has to know, one sentence each.
    """

    comparisons: tuple[Comparison, ...] = ()
    shares: tuple[Share, ...] = ()
    quantities: tuple[Quantity, ...] = ()
    profiles: tuple[Profile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How thoroughly to measure.

    Attributes:
        repeats: rounds in which each contender has its turn.
        quick: do as little of everything as shows that it works.
    """

    repeats: int = 6
    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """Return one of two sizes."""
        return quick if self.quick else full


def alternate(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, ...]]:
    """Time contenders in turns.

    Args:
        contenders: what is timed, by name; each is called once before, which is not counted.
        repeats: rounds, at least 1.

    Returns:
        Seconds of each call, one a round, by name.
    """
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            gc.collect()
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: tuple(values) for name, values in seconds.items()}


def per(values: Sequence[float], count: float) -> tuple[float, ...]:
    """Return what falls on each of ``count`` things."""
    return tuple(value / count for value in values)
