"""Words and numbers of a report: scores with as many digits as they deserve, settings as a tree, the metrics."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unfog.evaluation.accuracy import AccuracyReport
from unfog.evaluation.adherence import Adherence
from unfog.evaluation.card import NAMES, Card, require_comparable
from unfog.evaluation.features import FeatureCard
from unfog.evaluation.measure import Measured
from unfog.evaluation.scores import Comparison, Missing, Scores
from unfog.metrics.interval import Score

_LONG_LIST = 12


class Headline(NamedTuple):
    """A number at the top of the page."""

    name: str
    value: str
    interval: str
    detail: str


class Metric(NamedTuple):
    """A row of the table of metrics; ``floor`` is what real images get."""

    name: str
    better: str
    samples: str
    floor: str
    examples: str
    definition: str


class Bar(NamedTuple):
    """A class and the share of its test images that were named rightly."""

    name: str
    percent: float
    text: str


class Metrics(NamedTuple):
    """The section on metrics.

    Attributes:
        rows: of the table.
        bars: accuracy by class.
        network: name of the feature network; None where there is none.
        card: how that was made, if it was made from these data.
        card_accuracy: at what it was made for.
        conditions: the metric card, by the names of its fields.
        notes: how each number was made.
        missing: what could not be formed.
    """

    rows: tuple[Metric, ...]
    bars: tuple[Bar, ...]
    network: str | None
    card: FeatureCard | None
    card_accuracy: str
    conditions: Mapping[str, str]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


class Shown(NamedTuple):
    """A row of the table of adherence: the share that is right, and what chance gets, where that was measured."""

    name: str
    score: Score
    chance: Score | None


class Setting(NamedTuple):
    """A line of the tree of settings; one without a value opens a branch."""

    depth: int
    name: str
    value: str | None


class Group(NamedTuple):
    """A branch of the settings that stands on its own."""

    name: str
    settings: tuple[Setting, ...]


def rounded(score: Score, *, percent: bool = False) -> tuple[str, str]:
    """Return value and interval with as many digits as the interval supports.

    Args:
        score: the number.
        percent: write a share as a percentage.
    """
    scale, unit = (100.0, " %") if percent else (1.0, "")
    half = scale * (score.high - score.low) / 2
    reference = half if half > 0 else abs(scale * score.value) / 1000 or 1.0
    decimals = min(8, max(0, 1 - math.floor(math.log10(reference))))
    value, low, high = (f"{scale * number:.{decimals}f}" for number in (score.value, score.low, score.high))
    return f"{value}{unit}", f"{low} to {high}{unit}"


def spoken(score: Score, *, percent: bool = False) -> str:
    """Return value and interval in one text."""
    value, interval = rounded(score, percent=percent)
    return f"{value} ({interval})"


def duration(seconds: float) -> str:
    """Write a time span in the units that people use."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(count: int, what: str, plural: str = "s") -> str:
    """Write how many there are of something, whose plural ends in ``plural``."""
    return f"{count:,} {what}{'' if count == 1 else plural}"


def size(count: int) -> str:
    """Write a number of bytes."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.3g} {unit}"
    return f"{count} bytes"


def setting_groups(settings: Mapping[str, Any]) -> list[Group]:
    """Turn nested settings into groups, one for each branch at the top; what is no branch comes first."""
    loose = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    groups = [Group("general", tuple(_lines(loose, 0)))] if loose else []
    branches = [(name, value) for name, value in settings.items() if isinstance(value, Mapping)]
    return groups + [Group(name, tuple(_lines(value, 0))) for name, value in branches]


def missing(scores: Scores) -> tuple[str, ...]:
    """Say which scores could not be formed and why, a sentence for each reason."""
    return tuple(f"{joined(names)}: {reason}" for reason, names in scores.missing.items())


def joined(names: Sequence[str]) -> str:
    """Return names as people list them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def headlines(measured: Measured | None) -> list[Headline]:
    """Return the numbers at the top of the page, each with its interval, its count and who judged."""
    if measured is None:
        return []
    scores = measured.scores
    made: list[Headline] = []
    if not isinstance(scores.features, Missing):
        made += _feature_headlines(scores.samples, scores.floor, scores.features.name)
    if isinstance(scores.accuracy, AccuracyReport):
        made.append(_accuracy_headline(scores.accuracy))
    held_out = measured.loss_test.network
    made += [
        Headline(
            "Held-out loss",
            *rounded(held_out),
            f"on {counted(held_out.count, 'test image')}; on training images "
            f"{rounded(measured.loss_train.network)[0]}, and predicting 0 gives {rounded(measured.loss_test.zero)[0]}",
        ),
        Headline(
            "Sampling",
            duration(measured.seconds_per_image),
            f"{measured.evaluations} evaluations",
            f"an image, over {counted(measured.samples, 'image')}; {measured.settings}",
        ),
    ]
    return made


