"""A model ready to be used: conditioner, denoiser, codec and the settings it was made for.

The Python call, the command line and the HTTP body are one request, ``SampleRequest``. A request is answered in
batches, and sample k of a seed is the same whatever the batch size.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unfog.data.dataset import Attribute
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.random import Rng
from unfog.sampling.codec.codec import Codec, Identity
from unfog.sampling.conditioning.conditioner import Attributes, Combined, Conditioner
from unfog.sampling.guidance.auto import AutoGuided
from unfog.sampling.guidance.bounds import Bounded
from unfog.sampling.guidance.classifier import ClassifierGuided, NoisyClassifier
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.interval import Interval
from unfog.sampling.guidance.several import Several, Weighted
from unfog.sampling.request import Condition, SampleRequest, SampleSettings
from unfog.sampling.sampler import Step, require_finite


@dataclass(frozen=True)
class Preview:
    """One step of one batch.

    Attributes:
        start: index of the batch's first sample in the request.
        step: where its sampler is.
        progress: share of the whole request's steps that is done, in (0, 1].
        finished: whether the batch is done, and ``step.x`` its samples.
    """

    start: int
    step: Step
    progress: float
    finished: bool


@dataclass(frozen=True)
class Samples:
    """The answer.

    Attributes:
        x: ``(count, ...)`` float32 data in [-1, 1] up to the model's error.
        request: what was asked for.
        settings: how they were drawn.
        latent: whether they are codes of pictures, of any range, whose autoencoder is not at hand.
    """

    x: Tensor
    request: SampleRequest
    settings: SampleSettings
    latent: bool = False


Guide = Callable[[Denoiser], Denoiser]
"""Guidance of another kind: makes of a denoiser the guided one."""


class Pipeline:
    """A model with everything that is needed to sample from it.

    Args:
        denoiser: estimates x0.
        conditioner: raw conditions to the network's.
        codec: from what is diffused to data.
        shape: of one example of what is diffused, such as ``(3, 32, 32)``.
        settings: how to sample unless a request says otherwise.
        classes: names of the classes.
        attributes: names of the attributes and of their values.
        latent: whether what is diffused are codes whose codec is not at hand.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        codec: Codec,
        shape: Sequence[int],
        settings: SampleSettings,
        classes: Sequence[str] = (),
        attributes: Sequence[Attribute] = (),
        *,
        latent: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.codec = codec
        self.shape = tuple(shape)
        self.settings = settings
        self.classes = tuple(classes)
        self.attributes = tuple(attributes)
        self.classifier: NoisyClassifier | None = None
        self.weak: Denoiser | None = None
        self.guides: tuple[Guide, ...] = ()
        self.latent = latent

    def guided(
        self, *guides: Guide, classifier: NoisyClassifier | None = None, weak: Denoiser | None = None
    ) -> "Pipeline":
        """Return the same pipeline with further guidance.

        Args:
            guides: applied in this order to what the request's own guidance has made, before estimates are bounded:
                ``pipeline.guided(lambda denoiser: LossGuided(denoiser, loss, 2.0))``.
            classifier: of noisy data, with the classes of the model, for requests with ``settings.classifier``.
            weak: a weaker model of the same conditions and process, for requests with ``settings.weak``.
        """
        other = copy.copy(self)
        other.guides = (*self.guides, *guides)
        other.classifier = self.classifier if classifier is None else classifier
        other.weak = self.weak if weak is None else weak
        return other

    def sample(self, request: SampleRequest) -> Samples:
        """Answer a request.

        Raises:
            ValueError: if the model cannot do what is asked.
            FloatingPointError: if a sample is not finite.
        """
        finished = [preview.step.x for preview in self.stream(request) if preview.finished]
        return Samples(torch.cat(finished), request, request.settings or self.settings, self.latent)

    @torch.inference_mode()
    def stream(self, request: SampleRequest) -> Iterator[Preview]:
        """Answer a request step by step; states and estimates are decoded to data.

        Raises:
            ValueError: if the model cannot do what is asked.
            FloatingPointError: if a sample is not finite.
        """
        self.check(request)
        settings = request.settings or self.settings
        for module in (self.denoiser, self.classifier, self.weak):
            if isinstance(module, nn.Module):
                module.eval()
        times = settings.grid.times(self.denoiser.process.schedule, settings.steps)
        for start in range(0, request.count, request.batch_size):
            stop = min(start + request.batch_size, request.count)
            for step in self._steps(request.part(start, stop), settings, times):
                finished = step.progress == 1
                if finished:
                    require_finite(step.x)
                decoded = replace(step, x=self.codec.decode(step.x), x0=self.codec.decode(step.x0))
                done = start + (stop - start) * step.progress
                yield Preview(start, decoded, done / request.count, finished)

    def _steps(self, request: SampleRequest, settings: SampleSettings, times: Tensor) -> Iterator[Step]:
        """Answer a request for one batch."""
        device = next(self.denoiser.parameters(), times).device
        rng = Rng.of(request.seed, torch.arange(request.count, device=device) + request.first, device=device)
        denoiser, cond = self._guided(request, settings, device)
        x = denoiser.process.prior(self.shape, rng=rng, device=device)
        yield from settings.sampler.steps(denoiser, x, times, cond, rng=rng)

    def _guided(
        self, request: SampleRequest, settings: SampleSettings, device: torch.device
    ) -> tuple[Denoiser, dict[str, Tensor]]:
        """Return the denoiser with the guidance that a request of one batch asks for, and the sampler's condition."""
        plain = guided = self.denoiser
        cond, negative = (self.told(c, request.count, device) for c in (request.condition, request.away))
        given = cond
        if settings.weak != 1 and self.weak is not None:
            guided = AutoGuided(guided, self.weak, settings.weak)
        if request.also:
            own = [Weighted(cond, settings.guidance)] if request.condition.told else []
            others = [
                Weighted(self.told(other, request.count, device), other.scale, self._mask(other, device))
                for other in request.also
            ]
            guided, given = Several(guided, own + others, negative), {}
            plain = Several(plain, [Weighted(cond, 1.0)], negative)
        elif settings.guidance != 1:
            guided = ClassifierFree(guided, settings.guidance, negative, rescale=settings.rescale)
        if settings.classifier != 0 and self.classifier is not None:
            guided = ClassifierGuided(guided, self.classifier, cond["label"], settings.classifier)
        for guide in self.guides:
            guided = guide(guided)
        if settings.interval is not None:
            guided = Interval(guided, plain, *settings.interval)
        return guided if settings.bounds is None else Bounded(guided, settings.bounds), given

    def told(self, condition: Condition, count: int, device: torch.device) -> dict[str, Tensor]:
        """Return what the network is told of so many samples: the null of what a condition leaves open.

        Args:
            condition: for each of them, or one for all; as ``check`` takes it.
            count: number of samples.
            device: of the tensors.
        """
        cond = self.conditioner.null(count, device)
        if condition.labels is not None:
            cond["label"] = torch.tensor([condition.label_of(k) for k in range(count)], device=device)
        if condition.attributes is not None:
            cond["attributes"] = torch.tensor([condition.attributes_of(k) for k in range(count)], device=device)
        return cond

    def _mask(self, condition: Condition, device: torch.device) -> Tensor | None:
        """Return where a condition holds, ``(1, 1, H, W)`` of 0 and 1: the pixels whose centres lie in its region."""
        if condition.region is None:
            return None
        height, width = self.shape[-2:]
        top, left, bottom, right = condition.region
        rows, columns = ((torch.arange(size, device=device) + 0.5) / size for size in (height, width))
        inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        return inside.float()[None, None]

    def check(self, request: SampleRequest) -> None:
        """Raise ``ValueError`` if the model cannot do what is asked."""
        settings = request.settings or self.settings
        # A grid refuses counts that it cannot hold, a sampler what it cannot do on one.
        times = settings.grid.times(self.denoiser.process.schedule, settings.steps)
        settings.sampler.check(self.denoiser, times)
        require(
            settings.bounds is None or isinstance(self.codec, Identity),
            f"bounds=None, got {settings.bounds}: they are those of data, and what is sampled here are codes of them",
        )
        for condition in request.conditions:
            self._check_condition(condition, request.count)
        self._check_null(request, settings)
        self._check_settings(request, settings)

    def _check_condition(self, condition: Condition, count: int) -> None:
        """Refuse what the model does not know."""
        null = self.conditioner.null(1)
        if condition.labels is not None:
            require("label" in null, "no labels: this model was trained without classes")
            classes = int(null["label"][0])
            given = {condition.label_of(k) for k in range(count)}
            wrong = [label for label in given if label is None or not 0 <= label < classes]
            require(not wrong, f"labels from 0 to {classes - 1}, got {wrong}")
        if condition.attributes is not None:
            require("attributes" in null, "no attributes: this model was trained without")
            sizes = null["attributes"][0].tolist()
            rows = {condition.attributes_of(k) or () for k in range(count)}
            bad = [row for row in rows if len(row) != len(sizes) or min(row) < 0 or any(map(operator.gt, row, sizes))]
            require(not bad, f"{len(sizes)} attributes, each from 0 to {sizes}, the last being not told, got {bad[:2]}")
            told = all(value < size for row in rows for value, size in zip(row, sizes, strict=True))
            require(
                told or _knows_some(self.conditioner),
                "all attributes: this model was trained with all of them told; train with condition.dropout_each=0.2",
            )
        require(
            condition.region is None or len(self.shape) == 3,
            f"no region: examples of this model are of shape {self.shape}, which is no picture",
        )

    def _check_null(self, request: SampleRequest, settings: SampleSettings) -> None:
        """Refuse to ask a model for an unconditional answer that it was not trained for."""
        conditional = bool(self.conditioner.null(1))
        if not request.condition.told and not request.also:
            require(
                not conditional or self.conditioner.dropout > 0,
                "labels or attributes: this model was trained without condition dropout and knows no unconditional "
                "answer",
            )
            require(
                conditional or settings.guidance == 1,
                f"a guidance scale of 1, got {settings.guidance}: this model was trained without classes and "
                "attributes, so there is nothing to be guided towards",
            )
            require(
                settings.guidance == 1,
                f"labels or attributes to be guided towards: a guidance scale of {settings.guidance} does nothing "
                "without; give some, or a scale of 1",
            )
            return
        require(
            self.conditioner.dropout > 0 or (settings.guidance == 1 and not request.also),
            f"a guidance scale of 1, got {settings.guidance}: this model was trained without condition dropout, so it "
            "has no unconditional answer to be guided away from; train with condition.dropout=0.1",
        )

    def _check_settings(self, request: SampleRequest, settings: SampleSettings) -> None:
        """Refuse settings that would do nothing."""
        free = settings.guidance != 1 or bool(request.also)
        require(
            request.negative is None or free,
            "a guidance scale other than 1 to be guided away from a negative condition, got 1, which does not ask it",
        )
        require(
            settings.rescale == 0 or (settings.guidance != 1 and not request.also),
            f"a guidance scale other than 1 and no further conditions with rescale={settings.rescale}, which acts on "
            "classifier-free guidance alone",
        )
        require(
            settings.classifier == 0 or (self.classifier is not None and request.labels is not None),
            f"a classifier of noisy data, and labels to be guided to, with classifier={settings.classifier}: give the "
            "pipeline a classifier (--classifier RUN, in Python Pipeline.guided), and the request labels",
        )
        require(
            settings.weak == 1 or self.weak is not None,
            f"a weaker model to be guided away from with weak={settings.weak}: give the pipeline one (--weak RUN, in "
            "Python Pipeline.guided)",
        )
        some = free or settings.classifier != 0 or settings.weak != 1 or bool(self.guides)
        require(
            settings.interval is None or some,
            f"some guidance within interval={settings.interval}; give a guidance scale other than 1, or no interval",
        )


def _knows_some(conditioner: Conditioner) -> bool:
    """Whether a model was trained with only some of its attributes told."""
    if isinstance(conditioner, Combined):
        return any(_knows_some(part) for part in conditioner.each())
    return isinstance(conditioner, Attributes) and conditioner.each > 0
