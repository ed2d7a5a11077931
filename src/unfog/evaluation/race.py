"""Training models of several families for equal time, and measuring them alike.

What is equal: the data, the time, the batch, and the parameters as nearly as widths allow. The time is that of the
processor, of all threads, where models are trained on one, so that other work on the machine does not count; on an
accelerator it is that of the clock. A learning rate that falls is told at the beginning and at each twentieth of the
time where the end will be at the speed so far. Drawing and measuring are no part of the time.

How stable a family is shows in three numbers: whether a run broke off because losses or gradients were not finite, how
often a gradient shot up, and how much the scores of several seeds differ. How far its samples collapse to few pictures
shows in recall and coverage, and by itself in ``spread``: how far the samples of a class lie from each other, beside
the test examples of that class.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unfog.data.batch import Batches
from unfog.data.dataset import Dataset, to_uint8
from unfog.data.loader import ShuffledBatches
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.accuracy import AccuracyReport
from unfog.evaluation.classifier import Budget
from unfog.evaluation.families import Bits, Contender
from unfog.evaluation.features import FeatureExtractor
from unfog.evaluation.loss import chosen_examples
from unfog.evaluation.scores import Missing, classes_of, compare, evaluate
from unfog.metrics.frechet_limit import Strata
from unfog.metrics.interval import Score, bootstrap
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError, Trainer

PLANS = 20
"""How often the end of the learning rate is moved to where the speed puts it."""
FIRST_PLAN = 3
"""Steps after which it is moved for the first time."""
RECENT, EXPLOSION = 100, 10.0
"""A gradient shoots up where its norm is so many times the median of so many steps before."""
POINTS = 120
"""Points of the loss that are kept."""


@dataclass(frozen=True)
class RaceEffort:
    """How much is spent.

    Attributes:
        seconds: of training.
        samples: drawn in the end, evenly over the classes.
        curve_samples: drawn at each mark, likewise.
        marks: shares of the time after which quality is measured, rising, the last one 1.
        likelihood_examples: test examples that bits are measured of; 0 measures none.
        resamples: of each bootstrap.
        budget: of the classifiers behind the accuracy; None takes the default.
        batch_size: samples drawn at a time.
    """

    seconds: float = 300.0
    samples: int = 1000
    curve_samples: int = 500
    marks: tuple[float, ...] = (0.1, 0.2, 0.4, 0.7, 1.0)
    likelihood_examples: int = 256
    resamples: int = 200
    budget: Budget | None = None
    batch_size: int = 100

    def __post_init__(self) -> None:
        require(self.seconds > 0, f"seconds above 0, got {self.seconds}")
        for name in ("samples", "curve_samples", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} of at least 1, got {getattr(self, name)}")
        rising = all(a < b for a, b in zip(self.marks, self.marks[1:], strict=False))
        require(
            len(self.marks) > 0 and rising and self.marks[0] > 0 and self.marks[-1] == 1,
            f"marks that rise from above 0 to 1, got {self.marks}",
        )
        require(
            self.likelihood_examples == 0 or self.likelihood_examples >= 2,
            f"likelihood_examples of 0, or at least 2, got {self.likelihood_examples}",
        )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model on its way.

    Attributes:
        seconds: of training.
        steps: done.
        weights: averaged, of what samples are drawn from.
    """

    seconds: float
    steps: int
    weights: Mapping[str, Tensor]


@dataclass(eq=False)
class Trained:
    """What came of a training.

    Attributes:
        seconds: that it took.
        steps: done.
        skipped: steps that were not applied because something was not finite.
        diverged: why it broke off; None if it did not.
        explosions: by player, how often the gradient shot up; several steps in a row are one.
        losses: by player, mean loss since the point before, at points of time: ``(seconds, loss)``.
        snapshots: at the marks that were reached.
    """

    seconds: float = 0.0
    steps: int = 0
    skipped: int = 0
    diverged: str | None = None
    explosions: dict[str, int] = field(default_factory=dict)
    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)


def batches_for(train: Dataset, seed: int, *, flip: bool = False) -> ShuffledBatches:
    """Return the data in the order that every family with this seed sees."""
    return ShuffledBatches(train, seed_of("data", seed), flip=flip)


