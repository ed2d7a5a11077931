"""A finished model in numbers: samples scored against the data, the loss by noise level, and the time they take."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from unfog.asking import asked_like, classes_in_turn, in_turn, needs_examples
from unfog.data.dataset import Dataset, to_uint8
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.evaluation.accuracy import AccuracyReport
from unfog.evaluation.card import Card, ExtractorCard
from unfog.evaluation.classifier import Budget
from unfog.evaluation.extractors import Extractor
from unfog.evaluation.features import FeatureCard, FeatureConfig, feature_extractor, obstacle
from unfog.evaluation.loss import ExpectedLoss, LossCurve, expected_loss, loss_by_level
from unfog.evaluation.reference import Remembering
from unfog.evaluation.scores import Comparison, Missing, Resemblance, Scores, evaluate, score_of
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.sampling.request import SampleRequest, SampleSettings
from unfog.tasks.denoising import Denoising
from unfog.training.parallel import World

Made = TypeVar("Made")


@dataclass(frozen=True)
class Effort:
    """How much is spent on measuring.

    Attributes:
        features: how the feature network is made.
        budget: of the classifiers behind the accuracy score.
        resamples: of each bootstrap.
        loss_examples: examples that the loss is measured on, of the training and of the test set each.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    budget: Budget = field(default_factory=Budget)
    resamples: int = 200
    loss_examples: int = 512


