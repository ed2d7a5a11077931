"""Numbers with their uncertainty: a score, the Wilson interval and the bootstrap.

Proportions (accuracy, precision, recall, coverage) get the interval of Wilson, which stays inside [0, 1] and
is right even when every trial succeeds. With ``p = s / n`` and the normal quantile ``z`` it is

    (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

Everything else is resampled: examples are drawn with replacement, the statistic is computed again, and the
interval is read from the quantiles of the repetitions.

Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat.
Assoc. 22, 1927. B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Stat. 7, 1979.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from torch import Tensor

LEVEL = 0.95
"""Confidence level of every interval unless another one is asked for."""


@dataclass(frozen=True)
class Score:
    """A measured number, its interval, and how it came about.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        count: how many examples the estimate was made from.
        note: what was measured, how the interval was made, and what to mind when reading it.
    """

    value: float
    low: float
    high: float
    count: int
    note: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a score needs at least one example; got count {self.count}")
        for name in ("value", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} of a score must be finite; got {getattr(self, name)} ({self.note!r})")
        if self.low > self.high:
            raise ValueError(f"the interval of a score is upside down: [{self.low}, {self.high}]")

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)


def wilson_interval(successes: int, count: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson interval of a proportion.

    Args:
        successes: number of successes, 0 to ``count``.
        count: number of independent trials, at least 1.
        level: confidence, strictly between 0 and 1.

    Returns:
        The lower and upper end, inside [0, 1].

    Raises:
        ValueError: if the numbers are out of range.

    Source: Wilson 1927, see the module.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"expected 0 <= successes <= count and count >= 1; got {successes} of {count}")
    z = _quantile(level)
    share = successes / count
    centre = share + z * z / (2 * count)
    radius = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # At 0 and at count successes one end is exactly 0 or 1, which rounding would miss by an ulp.
    low = 0.0 if successes == 0 else (centre - radius) / scale
    high = 1.0 if successes == count else (centre + radius) / scale
    return low, high


def proportion(successes: int, count: int, *, note: str = "", level: float = LEVEL) -> Score:
    """Return a proportion with its Wilson interval.

    Args:
        successes: number of successes, 0 to ``count``.
        count: number of independent trials, at least 1.
        note: what was counted; the kind of interval is appended.
        level: confidence, strictly between 0 and 1.

    Raises:
        ValueError: if the numbers are out of range.
    """
    low, high = wilson_interval(successes, count, level=level)
    return Score(successes / count, low, high, count, _join(note, f"{level:.0%} Wilson interval"))


def mean(values: Tensor, *, note: str = "", level: float = LEVEL) -> Score:
    """Return the mean of independent values with its normal interval ``mean +- z s / sqrt(n)``.

    Args:
        values: ``(N,)`` numbers, N at least 2.
        note: what was averaged; the kind of interval is appended.
        level: confidence, strictly between 0 and 1.

    Raises:
        ValueError: if there are fewer than two values.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"the interval of a mean needs a vector of two values or more; got {tuple(values.shape)}")
    values = values.double()
    centre = float(values.mean())
    radius = _quantile(level) * float(values.std()) / math.sqrt(len(values))
    return Score(centre, centre - radius, centre + radius, len(values), _join(note, f"{level:.0%} normal interval"))


def bootstrap(
    statistic: Callable[[Sequence[Tensor]], float],
    counts: Sequence[int],
    *,
    seed: int,
    resamples: int = 200,
    level: float = LEVEL,
    recentre: bool = False,
    note: str = "",
) -> Score:
    """Return a statistic of one or several sets of examples with its bootstrap percentile interval.

    Args:
        statistic: takes one ``(n,)`` int64 index tensor per set and returns a number; called once with
            ``arange(n)`` for the value and ``resamples`` times with indices drawn with replacement,
            independently for each set.
        counts: number of examples of each set.
        seed: of the draws.
        resamples: number of repetitions, at least 20.
        level: confidence, strictly between 0 and 1.
        recentre: shift the interval by the difference between the value and the mean of the repetitions. For
            statistics with a bias that grows as distinct examples get fewer, such as the Fréchet distance: a
            resample holds about 63 % distinct examples, so the plain interval lies above the value and may
            exclude it. The shifted interval shows the spread alone; the bias itself has to be shown by a
            comparison at equal counts.
        note: what was measured; the kind of interval is appended.

    Returns:
        The score; its count is the smallest of ``counts``.

    Raises:
        ValueError: if a set is empty or there are too few resamples for quantiles.

    Source: Efron 1979, see the module.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"every set needs at least one example; got counts {list(counts)}")
    if resamples < 20:
        raise ValueError(f"quantiles need 20 resamples or more; got {resamples}")
    tail = (1 - level) / 2
    _quantile(level)
    value = statistic([torch.arange(count) for count in counts])
    generator = torch.Generator().manual_seed(seed)
    draws = torch.tensor(
        [
            statistic([torch.randint(count, (count,), generator=generator) for count in counts])
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    if recentre:
        draws += value - draws.mean()
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    kind = f"{level:.0%} bootstrap percentile interval of {resamples} resamples"
    if recentre:
        kind += ", recentred on the value (spread without bias)"
    return Score(value, low, high, min(counts), _join(note, kind))


def _quantile(level: float) -> float:
    """Return z such that a standard normal lies within +-z with probability ``level``."""
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must lie strictly between 0 and 1; got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _join(note: str, kind: str) -> str:
    return f"{note}; {kind}" if note else kind
