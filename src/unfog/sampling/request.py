"""What is asked of a model: which samples, and how. Python, command line and HTTP ask by this one value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from unfog.diffusion.checks import require
from unfog.sampling.grid import TimeGrid
from unfog.sampling.guidance.bounds import Bounds
from unfog.sampling.guidance.several import asks_negative
from unfog.sampling.sampler import Sampler


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        sampler: the method.
        grid: where it evaluates.
        steps: steps of the grid, at least 1.
        guidance: scale of classifier-free guidance; 1 is none.
        bounds: within which estimates are kept after guidance; None leaves them.
        interval: noise levels sigma / alpha, lowest and highest, within which there is guidance of any kind; None
            guides everywhere.
        rescale: how far the spread of a guided estimate is brought back to that of the conditional one, in [0, 1].
        classifier: scale of guidance by the classifier that the pipeline was given; 0 is none.
        weak: scale of guidance away from the weaker model that the pipeline was given; 1 is none.
    """

    sampler: Sampler
    grid: TimeGrid
    steps: int = 20
    guidance: float = 1.0
    bounds: Bounds | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    classifier: float = 0.0
    weak: float = 1.0

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps of at least 1, got {self.steps}")
        for name in ("guidance", "classifier", "weak"):
            require(math.isfinite(getattr(self, name)), f"a finite scale of {name}, got {getattr(self, name)}")
        require(0 <= self.rescale <= 1, f"a rescale in [0, 1], got {self.rescale}")
        if self.interval is not None:
            low, high = self.interval
            require(0 <= low < high, f"an interval of noise levels, 0 <= lowest < highest, got {self.interval}")

    @property
    def evaluations(self) -> int:
        """How often the network is called for one sample with one condition, at most; guidance calls it twice."""
        return self.sampler.evaluations(self.steps) * (1 if self.guidance in (0.0, 1.0) else 2)

    @property
    def cost(self) -> str:
        """What a sample costs, in words: the number of evaluations."""
        fewer = self.sampler.adaptive or (self.interval is not None and self.guidance not in (0.0, 1.0))
        return _told(self.evaluations, fewer=fewer)

    def with_guidance(self, scale: float) -> "SampleSettings":
        """Return the settings with another scale of classifier-free guidance; 1 leaves no rescale and, if there is no
        other guidance, no interval either.
        """
        if scale != 1:
            return replace(self, guidance=scale)
        alone = self.classifier == 0 and self.weak == 1
        return replace(self, guidance=scale, rescale=0.0, interval=None if alone else self.interval)


def _told(evaluations: int, *, fewer: bool) -> str:
    return f"{'at most ' if fewer else ''}{evaluations} evaluation{'' if evaluations == 1 else 's'}"


Values = tuple[int, ...]
"""A value for each attribute; the number of an attribute's values says that it is not told."""


@dataclass(frozen=True)
class Condition:
    """What samples are conditioned on; what is not given is not told to the model.

    Attributes:
        labels: a class for each sample, or one for all.
        attributes: values for each sample, or for all.
        scale: of its guidance; negative ones push away.
        region: the part of a picture that it is for, as shares of height and width (top, left, bottom, right); None is
            all of it.
    """

    labels: int | Sequence[int] | None = None
    attributes: Values | Sequence[Values] | None = None
    scale: float = 1.0
    region: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), f"a finite scale of a condition, got {self.scale}")
        if self.region is not None:
            top, left, bottom, right = self.region
            inside = 0 <= top < bottom <= 1 and 0 <= left < right <= 1
            require(inside, f"a region (top, left, bottom, right) in shares from 0 to 1, got {self.region}")

    @property
    def told(self) -> bool:
        """Whether it says anything."""
        return self.labels is not None or self.attributes is not None

    def at(self, numbers: Sequence[int]) -> "Condition":
        """Return the condition of the samples of some numbers, in their order."""
        labels = tuple(self.labels[k] for k in numbers) if isinstance(self.labels, Sequence) else self.labels
        attributes = self.attributes
        if attributes is not None and _each(attributes):
            attributes = cast("Sequence[Values]", tuple(attributes[k] for k in numbers))
        return replace(self, labels=labels, attributes=attributes)

    def part(self, start: int, stop: int) -> "Condition":
        """Return the condition of samples ``start`` to ``stop - 1``."""
        return self.at(range(start, stop))

    def label_of(self, index: int) -> int | None:
        """Return the class of a sample."""
        return self.labels[index] if isinstance(self.labels, Sequence) else self.labels

    def attributes_of(self, index: int) -> Values | None:
        """Return the attributes of a sample."""
        if self.attributes is None:
            return None
        chosen = self.attributes[index] if _each(self.attributes) else self.attributes
        return cast(Values, tuple(cast(Values, chosen)))

    def require_count(self, count: int) -> None:
        """Raise ``ValueError`` unless what is given for each sample is given for so many."""
        if isinstance(self.labels, Sequence):
            require(len(self.labels) == count, f"{count} labels, one a sample, got {len(self.labels)}")
        if self.attributes is not None and _each(self.attributes):
            given = len(self.attributes)
            require(given == count, f"attributes for each of {count} samples, or one tuple of them, got {given}")