@dataclass(frozen=True)
class Measured:
    """What was measured, and of which samples.

    Attributes:
        scores: of the samples.
        loss_train: expected training loss on training examples.
        loss_test: the same on held-out examples.
        levels_train: errors by noise level on training examples.
        levels_test: the same on held-out examples.
        samples: how many samples were drawn; sample k has the label ``k % classes``.
        classes: how many classes they were drawn over; 0 for samples without labels.
        settings: of the sampler, in words.
        guidance: scale of guidance.
        evaluations: of the network for one sample, at most if the sampler is adaptive.
        seed: of the samples and of everything that was drawn at random.
        sampling_seconds: wall time of drawing all samples.
        measuring_seconds: wall time of everything else.
        images: ``(samples, C, H, W)`` uint8; None in what was read back from JSON.
    """

    scores: Scores
    loss_train: ExpectedLoss
    loss_test: ExpectedLoss
    levels_train: LossCurve
    levels_test: LossCurve
    samples: int
    classes: int
    settings: str
    guidance: float
    evaluations: int
    seed: int
    sampling_seconds: float
    measuring_seconds: float
    images: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def seconds_per_image(self) -> float:
        """Wall time of sampling, per image."""
        return self.sampling_seconds / self.samples

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images as a dictionary that JSON can hold."""
        numbers = {name: value for name, value in vars(self).items() if name != "images"}
        parts = ("scores", "loss_train", "loss_test", "levels_train", "levels_test")
        return {**numbers, **{name: numbers[name].to_dict() for name in parts}}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Measured":
        """Return what ``to_dict`` turned into a dictionary, without the images."""
        parts = {
            "scores": _scores(stored["scores"]),
            **{name: ExpectedLoss.from_dict(stored[name]) for name in ("loss_train", "loss_test")},
            **{name: LossCurve.from_dict(stored[name]) for name in ("levels_train", "levels_test")},
        }
        return Measured(**{**stored, **parts})

    def label_of(self, sample: int) -> int | None:
        """Return the class that a sample was drawn for."""
        return sample % self.classes if self.classes else None

    def drawn(self, pipeline: Pipeline, numbers: Sequence[int]) -> Tensor:
        """Return some of the samples, drawn again where the images are not at hand: ``(N, C, H, W)`` uint8.

        Args:
            pipeline: what was measured.
            numbers: which samples, counted from 0.
        """
        if self.images is not None:
            return self.images[list(numbers)]
        require(
            not pipeline.attributes,
            "the images of a model that was told attributes, which are not kept here: measure it again",
        )
        settings = pipeline.settings.with_guidance(self.guidance)
        requests = [SampleRequest(1, self.label_of(k), self.seed, k, settings) for k in numbers]
        return torch.cat([to_uint8(pipeline.sample(request).x).cpu() for request in requests])


def measure(
    pipeline: Pipeline,
    task: Denoising,
    train: Dataset,
    test: Dataset,
    *,
    samples: int,
    guidance: float,
    seed: int,
    batch_size: int,
    cache: Path,
    effort: Effort | None = None,
    features: Extractor | None = None,
    world: World | None = None,
) -> Measured:
    """Draw samples evenly over the classes and measure them, and measure the loss of the network that drew them.

    Scores that the samples or the data do not suffice for are missing, with the reason.

    Of several processes, process 0 calls this, and the others call ``assist``.

    Args:
        pipeline: what is measured: its weights, at its settings.
        task: gives the density of the training times and the weight of the loss. The network whose loss is measured
            is the pipeline's, which may be an average of the weights that the task trained.
        train: the examples that the network was trained on.
        test: examples that it has not seen.
        samples: how many are drawn.
        guidance: scale of guidance; 1 for a model without classes.
        seed: of the samples and of everything that is drawn at random.
        batch_size: samples at a time; it changes speed and memory only.
        cache: folder in which the feature network of the training set, or its features in another, are kept.
        effort: how much is spent on measuring.
        features: to compare in; those of a network that is made from the training set unless given.
        world: the processes that draw together; one alone unless given.

    Raises:
        ValueError: if the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    effort = effort or Effort()
    denoiser = pipeline.denoiser
    require(isinstance(denoiser, NetworkDenoiser), f"a NetworkDenoiser to measure, got {type(denoiser).__name__}")
    assert isinstance(denoiser, NetworkDenoiser)
    sampled = Denoising(
        denoiser, pipeline.conditioner, task.times, task.weight, coupling=task.coupling, variance=task.variance
    )
    settings = pipeline.settings.with_guidance(guidance)
    request, classes = requested(pipeline, test, settings, samples, seed, batch_size)
    labels = None if request.labels is None else torch.tensor(request.labels)
    began = time.perf_counter()
    images = draw(pipeline, request, world)
    drawn = time.perf_counter()
    device = next(denoiser.parameters(), images).device
    extractor: Extractor | Missing
    if features is not None:
        extractor = Remembering(features, cache)
    else:
        why = obstacle(train, effort.features)
        extractor = Missing(why) if why else feature_extractor(train, cache, effort.features, device=device)
    scores = evaluate(
        images, labels, train, test, extractor, budget=effort.budget, seed=seed, resamples=effort.resamples
    )
    count = effort.loss_examples
    losses = [expected_loss(sampled, part, count=count, seed=seed, batch_size=batch_size) for part in (train, test)]
    curves = [loss_by_level(sampled, part, count=count, seed=seed, batch_size=batch_size) for part in (train, test)]
    return Measured(
        scores=scores,
        loss_train=losses[0],
        loss_test=losses[1],
        levels_train=curves[0],
        levels_test=curves[1],
        samples=samples,
        classes=classes,
        settings=describe(settings),
        guidance=guidance,
        evaluations=settings.evaluations,
        seed=seed,
        sampling_seconds=drawn - began,
        measuring_seconds=time.perf_counter() - drawn,
        images=images,
    )


def assist(
    pipeline: Pipeline, test: Dataset, *, samples: int, guidance: float, seed: int, batch_size: int, world: World
) -> None:
    """Draw this process's part of what process 0 measures; the arguments are those of ``measure``."""
    settings = pipeline.settings.with_guidance(guidance)
    draw(pipeline, requested(pipeline, test, settings, samples, seed, batch_size)[0], world)


