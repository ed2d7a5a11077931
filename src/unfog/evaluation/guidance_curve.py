"""What guidance trades: fidelity against diversity, as the scale grows.

Each scale draws the same samples: same noises, same conditions. Fidelity is the precision of the samples among real
examples, and the share that a classifier names as what was asked for; diversity is their recall and coverage, and how
far samples scatter around the mean of their class, over how far real ones do. Published curves rise in fidelity and
fall in diversity as the scale grows, and the Fréchet distance is smallest in between.

Intervals are those of each scale by itself. Because noises and conditions are the same, differences between scales are
known better than the intervals suggest.

Source: J. Ho and T. Salimans, "Classifier-free diffusion guidance", 2022, arXiv 2207.12598, for the trade; T.
Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019, arXiv 1904.06991, for
its axes; T. Kynkäänniemi et al., "Applying guidance in a limited interval improves sample and distribution quality in
diffusion models", 2024, arXiv 2404.07724, for guidance within an interval.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unfog.data.dataset import Dataset, to_float
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.adherence import readable, score_adherence
from unfog.evaluation.classifier import logits
from unfog.evaluation.features import FeatureExtractor, Pretext
from unfog.evaluation.measure import draw
from unfog.evaluation.pictures import BASE, COLOURS, INK, MARKS, dress, legend_above, panels, save
from unfog.evaluation.scores import Comparison, Missing, compare, score_of
from unfog.metrics.frechet_limit import Strata
from unfog.metrics.interval import Score, bootstrap, proportion
from unfog.pipeline import Pipeline
from unfog.sampling.request import SampleRequest, SampleSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 5
"""Samples for each class, on average, from which a deviation within classes is formed: resamples halve them."""


@dataclass(frozen=True)
class GuidancePoint:
    """What one scale gives.

    Attributes:
        scale: of guidance.
        interval: noise levels within which there was guidance; None is all.
        quality: the samples against held-out examples.
        accuracy: share of the samples that are what was asked for: with classes, as the classifier names them; of
            the set ``shapes``, those with all named attributes.
        spread: root mean square distance of features from the mean of their class, over that of real examples.
        one_object: of ``shapes``, ``accuracy`` where one object was asked for; else None.
        binding: of ``shapes``, the share on which both of two objects have their own attributes; else None.
    """

    scale: float
    interval: tuple[float, float] | None
    quality: Comparison
    accuracy: Score | Missing
    spread: Score | Missing
    one_object: Score | None = None
    binding: Score | None = None

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "GuidancePoint":
        """Return the point that ``asdict`` turned into a dictionary."""
        interval = stored["interval"]
        return GuidancePoint(
            stored["scale"],
            None if interval is None else (interval[0], interval[1]),
            Comparison.from_dict(stored["quality"]),
            score_of(stored["accuracy"]),
            score_of(stored["spread"]),
            *(None if stored.get(name) is None else Score(**stored[name]) for name in ("one_object", "binding")),
        )


@dataclass(frozen=True)
class GuidanceCurve:
    """What a range of scales gives, and what real examples get.

    Attributes:
        features: name of the network that judges.
        samples: number of samples of each scale.
        seed: of the samples and of all resamples.
        settings: of the sampler, in words, without the scale.
        points: one for each scale, in their order.
        floor: real training examples that the network has not seen, against the same held-out ones.
        real_accuracy: share of held-out examples that the classifier names rightly.
    """

    features: str
    samples: int
    seed: int
    settings: str
    points: tuple[GuidancePoint, ...]
    floor: Comparison
    real_accuracy: Score | Missing

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as a dictionary that JSON can hold; what is missing is written as its reason."""
        return asdict(self)

    @property
    def best(self) -> GuidancePoint | Missing:
        """The scale with the smallest Fréchet distance."""
        found = [
            (p.quality.frechet.value, k) for k, p in enumerate(self.points) if isinstance(p.quality.frechet, Score)
        ]
        return self.points[min(found)[1]] if found else Missing("no scale has a Fréchet distance")


