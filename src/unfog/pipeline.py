"""A model ready to be used: conditioner, denoiser, codec and the settings it was made for.

The Python call, the command line and the HTTP body are one request, ``SampleRequest``. A request is answered in
batches, and sample k of a seed is the same whatever the batch size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.random import Rng
from unfog.sampling.codec.codec import Codec, Identity
from unfog.sampling.conditioning.conditioner import Conditioner, Label
from unfog.sampling.grid import TimeGrid
from unfog.sampling.guidance.bounds import Bounded, Bounds
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.sampler import Sampler, Step, require_finite


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        sampler: the method.
        grid: where it evaluates.
        steps: steps of the grid, at least 1.
        guidance: scale of classifier-free guidance; 1 is none.
        bounds: within which estimates are kept after guidance; None leaves them.
    """

    sampler: Sampler
    grid: TimeGrid
    steps: int = 20
    guidance: float = 1.0
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps of at least 1, got {self.steps}")

    @property
    def evaluations(self) -> int:
        """How often the network is called for one sample (adaptive samplers: at most); guidance calls it twice."""
        return self.sampler.evaluations(self.steps) * (1 if self.guidance in (0.0, 1.0) else 2)

    @property
    def cost(self) -> str:
        """What a sample costs, in words: the number of evaluations."""
        return f"{'at most ' if self.sampler.adaptive else ''}{self.evaluations} evaluations"


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
    """

    count: int = 1
    labels: int | Sequence[int] | None = None
    seed: int = 0
    first: int = 0
    settings: SampleSettings | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(self.count >= 1, f"a count of at least 1, got {self.count}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")
        require(0 <= self.seed < 2**63, f"a seed in [0, 2**63), got {self.seed}")
        require(0 <= self.first < 2**32 - self.count, f"first in [0, 2**32 - count), got {self.first}")
        if isinstance(self.labels, Sequence):
            require(len(self.labels) == self.count, f"{self.count} labels, one a sample, got {len(self.labels)}")

    def part(self, start: int, stop: int) -> "SampleRequest":
        """Return the request for samples ``start`` to ``stop - 1`` of this one, counted from 0: the same samples."""
        labels = self.labels[start:stop] if isinstance(self.labels, Sequence) else self.labels
        return replace(self, count=stop - start, labels=labels, first=self.first + start)

    def label_of(self, index: int) -> int | None:
        """Return the class of sample ``index``, counted from 0."""
        return self.labels[index] if isinstance(self.labels, Sequence) else self.labels


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
    """The answer: ``x`` is ``(count, ...)`` float32 data in [-1, 1] up to the model's error."""

    x: Tensor
    request: SampleRequest
    settings: SampleSettings


class Pipeline:
    """A model with everything that is needed to sample from it.

    Args:
        denoiser: estimates x0.
        conditioner: raw conditions to the network's.
        codec: from what is diffused to data.
        shape: of one example of what is diffused, such as ``(3, 32, 32)``.
        settings: how to sample unless a request says otherwise.
        classes: names of the classes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        codec: Codec,
        shape: Sequence[int],
        settings: SampleSettings,
        classes: Sequence[str] = (),
    ) -> None:
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.codec = codec
        self.shape = tuple(shape)
        self.settings = settings
        self.classes = tuple(classes)

    def sample(self, request: SampleRequest) -> Samples:
        """Answer a request.

        Raises:
            ValueError: if the model cannot do what is asked.
            FloatingPointError: if a sample is not finite.
        """
        finished = [preview.step.x for preview in self.stream(request) if preview.finished]
        return Samples(torch.cat(finished), request, request.settings or self.settings)

    @torch.inference_mode()
    def stream(self, request: SampleRequest) -> Iterator[Preview]:
        """Answer a request step by step; states and estimates are decoded to data.

        Raises:
            ValueError: if the model cannot do what is asked.
            FloatingPointError: if a sample is not finite.
        """
        self.check(request)
        settings = request.settings or self.settings
        self.denoiser.eval()
        times = settings.grid.times(self.denoiser.process.schedule, settings.steps)
        for start in range(0, request.count, request.batch_size):
            stop = min(start + request.batch_size, request.count)
            for step in self._steps(request, settings, times, start, stop):
                finished = step.progress == 1
                if finished:
                    require_finite(step.x)
                decoded = replace(step, x=self.codec.decode(step.x), x0=self.codec.decode(step.x0))
                done = start + (stop - start) * step.progress
                yield Preview(start, decoded, done / request.count, finished)

    def _steps(
        self, request: SampleRequest, settings: SampleSettings, times: Tensor, start: int, stop: int
    ) -> Iterator[Step]:
        device = next(self.denoiser.parameters(), times).device
        index = torch.arange(start, stop, device=device)
        rng = Rng.of(request.seed, index + request.first, device=device)
        denoiser, cond = self._conditioned(request, settings, start, stop, device)
        if settings.bounds is not None:
            denoiser = Bounded(denoiser, settings.bounds)
        x = denoiser.process.prior(self.shape, rng=rng, device=device)
        yield from settings.sampler.steps(denoiser, x, times, cond, rng=rng)

    def _conditioned(
        self, request: SampleRequest, settings: SampleSettings, start: int, stop: int, device: torch.device
    ) -> tuple[Denoiser, dict[str, Tensor]]:
        null = self.conditioner.null(stop - start, device)
        if request.labels is None:
            return self.denoiser, null
        labels = torch.tensor([request.label_of(k) for k in range(start, stop)], device=device)
        cond = self.conditioner({"label": labels})
        if settings.guidance == 1:
            return self.denoiser, cond
        return ClassifierFree(self.denoiser, settings.guidance, null), cond

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
        if request.labels is None:
            require(
                not isinstance(self.conditioner, Label) or self.conditioner.dropout > 0,
                "labels: this model was trained without condition dropout and knows no unconditional answer",
            )
            require(
                settings.guidance == 1,
                f"labels to be guided towards: a guidance scale of {settings.guidance} does nothing without; "
                "give labels, or a scale of 1",
            )
            return
        require(isinstance(self.conditioner, Label), "no labels: this model was trained without classes")
        assert isinstance(self.conditioner, Label)
        classes = self.conditioner.classes
        given = {request.label_of(k) for k in range(request.count)}
        wrong = [label for label in given if label is None or not 0 <= label < classes]
        require(not wrong, f"labels from 0 to {classes - 1}, got {wrong}")
        require(
            settings.guidance == 1 or self.conditioner.dropout > 0,
            f"a guidance scale of 1, got {settings.guidance}: this model was trained without condition dropout, so it "
            "has no unconditional answer to be guided away from; train with condition.dropout=0.1",
        )