def requested(
    pipeline: Pipeline, test: Dataset, settings: SampleSettings, samples: int, seed: int, batch_size: int
) -> tuple[SampleRequest, int]:
    """Return what is drawn, and over how many classes evenly: attributes are those of test examples, and no classes."""
    require(samples >= 1, f"at least 1 sample, got {samples}")
    if needs_examples(pipeline.conditioner):
        asked = asked_like(pipeline.conditioner, test, samples, settings=settings, seed=seed, batch_size=batch_size)
        return asked, 0
    condition = in_turn(pipeline.conditioner, None, range(samples))
    request = SampleRequest.of(samples, condition, seed=seed, settings=settings, batch_size=batch_size)
    return request, classes_in_turn(pipeline.conditioner)


def draw(pipeline: Pipeline, request: SampleRequest, world: World | None = None) -> Tensor:
    """Draw samples as they would be saved: ``(count, C, H, W)`` uint8 on the CPU.

    Samples are brought to 8 bits batch by batch, so that only one batch is held as floats.

    Args:
        pipeline: what draws.
        request: which samples.
        world: the processes that draw together, each a contiguous part, and all of which call this; one alone unless
            given.

    Returns:
        The samples; in other processes than process 0, to which they send theirs, nothing: ``(0,)``.

    Raises:
        ValueError: if the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    world = world or World.alone()
    start, stop = world.part(request.count)
    previews = pipeline.stream(request.part(start, stop)) if start < stop else iter(())
    drawn = [to_uint8(preview.step.x).cpu() for preview in previews if preview.finished]
    images = world.gathered(torch.cat(drawn) if drawn else None, request.count)
    return torch.empty(0, dtype=torch.uint8) if images is None else images


def describe(settings: SampleSettings) -> str:
    """Say in words how samples are drawn."""
    number = f"{settings.steps} step" + ("s" if settings.steps > 1 else "")
    told = [worded(settings.sampler) + f" on {worded(settings.grid)}", number, f"guidance {settings.guidance:g}"]
    if settings.interval is not None:
        told.append("noise levels {:g} to {:g}".format(*settings.interval))
    for name, usual in (("rescale", 0.0), ("classifier", 0.0), ("weak", 1.0)):
        if getattr(settings, name) != usual:
            told.append(f"{name} {getattr(settings, name):g}")
    if settings.bounds is not None:
        told.append(worded(settings.bounds))
    return ", ".join(told)


def worded(value: Any) -> str:
    """Write a value of the library as it would be made: its class and what it was given, choices by their name."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return f"({len(value)} values)"
    if isinstance(value, tuple) and len(value) > 6:
        return f"({len(value)} values, {worded(value[0])} to {worded(value[-1])})"
    if is_dataclass(value):
        given = [f"{f.name}={worded(getattr(value, f.name))}" for f in fields(value) if f.init]
        return f"{type(value).__name__}({', '.join(given)})" if given else type(value).__name__
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scores(stored: Mapping[str, Any]) -> Scores:
    """Return the scores that ``Scores.to_dict`` turned into a dictionary."""
    card = stored.get("card")
    made = {
        **{name: Comparison.from_dict(stored[name]) for name in ("samples", "floor")},
        "features": _or_missing(_features, stored["features"]),
        "copying": score_of(stored["copying"]),
        "nearest": tuple(Resemblance(**item) for item in stored["nearest"]),
        "accuracy": _or_missing(_accuracy, stored["accuracy"]),
        "card": None if card is None else Card.from_dict(card),
    }
    return Scores(**{**stored, **made})


def _or_missing(make: Callable[[dict[str, Any]], Made], stored: dict[str, Any]) -> Made | Missing:
    return Missing(**stored) if "reason" in stored else make(stored)


def _features(stored: dict[str, Any]) -> FeatureCard | ExtractorCard:
    return FeatureCard.from_dict(stored) if "pretext" in stored else ExtractorCard(**stored)


def _accuracy(stored: Mapping[str, Any]) -> AccuracyReport:
    yardstick = stored["yardstick"]
    made = {
        "score": Score(**stored["score"]),
        "per_class": {name: Score(**value) for name, value in stored["per_class"].items()},
        "yardstick": None if yardstick is None else Score(**yardstick),
        "budget": Budget(**stored["budget"]),
    }
    return AccuracyReport(**{**stored, **made})