@dataclass(frozen=True, eq=False)
class CurveJudge:
    """Held-out examples and what judges samples against them.

    Attributes:
        extractor: makes the features, and names classes.
        features: ``(N, D)`` of held-out examples.
        labels: ``(N,)`` their classes; None without.
        floor: what real training examples get that the extractor has not seen.
        real_accuracy: share of the held-out examples that are named rightly.
        seed: of all resamples.
        resamples: of each bootstrap.
    """

    extractor: FeatureExtractor
    features: Tensor
    labels: Tensor | None
    floor: Comparison
    real_accuracy: Score | Missing
    seed: int
    resamples: int

    @staticmethod
    def of(
        extractor: FeatureExtractor, train: Dataset, test: Dataset, count: int, *, seed: int, resamples: int = 200
    ) -> "CurveJudge":
        """Return the judge of ``count`` samples, with as many held-out examples, or all of fewer.

        Args:
            extractor: the feature network of the training set.
            train: the examples that the model was trained on.
            test: examples that it has not seen.
            count: number of samples of each scale.
            seed: of the choice of examples and of all resamples.
            resamples: of each bootstrap.
        """
        unseen = extractor.card.config.split(len(train))[1]
        used = min(count, len(test), len(unseen))
        chosen = torch.from_numpy(permutation(len(test), seed_of("guidance curve", seed), 0)[:used])
        fields = test.gather(chosen)
        features = extractor(fields["x0"])
        floor = compare(features, extractor.of(train, unseen[:used]), extractor.identity, seed)
        labels = fields.get("label")
        right = _named(extractor, fields["x0"], labels, "held-out examples named rightly")
        return CurveJudge(extractor, features, labels, floor, right, seed, resamples)

    def judged(
        self, pixels: Tensor, labels: Tensor | None, settings: SampleSettings, attributes: Tensor | None = None
    ) -> GuidancePoint:
        """Measure the samples of one scale.

        Args:
            pixels: ``(N, C, H, W)`` uint8.
            labels: ``(N,)`` the classes that they were asked for; None without.
            settings: how they were drawn.
            attributes: ``(N, A)`` of the set ``shapes`` that they were asked for; None for other data.
        """
        drawn = self.extractor(pixels)
        shown = None if attributes is None else score_adherence(pixels, attributes, {})
        return GuidancePoint(
            scale=settings.guidance,
            interval=settings.interval,
            quality=compare(
                self.features,
                drawn[: len(self.features)],
                self.extractor.identity,
                self.seed,
                strata=Strata(self.labels, None if labels is None else labels[: len(self.features)]),
            ),
            accuracy=shown.named
            if shown
            else _named(self.extractor, to_float(pixels), labels, "samples named as what they were asked for"),
            spread=self._spread(drawn, labels),
            one_object=shown.by_count.get("1") if shown else None,
            binding=shown.binding if shown else None,
        )

    def _spread(self, drawn: Tensor, labels: Tensor | None) -> Score | Missing:
        """Return the deviation within classes over that of real examples; without classes, within the whole set."""
        mine, real = drawn.double(), self.features.double()
        own = torch.zeros(len(mine), dtype=torch.int64) if labels is None else labels
        theirs = torch.zeros(len(real), dtype=torch.int64) if labels is None or self.labels is None else self.labels
        if any(len(one) < _LEAST * (int(groups.max()) + 1) for one, groups in ((mine, own), (real, theirs))):
            return Missing(f"it needs {_LEAST} samples, and as many real examples, for each class")

        def relative(chosen: Sequence[Tensor]) -> float:
            a, b = chosen
            return deviation(mine[a], own[a]) / deviation(real[b], theirs[b])

        note = "deviation of features within a class, over that of real examples"
        counts = (len(mine), len(real))
        return bootstrap(relative, counts, seed=self.seed, resamples=self.resamples, recentre=True, note=note)


def deviation(features: Tensor, groups: Tensor) -> float:
    """Return the root mean square distance of features from the mean of their group.

    Args:
        features: ``(N, D)``.
        groups: ``(N,)`` int64 from 0; N above the number of groups that occur, by which the mean square is corrected.
    """
    counts = torch.bincount(groups).double()
    means = torch.zeros(len(counts), features.shape[1], dtype=torch.float64).index_add_(0, groups, features.double())
    means /= counts.clamp(min=1)[:, None]
    squares = (features.double() - means[groups]).square().sum()
    return float((squares / (len(features) - int((counts > 0).sum()))).sqrt())