def _feature_headlines(samples: Comparison, floor: Comparison, network: str) -> Iterator[Headline]:
    if isinstance(samples.frechet, Score) and isinstance(floor.frechet, Score):
        count = f"{samples.frechet.count:,}"
        yield Headline(
            "Fréchet distance",
            *rounded(samples.frechet),
            f"squared, in features of {network}, {count} samples against {count} test images; lower is better, and "
            f"real images get {rounded(floor.frechet)[0]}",
        )
    if isinstance(samples.precision, Score) and isinstance(floor.precision, Score):
        yield Headline(
            "Precision",
            *rounded(samples.precision, percent=True),
            f"of {samples.precision.count:,} samples look real, in features of {network}; of real images "
            f"{rounded(floor.precision, percent=True)[0]}",
        )
    if isinstance(samples.recall, Score) and isinstance(floor.recall, Score):
        yield Headline(
            "Recall",
            *rounded(samples.recall, percent=True),
            f"of {samples.recall.count:,} test images are within the samples' reach, in features of {network}; "
            f"real images reach {rounded(floor.recall, percent=True)[0]}",
        )


def _accuracy_headline(accuracy: AccuracyReport) -> Headline:
    beside = ""
    if accuracy.yardstick is not None:
        beside = f"; trained on real images it gets {rounded(accuracy.yardstick, percent=True)[0]}"
    return Headline(
        "Classification accuracy",
        *rounded(accuracy.score, percent=True),
        f"on {counted(accuracy.score.count, 'test image')}, of a classifier that was trained on "
        f"{counted(accuracy.examples, 'sample')} alone{beside}",
    )


def metrics(measured: Measured | None) -> Metrics | None:
    """Return the section on metrics, or nothing where nothing was measured."""
    if measured is None:
        return None
    scores = measured.scores
    rows = list(_comparisons(measured))
    if isinstance(scores.copying, Score):
        rows.append(_copying(scores.copying))
    bars: list[Bar] = []
    judged = [*vars(scores.samples).values(), scores.copying]
    if isinstance(accuracy := scores.accuracy, AccuracyReport):
        judged.append(accuracy.score)
        real = "–" if accuracy.yardstick is None else spoken(accuracy.yardstick, percent=True)
        text = (
            f"Accuracy on real test images of a classifier trained on {counted(accuracy.examples, 'sample')} alone; in "
            "the next column, of the same classifier trained on as many real images."
        )
        name, value = "Classification accuracy score", spoken(accuracy.score, percent=True)
        rows.append(Metric(name, "higher", value, real, f"{accuracy.score.count:,}", text))
        named = accuracy.per_class.items()
        bars = [Bar(name, 100 * score.value, spoken(score, percent=True)) for name, score in named]
    notes = tuple(dict.fromkeys(score.note for score in judged if isinstance(score, Score) and score.note))
    card = scores.features if isinstance(scores.features, FeatureCard) else None
    right = "" if card is None else spoken(card.accuracy, percent=True)
    network = None if isinstance(scores.features, Missing) else scores.features.name
    conditions = {} if scores.card is None else told_card(scores.card)
    return Metrics(tuple(rows), tuple(bars), network, card, right, conditions, notes, missing(scores))


def adherence(found: Adherence) -> list[Shown]:
    """Return what was asked for and the share that is right: all attributes, by objects, binding, each attribute."""
    every, binding = "all attributes", "binding of two objects"
    scores = {every: found.named}
    scores |= {f"all, {count} object{'' if count == '1' else 's'}": score for count, score in found.by_count.items()}
    scores |= {} if found.binding is None else {binding: found.binding}
    scores |= found.attributes
    fields = {every: "named", binding: "binding"}
    return [Shown(name, score, found.chance.get(fields.get(name, name))) for name, score in scores.items()]