def train_for(
    contender: Contender,
    batches: Batches,
    effort: RaceEffort,
    *,
    clock: Callable[[], float] | None = None,
    tell: Callable[[Trained], None] | None = None,
) -> Trained:
    """Train a model until its time is up, no step reaching beyond it.

    Args:
        contender: fresh.
        batches: the data.
        effort: seconds and marks are looked at.
        clock: what measures the time; that of the processor, or with an accelerator that of the clock, unless given.
        tell: told now and then how far it is.

    Returns:
        What came of it; a model that diverged has the snapshots until then.
    """
    trainer = Trainer(contender.task, batches, contender.config)
    device = next(contender.task.parameters()).device
    clock = clock or (time.process_time if device.type == "cpu" else time.perf_counter)
    found, watch, marks = Trained(), _Watch(), deque(effort.marks)
    plans, points = 0, 0
    began = clock()
    while found.seconds + (found.seconds / found.steps if found.steps else 0.0) <= effort.seconds:
        if found.steps == FIRST_PLAN or found.seconds >= (plans + 1) * effort.seconds / PLANS:
            plans = int(found.seconds * PLANS / effort.seconds)
            steps = max(round(found.steps * effort.seconds / found.seconds), found.steps + 1)
            trainer.config = replace(trainer.config, steps=steps)
        try:
            watch.see(trainer.advance())
        except NonFiniteError as error:
            found.diverged = str(error)
        found.seconds, found.steps, found.skipped = clock() - began, trainer.index, trainer.skipped
        if found.seconds >= (points + 1) * effort.seconds / POINTS:
            points = int(found.seconds * POINTS / effort.seconds)
            watch.note(found.seconds)
            if tell is not None:
                tell(found)
        if found.diverged is not None:
            break
        while len(marks) > 1 and found.seconds >= marks[0] * effort.seconds:
            marks.popleft()
            if found.seconds < marks[0] * effort.seconds:
                found.snapshots.append(_snapshot(trainer, contender, found))
    watch.note(found.seconds)
    if found.diverged is None:
        found.snapshots.append(_snapshot(trainer, contender, found))
    found.explosions, found.losses = watch.explosions, watch.losses
    return found


class _Watch:
    """Counts gradients that shoot up, and keeps the losses."""

    def __init__(self) -> None:
        self.explosions: dict[str, int] = {}
        self.losses: dict[str, list[tuple[float, float]]] = {}
        self._norms: dict[str, deque[float]] = {}
        self._high: dict[str, bool] = {}
        self._sums: dict[str, list[float]] = {}

    def see(self, step: TrainStep) -> None:
        for name, player in step.players.items():
            if not player.applied:
                continue
            self._sums.setdefault(name, []).append(player.loss)
            norms = self._norms.setdefault(name, deque(maxlen=RECENT))
            high = len(norms) == RECENT and player.grad_norm > EXPLOSION * statistics.median(norms)
            self.explosions[name] = self.explosions.get(name, 0) + (high and not self._high.get(name, False))
            self._high[name] = high
            norms.append(player.grad_norm)

    def note(self, seconds: float) -> None:
        for name, losses in self._sums.items():
            if losses:
                self.losses.setdefault(name, []).append((seconds, statistics.fmean(losses)))
                losses.clear()


def _snapshot(trainer: Trainer, contender: Contender, found: Trained) -> Snapshot:
    average, model = contender.average, contender.task.players()["model"]
    weights = model.state_dict() if average is None else trainer.averages["model"].weights(average)
    return Snapshot(found.seconds, found.steps, {name: tensor.clone() for name, tensor in weights.items()})


@dataclass(frozen=True, eq=False)
class Raced:
    """A model of a family, trained and measured.

    Attributes:
        record: everything as a dictionary that JSON can hold.
        images: ``(samples, C, H, W)`` uint8, drawn in the end; None of a model that came to nothing.
    """

    record: dict[str, Any]
    images: Tensor | None


def race(
    contender: Contender,
    train: Dataset,
    test: Dataset,
    extractor: FeatureExtractor,
    effort: RaceEffort,
    *,
    flip: bool = False,
    clock: Callable[[], float] | None = None,
    tell: Callable[[Trained], None] | None = None,
) -> Raced:
    """Train a model and measure it, on its way and in the end.

    Args:
        contender: fresh; it is left with the weights that were measured.
        train: what it learns from.
        test: what it is compared with.
        extractor: features, made from ``train``.
        effort: how much is spent.
        flip: whether pictures are mirrored at random.
        clock: as of ``train_for``.
        tell: as of ``train_for``.
    """
    seed = contender.config.seed
    found = train_for(contender, batches_for(train, seed, flip=flip), effort, clock=clock, tell=tell)
    record = _about(contender, train, found, effort)
    record["curve"] = []
    nothing = {"scores": None, "accuracy": None, "spread": None, "bits": None, "speed": None}
    model = contender.task.players()["model"]
    try:
        for snapshot in found.snapshots:
            model.load_state_dict(dict(snapshot.weights))
            record["curve"].append(_point(contender, snapshot, test, extractor, effort))
        if not found.snapshots:
            return Raced(record | nothing, None)
        images, seconds = _drawn(contender, effort.samples, effort)
    except FloatingPointError as error:
        # Weights that are finite may still draw what is not: the run came to nothing, which is a result.
        record["stability"]["diverged"] = str(error)
        return Raced(record | nothing, None)
    labels, sampling = _labels(contender, effort.samples), contender.sampling()
    scores = evaluate(
        images, labels, train, test, extractor, budget=effort.budget, seed=seed, resamples=effort.resamples
    )
    record |= {
        "scores": scores.to_dict(),
        "accuracy": asdict(scores.accuracy.score if isinstance(scores.accuracy, AccuracyReport) else scores.accuracy),
        "spread": asdict(spread(extractor, images, labels, test, seed=seed, resamples=effort.resamples)),
        "bits": _bits(contender, test, effort, seed),
        "speed": {
            "seconds_per_image": seconds / effort.samples,
            "batch_size": effort.batch_size,
            "evaluations": sampling.evaluations,
            "settings": sampling.settings,
        },
    }
    return Raced(record, images)