def measure_scale(
    pipeline: Pipeline, judge: CurveJudge, request: SampleRequest, settings: SampleSettings
) -> GuidancePoint:
    """Draw the samples of one scale and measure them.

    Args:
        pipeline: what is sampled from.
        judge: of the samples.
        request: the noises and conditions, which all scales share.
        settings: how, with the scale.

    Raises:
        ValueError: if the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    pixels = draw(pipeline, replace(request, settings=settings))
    labels = None if request.labels is None else torch.tensor(request.labels)
    shapes = request.attributes is not None and readable(pipeline.attributes)
    return judge.judged(pixels, labels, settings, torch.tensor(request.attributes) if shapes else None)


def draw_curve(curve: GuidanceCurve, path: Path) -> None:
    """Draw fidelity against diversity, and each measure over the scales, as PNG, or SVG if the path ends so.

    Args:
        curve: of two scales or more.
        path: of the file.

    Raises:
        ValueError: if there is nothing that could be drawn.
    """
    require(len(curve.points) >= 2, f"two scales or more to draw a curve, got {len(curve.points)}")
    trades = _trades(curve)
    require(bool(trades), "precision and recall to draw, of which there are none")
    figure, rows = panels(1, 3, panel=(4.3, 3.6))
    trade, measures, distance = rows[0]
    dress(trade, "diversity (higher is better)", "fidelity (higher is better)", title="What guidance trades")
    for k, (name, pairs) in enumerate(trades.items()):
        _trade(trade, pairs, name, COLOURS[6 + k], MARKS[6 + k])
    dress(measures, "scale of guidance", "share, or ratio to real examples", title="Over the scales")
    for k, (name, read) in enumerate(_MEASURES.items()):
        _over_scales(measures, curve, read, COLOURS[k], MARKS[k], name)
    dress(distance, "scale of guidance", "squared Fréchet distance", title="Fréchet distance")
    _over_scales(distance, curve, lambda point: point.quality.frechet, COLOURS[5], MARKS[5], "")
    if isinstance(curve.floor.frechet, Score):
        distance.axhline(
            curve.floor.frechet.value, color=BASE, linewidth=1.0, linestyle=(0, (4, 3)), label="real images"
        )
        distance.set_ylim(bottom=0)
    legend_above(figure, rows[0])
    save(figure, path)


Read = Callable[[GuidancePoint], Score | Missing]

_MEASURES: Mapping[str, Read] = {
    "precision": lambda point: point.quality.precision,
    "recall": lambda point: point.quality.recall,
    "coverage": lambda point: point.quality.coverage,
    "named as asked for": lambda point: point.accuracy,
    "spread within a class": lambda point: point.spread,
}


class _Pair(NamedTuple):
    """A scale as a point of the plane."""

    scale: float
    diversity: Score
    fidelity: Score


def _trades(curve: GuidanceCurve) -> dict[str, list[_Pair]]:
    """Return the curves of the plane: what stands for fidelity, against what stands for diversity."""
    found: dict[str, list[_Pair]] = {}
    for fidelity, diversity in (("precision", "recall"), ("named as asked for", "coverage")):
        pairs = []
        for point in curve.points:
            x, y = _MEASURES[diversity](point), _MEASURES[fidelity](point)
            if isinstance(x, Score) and isinstance(y, Score):
                pairs.append(_Pair(point.scale, x, y))
        if pairs:
            found[f"{fidelity} against {diversity}"] = pairs
    return found


def _trade(axes: "Axes", pairs: Sequence[_Pair], name: str, colour: str, mark: str) -> None:
    x, y = [pair.diversity.value for pair in pairs], [pair.fidelity.value for pair in pairs]
    across, along = (
        [[s.value - s.low for s in side], [s.high - s.value for s in side]]
        for side in ([pair.diversity for pair in pairs], [pair.fidelity for pair in pairs])
    )
    axes.errorbar(x, y, xerr=across, yerr=along, color=colour, linewidth=0.7, alpha=0.35, fmt="none")
    axes.plot(x, y, marker=mark, color=colour, linewidth=1.5, markersize=4.5, label=name)
    for pair in pairs:
        place = (pair.diversity.value, pair.fidelity.value)
        axes.annotate(f"{pair.scale:g}", place, xytext=(4, 4), textcoords="offset points", fontsize=8, color=INK)


def _over_scales(axes: "Axes", curve: GuidanceCurve, read: Read, colour: str, mark: str, name: str) -> None:
    scored = [(point.scale, read(point)) for point in curve.points]
    found = [(scale, score) for scale, score in scored if isinstance(score, Score)]
    if not found:
        return
    scales, scores = [scale for scale, _ in found], [score for _, score in found]
    axes.fill_between(scales, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        scales, [s.value for s in scores], marker=mark, color=colour, linewidth=1.5, markersize=4, label=name or None
    )


def _named(extractor: FeatureExtractor, x0: Tensor, labels: Tensor | None, note: str) -> Score | Missing:
    if labels is None:
        return Missing("nothing was asked for")
    if extractor.card.pretext is not Pretext.CLASSES:
        return Missing(f"{extractor.card.name} names no classes")
    right = logits(extractor.network, x0).argmax(1) == labels
    return proportion(int(right.sum()), len(right), note=note)