def told_card(card: Card) -> dict[str, str]:
    """Return what a card says, by the names of its fields."""
    return {NAMES[name].removeprefix("the "): str(value) for name, value in card.to_dict().items()}


class Compared(NamedTuple):
    """What was measured of one set of samples, and under which conditions."""

    card: Card
    scores: Comparison


COLUMNS = (
    ("Fréchet distance", "frechet", False),
    ("at infinite counts", "limit", False),
    ("kernel distance", "kernel", False),
    ("precision", "precision", True),
    ("recall", "recall", True),
    ("density", "density", False),
    ("coverage", "coverage", True),
    ("Inception Score", "inception", False),
)
"""Scores of a comparison: what they are called, their field, and whether they are shares."""


def side_by_side(sets: Mapping[str, Compared], *, varying: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Return a table of several sets of samples: its head, and a row for each.

    Args:
        sets: by their names; at least one.
        varying: fields of the card in which they differ on purpose.

    Returns:
        Cells; a score that is missing everywhere has no column.

    Raises:
        IncomparableError: if they were measured under different conditions; says in what.
    """
    require_comparable({name: one.card for name, one in sets.items()}, varying=varying)
    shown = [
        column for column in COLUMNS if any(isinstance(getattr(one.scores, column[1]), Score) for one in sets.values())
    ]
    table = [("samples", *(name for name, _, _ in shown))]
    for name, one in sets.items():
        scores = [(getattr(one.scores, field), percent) for _, field, percent in shown]
        cells = (spoken(score, percent=percent) if isinstance(score, Score) else "–" for score, percent in scores)
        table.append((name, *cells))
    return table


def _comparisons(measured: Measured) -> Iterator[Metric]:
    ours, real = measured.scores.samples, measured.scores.floor
    for name, better, field, percent, definition in (
        (
            "Fréchet distance",
            "lower",
            "frechet",
            False,
            "Squared distance between the features of the samples and of test images, each set taken as one Gaussian.",
        ),
        (
            "Fréchet distance at infinite counts",
            "lower",
            "limit",
            False,
            "The same without its bias, which is larger the fewer the images: an estimate of the distance between the "
            "distributions, which may come out below 0 where they are alike.",
        ),
        (
            "Kernel distance",
            "lower",
            "kernel",
            False,
            "Squared maximum mean discrepancy of the features, unbiased; it may come out below 0 likewise.",
        ),
        ("Precision", "higher", "precision", True, "Share of the samples that lie among the test images: realism."),
        ("Recall", "higher", "recall", True, "Share of the test images that lie among the samples: variety."),
        (
            "Density",
            "higher",
            "density",
            False,
            "In how many test images' neighbourhoods a sample lies, over k, about 1 for real images: realism, less "
            "moved by outliers than precision.",
        ),
        (
            "Coverage",
            "higher",
            "coverage",
            True,
            "Share of the test images with a sample in their neighbourhood: variety, less moved by outliers than "
            "recall.",
        ),
        (
            "Inception Score",
            "higher",
            "inception",
            False,
            "How sure the published classifier is of each sample, and how evenly it names all its classes.",
        ),
    ):
        score, floor = getattr(ours, field), getattr(real, field)
        if not (isinstance(score, Score) and isinstance(floor, Score)):
            continue
        texts = (spoken(score, percent=percent), spoken(floor, percent=percent))
        yield Metric(name, better, *texts, f"{score.count:,}", definition)


def _copying(score: Score) -> Metric:
    text = (
        "Probability that a sample lies nearer to the training set than a test image does: 0.5 without copying, near 1 "
        "where samples are copies."
    )
    return Metric("Copying", "near 0.5", spoken(score), "0.5", f"{score.count:,}", text)


def _lines(node: Mapping[str, Any], depth: int) -> Iterator[Setting]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield Setting(depth, name, None)
            yield from _lines(value, depth + 1)
        else:
            yield Setting(depth, name, _plain(value))


def _plain(value: Any) -> str:
    """Write a leaf as it is written in overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "–"
    if isinstance(value, list | tuple):
        if len(value) > _LONG_LIST:
            return f"{len(value)} values, {_plain(value[0])} to {_plain(value[-1])}"
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)
