"""Bias audit: how samples are distributed over classes and attributes, against the data.

Samples and real examples are read by the same reader (a classifier, the checker of ``shapes``, or any function), so
that what the reader gets wrong is wrong on both sides. Where the truth about the real examples is known, the shares of
the samples are also corrected for the reader's confusion, which assumes that it confuses samples as it confuses real
examples: samples that look like nothing in particular break that assumption.

Each attribute is tested as a whole, and the p-values of all are adjusted to hold together (Holm). Intervals of single
shares are 95 % each: of twenty, one is expected to miss. A value is therefore marked only if the interval of its ratio
excludes 1 at a level that is divided by the number of the attribute's values (Bonferroni).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unfog.data.dataset import Attribute, Dataset, to_float, to_uint8
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.classifier import logits, pieces, to_pixels
from unfog.evaluation.features import FeatureExtractor, Pretext
from unfog.evaluation.scores import Missing
from unfog.metrics import shares
from unfog.metrics.interval import LEVEL, Score, proportion

REAL = 10_000
"""Most real examples that are read."""

RARE = 0.5
"""A value is rare if its share in the data is below this part of an even share."""


@dataclass(frozen=True)
class Reader:
    """Says what is on a picture.

    Attributes:
        name: of it, for people.
        attributes: what it reads.
        read: takes pictures ``(B, C, H, W)`` uint8 and returns ``(B, len(attributes))`` int64, column ``i`` in
            0 .. ``attributes[i].none``, that last number standing for none of the values.
        trained: whether it may err, as a classifier does, so that its confusion is worth correcting.
    """

    name: str
    attributes: tuple[Attribute, ...]
    read: Callable[[Tensor], Tensor]
    trained: bool = False


@dataclass(frozen=True)
class ValueAudit:
    """One value of an attribute.

    Attributes:
        name: of the value.
        samples: its share among the samples, as read.
        data: its share among the real examples, as read.
        ratio: of the first to the second: above 1 amplified, below 1 suppressed.
        corrected: its share among the samples behind the reader's confusion.
        truth: its share among the real examples by their labels.
        marked: whether the ratio differs from 1 by more than chance over all values of the attribute.
    """

    name: str
    samples: Score
    data: Score
    ratio: Score | Missing
    corrected: Score | Missing
    truth: Score | Missing
    marked: bool


@dataclass(frozen=True)
class AttributeAudit:
    """One attribute.

    Attributes:
        name: of the attribute.
        values: in their order, ``none`` last where it was read.
        variation: total variation distance between samples and data.
        expected_variation: what finite counts alone leave on average.
        amplification: gain in share of the values that are common in the data.
        p_value: of the hypothesis that samples are distributed as the data, by permutation.
        adjusted: the same, adjusted for the number of attributes.
        rare: share of the values that are rare in the data, but there, that occur among the samples; missing where no
            value is rare.
        expected_rare: the same, as expected of samples that are distributed as the data.
        unseen: values of the data that no sample has.
        agreement: share of the samples that are read as what they were asked for; missing where nothing was asked for.
        real_agreement: share of the real examples that are read as what they are.
    """

    name: str
    values: tuple[ValueAudit, ...]
    variation: Score
    expected_variation: float
    amplification: Score
    p_value: float
    adjusted: float
    rare: Score | Missing
    expected_rare: float
    unseen: tuple[str, ...]
    agreement: Score | Missing
    real_agreement: Score | Missing


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        reader: name of what read the pictures.
        samples: how many samples were read.
        data: how many real examples.
        attributes: each by itself.
        seed: of the choice of examples, the permutations and the resamples.
    """

    reader: str
    samples: int
    data: int
    attributes: tuple[AttributeAudit, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary that JSON can hold; what is missing is written as its reason."""
        return asdict(self)


def class_reader(extractor: FeatureExtractor, classes: Sequence[str]) -> Reader | Missing:
    """Return the reader that names classes by the classifier behind a feature network, or why there is none."""
    if extractor.card.pretext is not Pretext.CLASSES:
        return Missing(f"{extractor.card.name} was trained to tell {extractor.card.pretext.value} apart, no classes")

    def read(pixels: Tensor) -> Tensor:
        return logits(extractor.network, to_float(pixels)).argmax(1)[:, None]

    return Reader(extractor.card.name, (Attribute("class", tuple(classes)),), read, trained=True)


def shapes_reader() -> Reader:
    """Return the reader of the set ``shapes``: number of objects, background, and what its first object is like."""
    from unfog.data.shapes.scene import ATTRIBUTES, BACKGROUND, COUNT, SLOT_COLUMNS
    from unfog.evaluation.reading import read

    columns = (COUNT, BACKGROUND, *SLOT_COLUMNS[0])
    attributes = tuple(ATTRIBUTES[column] for column in columns)

    def told(pixels: Tensor) -> Tensor:
        rows = []
        for found in read(pixels):
            count, first = len(found.objects), found.objects[0] if found.objects else None
            number = count - 1 if 1 <= count <= len(attributes[0].values) else None
            row = [number, found.background]
            row += [None] * 4 if first is None else [first.colour, first.shape, first.size, first.cell]
            rows.append([a.none if value is None else value for a, value in zip(attributes, row, strict=True)])
        return torch.tensor(rows, dtype=torch.int64)

    named = [replace(a, name=f"{a.name.removesuffix(' 1')} of the upper left object") for a in attributes[2:]]
    return Reader("the checker of shapes", (*attributes[:2], *named), told)


def audit(
    samples: Tensor,
    data: Dataset,
    reader: Reader,
    *,
    wanted: Tensor | None = None,
    labelled: bool = False,
    seed: int = 0,
    resamples: int = 200,
) -> Audit:
    """Compare the attributes of samples with those of real examples.

    Args:
        samples: ``(N, C, H, W)`` uint8, or floats in [-1, 1], which are rounded to 8 bits.
        data: real examples, best ones that neither the model nor the reader was trained on.
        reader: says what is on a picture.
        wanted: ``(N,)`` what each sample was asked for, values of the reader's one attribute.
        labelled: whether the labels of the data are values of the reader's one attribute.
        seed: of the choice of examples, the permutations and the resamples.
        resamples: of each bootstrap.

    Raises:
        ValueError: if the reader answers otherwise than it says, or the labels do not belong to it.
    """
    pixels = to_pixels(samples)
    alone = len(reader.attributes) == 1
    require(alone or (wanted is None and not labelled), "one attribute of the reader to compare labels with, got more")
    chosen = torch.from_numpy(permutation(len(data), seed_of("audit", seed), 0)[:REAL])
    mine = torch.cat([_read(reader, piece) for piece in pieces(pixels)])
    told, truth = [], []
    for piece in pieces(chosen):
        fields = data.gather(piece)
        told.append(_read(reader, to_uint8(fields["x0"])))
        if labelled:
            require("label" in fields, f"labels in {data.info.name}, which has none")
            truth.append(fields["label"])
    real = torch.cat(told)
    known = _Known(wanted, torch.cat(truth) if truth else None, reader.trained)
    found = [
        _attribute(attribute, mine[:, k], real[:, k], known, seed_of("audit", attribute.name, seed), resamples)
        for k, attribute in enumerate(reader.attributes)
    ]
    adjusted = shares.holm([one.p_value for one in found])
    together = tuple(replace(one, adjusted=p) for one, p in zip(found, adjusted, strict=True))
    return Audit(reader.name, len(pixels), len(real), together, seed)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known beside the readings: what was asked for, and the truth about the real examples."""

    wanted: Tensor | None
    truth: Tensor | None
    trained: bool


def _read(reader: Reader, pixels: Tensor) -> Tensor:
    told = reader.read(pixels)
    sizes = torch.tensor([attribute.none for attribute in reader.attributes])
    fits = told.shape == (len(pixels), len(sizes)) and not told.is_floating_point()
    require(
        fits, f"{len(sizes)} whole numbers for each picture from {reader.name}, got {told.dtype} {tuple(told.shape)}"
    )
    require(bool(((told >= 0) & (told <= sizes)).all()), f"numbers from 0 to {sizes.tolist()} from {reader.name}")
    return told


def _attribute(
    attribute: Attribute, mine: Tensor, real: Tensor, known: _Known, seed: int, resamples: int
) -> AttributeAudit:
    none = bool((mine == attribute.none).any() or (real == attribute.none).any())
    names = (*attribute.values, "none") if none else attribute.values
    size = len(names)
    counts = [shares.counts_of(one, size) for one in (mine, real)]
    truth = None if known.truth is None else shares.counts_of(known.truth, size)
    corrected = _corrected(mine, real, known, size, seed, resamples)
    values = [
        _value(names[k], [int(one[k]) for one in counts], (len(mine), len(real)), corrected[k], truth, k, size)
        for k in range(size)
    ]
    found = shares.compared(mine, real, size, seed=seed)
    base = counts[1] if truth is None else truth
    rare, expected = _rare(counts[0], base / base.sum())
    return AttributeAudit(
        name=attribute.name,
        values=tuple(values),
        variation=shares.total_variation(mine, real, size, seed=seed, resamples=resamples),
        expected_variation=found.expected_variation,
        amplification=shares.amplification(mine, real, size, seed=seed, resamples=resamples),
        p_value=found.p_value,
        adjusted=found.p_value,
        rare=rare,
        expected_rare=expected,
        unseen=tuple(name for k, name in enumerate(names) if base[k] > 0 and counts[0][k] == 0),
        agreement=_agreement(mine, known.wanted, "samples read as what they were asked for"),
        real_agreement=_agreement(real, known.truth, "real examples read as what they are"),
    )


def _value(
    name: str,
    counts: Sequence[int],
    totals: tuple[int, int],
    corrected: Score | Missing,
    truth: Tensor | None,
    k: int,
    size: int,
) -> ValueAudit:
    notes = (f"samples read as {name}", f"real examples read as {name}")
    mine, real = (proportion(count, total, note=note) for count, total, note in zip(counts, totals, notes, strict=True))
    told = _ratio(mine, real, name)
    level = 1 - (1 - LEVEL) / size
    strict = [proportion(count, total, level=level) for count, total in zip(counts, totals, strict=True)]
    wide = _ratio(strict[0], strict[1], name)
    by_label: Score | Missing = Missing("the truth about the real examples is not known")
    if truth is not None:
        by_label = proportion(int(truth[k]), int(truth.sum()), note=f"real examples labelled {name}")
    marked = isinstance(wide, Score) and not wide.low <= 1 <= wide.high
    return ValueAudit(name, mine, real, told, corrected, by_label, marked)


def _ratio(mine: Score, real: Score, name: str) -> Score | Missing:
    if real.low <= 0 or real.high >= 2 * real.value:
        return Missing("too few real examples have it for a ratio")
    return shares.ratio(mine, real, note=f"share of {name} among samples over that in the data")


def _corrected(
    mine: Tensor, real: Tensor, known: _Known, size: int, seed: int, resamples: int
) -> Sequence[Score | Missing]:
    """Return the shares behind the reader's confusion, with intervals by resampling samples and real examples."""
    truth = known.truth
    if truth is None or not known.trained:
        why = "the reader is taken at its word" if not known.trained else "the truth about real examples is not known"
        return [Missing(why)] * size
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        a, b = (torch.randint(len(one), (len(one),), generator=generator) for one in (mine, real))
        draws.append(shares.behind_confusion(mine[a], truth[b], real[b], size))
    tail = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.stack(draws), tail, dim=0)
    value = shares.behind_confusion(mine, truth, real, size)
    note = f"share behind the reader's confusion; {LEVEL:.0%} bootstrap percentile interval of {resamples} resamples"
    return [Score(float(value[k]), float(low[k]), float(high[k]), len(mine), note) for k in range(size)]


def _rare(counts: Tensor, base: Tensor) -> tuple[Score | Missing, float]:
    """Return which share of the rare values occurs, and what is expected of samples distributed as the data."""
    there = base > 0
    rare = there & (base < RARE / int(there.sum()))
    if not bool(rare.any()):
        return Missing(f"no value's share of the data is below {RARE:g} of an even share"), 1.0
    total = float(counts.sum())
    expected = float((1 - (1 - base[rare]) ** total).mean())
    seen = int((counts[rare] > 0).sum())
    return proportion(seen, int(rare.sum()), note=f"rare values that occur; {expected:.3f} expected"), expected


def _agreement(told: Tensor, wanted: Tensor | None, note: str) -> Score | Missing:
    if wanted is None:
        return Missing("nothing was asked for")
    return proportion(int((told == wanted).sum()), len(told), note=note)