def _drawn(contender: Contender, count: int, effort: RaceEffort) -> tuple[Tensor, float]:
    """Return samples as they would be saved, and the seconds by the clock that they took."""
    labels, seed = _labels(contender, count), seed_of("race", contender.config.seed)
    sampling, began = contender.sampling(), time.perf_counter()
    images = sampling.sample(count, labels, seed, effort.batch_size)
    return to_uint8(images), time.perf_counter() - began


def spread(
    extractor: FeatureExtractor,
    images: Tensor,
    labels: Tensor | None,
    test: Dataset,
    *,
    seed: int,
    resamples: int = 200,
) -> Score | Missing:
    """Return how far samples of a class lie from each other in features, as a share of what test examples of it do.

    Args:
        extractor: features.
        images: ``(N, C, H, W)`` samples.
        labels: ``(N,)`` their classes; None takes all as one class.
        test: real examples.
        seed: of the bootstrap, over the samples.
        resamples: of the bootstrap.

    Returns:
        The mean over classes: about 1 for samples as diverse as the data, 0 for one picture a class; missing where no
        class has two samples and two test examples.
    """
    drawn, real = extractor(images).double(), extractor.of(test).double()
    whole = labels is None
    own = torch.zeros(len(drawn), dtype=torch.int64) if labels is None else labels.cpu()
    other = torch.zeros(len(real), dtype=torch.int64) if whole else test.gather(torch.arange(len(test)))["label"]
    classes = [k for k in torch.unique(own).tolist() if int((own == k).sum()) >= 2 and int((other == k).sum()) >= 2]
    if not classes:
        return Missing("two samples and two test examples of one class are needed to tell how far they lie apart")
    of_real = {k: _mean_distance(torch.cdist(real[other == k], real[other == k])) for k in classes}
    apart = {k: torch.cdist(drawn[own == k], drawn[own == k]) for k in classes}
    counts = [len(apart[k]) for k in classes]

    def ratio(ids: Any) -> float:
        means = [
            _mean_distance(apart[k][chosen][:, chosen]) / of_real[k] for k, chosen in zip(classes, ids, strict=True)
        ]
        return statistics.fmean(means)

    # A resample holds an example several times, which are no distance apart: recentring takes that out.
    return bootstrap(
        ratio,
        counts,
        seed=seed_of("spread", seed),
        resamples=resamples,
        recentre=True,
        note=f"mean distance within a class in {extractor.card.name} over that of test examples",
    )


def _mean_distance(distances: Tensor) -> float:
    count = len(distances)
    return float(distances.sum() / (count * (count - 1)))


def _about(contender: Contender, train: Dataset, found: Trained, effort: RaceEffort) -> dict[str, Any]:
    config = contender.config
    return {
        "family": contender.family.value,
        "seed": config.seed,
        "data": {"name": train.info.name, "count": len(train), "fingerprint": train.info.fingerprint},
        "budget_seconds": effort.seconds,
        "seconds": found.seconds,
        "steps": found.steps,
        "batch_size": config.batch_size,
        "examples": found.steps * config.batch_size,
        "parameters": contender.parameters,
        "drawing_parameters": contender.drawing_parameters,
        "settings": dict(contender.settings),
        "samples": effort.samples,
        "stability": {"diverged": found.diverged, "skipped": found.skipped, "explosions": found.explosions},
        "losses": found.losses,
    }


def _point(
    contender: Contender,
    snapshot: Snapshot,
    test: Dataset,
    extractor: FeatureExtractor,
    effort: RaceEffort,
) -> dict[str, Any]:
    """Return the quality of a model on its way."""
    seed = contender.config.seed
    images, _ = _drawn(contender, effort.curve_samples, effort)
    ids = chosen_examples(test, max(min(effort.curve_samples, len(test)), 2), seed)
    strata = Strata(classes_of(test, ids), _labels(contender, len(images)))
    real, features = extractor.of(test, ids), extractor(images)
    quality = compare(real, features, extractor.identity, seed_of("race", seed), strata=strata)
    return {
        "seconds": snapshot.seconds,
        "steps": snapshot.steps,
        "samples": effort.curve_samples,
        **{name: asdict(score) for name, score in vars(quality).items() if score is not None},
    }


def _labels(contender: Contender, count: int) -> Tensor | None:
    """Return a class for each sample, evenly, or None for a model without."""
    return None if contender.classes is None else torch.arange(count) % contender.classes


def _bits(contender: Contender, test: Dataset, effort: RaceEffort, seed: int) -> dict[str, Any]:
    if contender.bits is None:
        return asdict(Missing("the family has no likelihood"))
    if effort.likelihood_examples == 0:
        return asdict(Missing("none was asked for"))
    found: Bits = contender.bits(test, effort.likelihood_examples, seed)
    return {"score": found.score.to_dict(), "kind": found.kind}