def _each(attributes: Values | Sequence[Values]) -> bool:
    return len(attributes) > 0 and not isinstance(attributes[0], int)


@dataclass(frozen=True)
class SampleRequest:
    """What is wanted.

    Attributes:
        count: number of samples.
        labels: a class for each sample, or one for all; None is unconditional.
        seed: sample k is a pure function of the seed, of ``first + k`` and of its own condition.
        first: index of the first sample.
        settings: how to sample; the pipeline's own unless given.
        batch_size: samples at a time; it changes speed and memory only.
        attributes: values of the model's attributes, for each sample or for all.
        negative: what to be guided away from; nothing in particular unless given. Its scale and region have no
            meaning.
        also: further conditions, each with a scale of its own; the scale of labels and attributes is that of the
            settings.
    """

    count: int = 1
    labels: int | Sequence[int] | None = None
    seed: int = 0
    first: int = 0
    settings: SampleSettings | None = None
    batch_size: int = 64
    attributes: Values | Sequence[Values] | None = None
    negative: Condition | None = None
    also: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        require(self.count >= 1, f"a count of at least 1, got {self.count}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")
        require(0 <= self.seed < 2**63, f"a seed in [0, 2**63), got {self.seed}")
        require(0 <= self.first < 2**32 - self.count, f"first in [0, 2**32 - count), got {self.first}")
        for condition in self.conditions:
            condition.require_count(self.count)
        if self.negative is not None:
            plain = self.negative.scale == 1 and self.negative.region is None
            require(plain, "a negative condition without a scale or a region: the scales are those of the others")
        for condition in self.also:
            require(condition.told, "labels or attributes in each further condition, got one that says nothing")

    @staticmethod
    def of(
        count: int,
        condition: Condition,
        *,
        seed: int = 0,
        settings: SampleSettings | None = None,
        batch_size: int = 64,
    ) -> "SampleRequest":
        """Return the request for samples of a condition, whose scale is that of the settings."""
        return SampleRequest(
            count, condition.labels, seed, settings=settings, batch_size=batch_size, attributes=condition.attributes
        )

    @property
    def condition(self) -> Condition:
        """What labels and attributes say."""
        return Condition(self.labels, self.attributes)

    @property
    def away(self) -> Condition:
        """What to be guided away from: nothing in particular unless it is given."""
        return self.negative or Condition()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions, the negative one among them."""
        return (self.condition, *self.also, *(() if self.negative is None else (self.negative,)))

    def cost(self, settings: SampleSettings) -> str:
        """Return what a sample of this request costs with some settings, in words, its further conditions counted."""
        if not self.also:
            return settings.cost
        own = [Condition(scale=settings.guidance)] if self.condition.told else []
        asked = [condition for condition in (*own, *self.also) if condition.scale != 0]
        regions = any(condition.region is not None for condition in asked)
        away = asks_negative([condition.scale for condition in asked], masked=regions)
        fewer = settings.sampler.adaptive or settings.interval is not None
        return _told(settings.sampler.evaluations(settings.steps) * (len(asked) + away), fewer=fewer)

    def part(self, start: int, stop: int) -> "SampleRequest":
        """Return the request for samples ``start`` to ``stop - 1`` of this one, counted from 0: the same samples."""
        own = self.condition.part(start, stop)
        return replace(
            self,
            count=stop - start,
            labels=own.labels,
            attributes=own.attributes,
            negative=None if self.negative is None else self.negative.part(start, stop),
            also=tuple(condition.part(start, stop) for condition in self.also),
            first=self.first + start,
        )

    def label_of(self, index: int) -> int | None:
        """Return the class of sample ``index``, counted from 0."""
        return self.condition.label_of(index)
