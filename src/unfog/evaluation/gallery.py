"""Pictures of a report: tables of small images, drawn from the model and the data.

What rows are asked for are ``Subjects``: the classes of a model, or, of one that is told attributes, those of some real
examples, which then stand beside the samples.

Every function makes its own request, with settings and seeds of its own, so that a picture can be made again.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unfog.asking import condition_of, needs_examples
from unfog.data.dataset import Attribute, Dataset, to_uint8
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.random import Rng
from unfog.diffusion.shapes import align
from unfog.images import PNG_CHANNELS, png_bytes
from unfog.metrics.neighbours import Neighbours, nearest_neighbours
from unfog.pipeline import Pipeline
from unfog.sampling.conditioning.conditioner import Label
from unfog.sampling.request import Condition, SampleRequest, SampleSettings

SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)
"""Guidance scales that are shown side by side."""

ROWS = 10
"""Most classes that a table shows; of more, that many evenly spread ones."""

EXAMPLES = 6
"""Real examples whose attributes are asked for."""

_SIDE = 80
_CHUNK = 2000


@dataclass(frozen=True)
class Picture:
    """One image of a table.

    Attributes:
        uri: of the image, with the image inside.
        alt: what it shows, for those who do not see it.
        under: short lines below it.
    """

    uri: str
    alt: str
    under: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of images and what it is."""

    label: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """A table of images.

    Attributes:
        rows: of equal length.
        columns: what stands above each column; nothing if empty.
        side: of an image on the page, in pixels: a whole multiple of its own, so that pixels stay square.
        smooth: whether the page may smooth the images, which suits large ones.
        note: what must be said of all images, such as which channels are seen.
        split: whether the first image of a row stands apart from the others.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    side: int
    smooth: bool
    note: str = ""
    split: bool = False

    @property
    def width(self) -> int:
        """Images in a row."""
        return max(len(row.pictures) for row in self.rows)

    @property
    def characters(self) -> int:
        """Length of the longest text that an image must leave room for; what stands above may break at spaces."""
        below = [len(line) for row in self.rows for picture in row.pictures for line in picture.under]
        return max([0, *below, *(len(word) for column in self.columns for word in column.split())])


def png_uri(pixels: Tensor) -> str:
    """Return an image as a data URI.

    Args:
        pixels: ``(C, H, W)`` uint8; of 1 channel grey, of 3 colour, of 4 colour with opacity. Of 2 channels the first
            is shown in magenta and the second in green, grey where they agree; of more than 4 the first 3 in colour.
    """
    if len(pixels) not in PNG_CHANNELS:
        pixels = pixels[[0, 1, 0]] if len(pixels) == 2 else pixels[:3]
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels, optimize=True)).decode()


def _how_shown(channels: int) -> str:
    """Say how ``png_uri`` shows images of so many channels, where that does not go without saying."""
    if channels in (1, 3):
        return ""
    if channels == 2:
        return "The images have 2 channels: the first is shown in magenta, the second in green."
    if channels == 4:
        return "The fourth channel of the images is shown as opacity."
    return f"The images have {channels} channels, of which the first three are shown as red, green and blue."


def gallery(rows: Sequence[Row], columns: Sequence[str], shape: Sequence[int]) -> Gallery:
    """Put rows of images of ``shape`` ``(C, H, W)`` into a table."""
    channels, height, width = shape
    longest = max(height, width)
    side = width * max(1, round(_SIDE / longest))
    return Gallery(tuple(rows), tuple(columns), side, longest >= 64, _how_shown(channels))


def columns_for(shape: Sequence[int]) -> int:
    """Return how many images fit beside each other: fewer of large ones, which are heavy too."""
    return 8 if max(shape[1:]) <= 40 else 6 if max(shape[1:]) <= 72 else 4


def shown_classes(pipeline: Pipeline) -> list[int]:
    """Return the classes that tables show: all of few, some of many, none of a model without."""
    if not isinstance(pipeline.conditioner, Label):
        return []
    count = pipeline.conditioner.classes
    return list(range(count)) if count <= ROWS else [i * (count - 1) // (ROWS - 1) for i in range(ROWS)]


def class_name(pipeline: Pipeline, label: int | None) -> str:
    """Return the name of a class, its number where it has none, and nothing where there is no class."""
    if label is None:
        return ""
    return pipeline.classes[label] if label < len(pipeline.classes) else str(label)


@dataclass(frozen=True)
class Subjects:
    """What the rows of tables are asked for; of a model that is told nothing there are no rows.

    Attributes:
        condition: of each row.
        names: of the rows.
        examples: a real example of each condition; none of classes.
    """

    condition: Condition
    names: tuple[str, ...]
    examples: tuple[Picture, ...] = ()

    @staticmethod
    def of(pipeline: Pipeline, examples: Dataset) -> "Subjects":
        """Return those of a model: its classes or, if it is told attributes, those of the first examples."""
        if not needs_examples(pipeline.conditioner):
            classes = shown_classes(pipeline)
            return Subjects(Condition(classes or None), tuple(class_name(pipeline, label) for label in classes))
        ids = torch.arange(min(EXAMPLES, len(examples)))
        fields = examples.gather(ids)
        pictures = [
            Picture(png_uri(image), f"real example {k}: {_in_words(examples.info.attributes, row)}")
            for k, (image, row) in enumerate(zip(to_uint8(fields["x0"]), fields["attributes"].tolist(), strict=True))
        ]
        names = tuple(f"no. {k}" for k in range(len(ids)))
        return Subjects(condition_of(pipeline.conditioner, examples, ids), names, tuple(pictures))

    def asked(self, pipeline: Pipeline, rows: Sequence[int], seed: int) -> SampleRequest:
        """Return the request for a sample of each of some rows.

        Args:
            pipeline: whose settings are taken, without guidance where there is nothing to be guided by.
            rows: numbers of the rows, each as often as it is wanted; of a model that is told nothing, of samples.
            seed: of the samples.
        """
        settings = pipeline.settings if self.names else unguided(pipeline.settings)
        return SampleRequest.of(len(rows), self.condition.at(rows), seed=seed, settings=settings)


def _in_words(attributes: Sequence[Attribute], values: Sequence[int]) -> str:
    told = [(attribute, value) for attribute, value in zip(attributes, values, strict=True) if value < attribute.none]
    return ", ".join(f"{attribute.name} {attribute.values[value]}" for attribute, value in told)


def noising(denoiser: Denoiser, dataset: Dataset, columns: int, seed: int) -> Gallery:
    """Show one image at rising noise levels.

    Levels are even in ``sigma / (alpha + sigma)``, whatever the schedule's own time.

    Args:
        denoiser: gives the process.
        dataset: its first example is shown.
        columns: how many levels.
        seed: of the noise.
    """
    process, schedule = denoiser.process, denoiser.process.schedule
    x0 = dataset.gather(torch.tensor([0]))["x0"]
    noise = process.noise_like(x0, rng=Rng.of(seed, 1))
    share = torch.linspace(0, 1, columns, dtype=torch.float64)
    times = schedule.time(2.0 * ((1 - share).log() - share.log())).clamp(0.0, 1.0)
    states = process.add_noise(x0.expand(columns, *x0.shape[1:]), noise.expand(columns, *x0.shape[1:]), times)
    pixels = visible(denoiser, states, times)
    alpha, sigma, log_snr = (f(times).tolist() for f in (schedule.alpha, schedule.sigma, schedule.log_snr))
    pictures = [
        Picture(
            png_uri(image),
            f"the image at time {t:.3g}",
            (f"t = {t:.3g}", f"α {a:.2f}", f"σ {short(s)}", f"λ {short(snr)}"),
        )
        for image, t, a, s, snr in zip(pixels, times.tolist(), alpha, sigma, log_snr, strict=True)
    ]
    return gallery([Row("", tuple(pictures))], (), x0.shape[1:])


def denoising(pipeline: Pipeline, subjects: Subjects, columns: int, seed: int) -> Gallery:
    """Show samples on their way from noise to data, each with the estimates of x0.

    Args:
        pipeline: draws them at its own settings.
        subjects: of which the first, the middle and the last are asked for.
        columns: most steps that are shown, the first and the last among them.
        seed: of the samples.
    """
    many = len(subjects.names)
    chosen_rows = [i * (many - 1) // 2 for i in range(3)] if many > 2 else list(range(many or 3))
    steps = [preview.step for preview in pipeline.stream(subjects.asked(pipeline, chosen_rows, seed))]
    chosen = sorted({round(i * (len(steps) - 1) / max(1, columns - 1)) for i in range(columns)})
    times = torch.stack([steps[i].t.cpu() for i in chosen]).double()
    rows = []
    for k, row in enumerate(chosen_rows):
        x = visible(pipeline.denoiser, torch.stack([steps[i].x[k].cpu() for i in chosen]), times)
        x0 = to_uint8(torch.stack([steps[i].x0[k].cpu() for i in chosen]))
        name = subjects.names[row] if subjects.names else f"sample {k}"
        for label, images in ((f"{name}: x", x), ("its x0", x0)):
            alts = [f"{label} after evaluation {i + 1}" for i in chosen]
            rows.append(Row(label, tuple(Picture(png_uri(p), alt) for p, alt in zip(images, alts, strict=True))))
    return gallery(rows, [f"t = {t:.3g}" for t in times.tolist()], pipeline.shape)


def samples(pipeline: Pipeline, subjects: Subjects, columns: int, seed: int) -> Gallery:
    """Show samples of each subject; a column starts from the same noise in every row.

    Args:
        pipeline: draws them at its own settings.
        subjects: the rows; six of samples that were asked for nothing where there are none.
        columns: samples of each.
        seed: of the samples.
    """
    if not subjects.names:
        pixels = to_uint8(pipeline.sample(subjects.asked(pipeline, range(6 * columns), seed)).x).cpu()
        alts = [f"sample {k} of seed {seed}" for k in range(len(pixels))]
        pictures = [Picture(png_uri(image), alt) for image, alt in zip(pixels, alts, strict=True)]
        rows = [Row("", tuple(pictures[i : i + columns])) for i in range(0, len(pictures), columns)]
        return gallery(rows, (), pipeline.shape)
    drawn = [
        to_uint8(pipeline.sample(subjects.asked(pipeline, [row] * columns, seed)).x).cpu()
        for row in range(len(subjects.names))
    ]
    alts = [f"sample {k} of seed {seed}" for k in range(columns)]
    return _by_subject(subjects, drawn, [f"noise {k}" for k in range(columns)], alts, pipeline.shape)


def by_guidance(pipeline: Pipeline, subjects: Subjects, seed: int) -> Gallery | None:
    """Show one sample of each subject at several guidance scales, a row starting from the same noise.

    Returns:
        The table; None for a model that is told nothing, or one that was trained without condition dropout.
    """
    if not subjects.names or pipeline.conditioner.dropout == 0:
        return None
    request = subjects.asked(pipeline, range(len(subjects.names)), seed)
    drawn = []
    for scale in SCALES:
        guided = replace(request, settings=pipeline.settings.with_guidance(scale))
        drawn.append(to_uint8(pipeline.sample(guided).x).cpu())
    columns = [f"{scale:g}" for scale in SCALES]
    alts = [f"at guidance {scale:g}" for scale in SCALES]
    return _by_subject(subjects, list(zip(*drawn, strict=True)), columns, alts, pipeline.shape)


def _by_subject(
    subjects: Subjects,
    drawn: Sequence[Iterable[Tensor]],
    columns: Sequence[str],
    alts: Sequence[str],
    shape: Sequence[int],
) -> Gallery:
    """Put the samples of each subject into a row, beside the real example that it is the condition of."""
    rows = []
    for k, (name, images) in enumerate(zip(subjects.names, drawn, strict=True)):
        made = [Picture(png_uri(image), f"{name}, {alt}") for image, alt in zip(images, alts, strict=True)]
        rows.append(Row(name, (*subjects.examples[k : k + 1], *made)))
    if not subjects.examples:
        return gallery(rows, columns, shape)
    return replace(gallery(rows, ["real", *columns], shape), split=True)


def neighbours(samples: Tensor, labels: Sequence[str], train: Dataset) -> list[Gallery]:
    """Show samples beside the training examples whose pixels are nearest, in two tables.

    Args:
        samples: ``(N, C, H, W)`` uint8.
        labels: what to call each.
        train: all of it is searched.
    """
    found = nearest_pixels(samples, train, min(3, len(train)))
    elements = samples[0].numel()
    rows = []
    for sample, label, ids, distances in zip(samples, labels, found.indices, found.distances, strict=True):
        examples = to_uint8(train.gather(ids)["x0"])
        beside = [
            Picture(png_uri(image), f"training example {i}", (f"{d / elements**0.5:.1f}", f"no. {i}"))
            for image, i, d in zip(examples, ids.tolist(), distances.tolist(), strict=True)
        ]
        rows.append(Row(label, (Picture(png_uri(sample), f"sample {label}"), *beside)))
    columns = ("sample", *("nearest", "second", "third")[: found.indices.shape[1]])
    half = -(-len(rows) // 2)
    tables = [gallery(part, columns, samples.shape[1:]) for part in (rows[:half], rows[half:]) if part]
    return [replace(table, split=True) for table in tables]


def pairs(samples: Tensor, train: Dataset, ids: Sequence[int], distances: Sequence[float]) -> Gallery:
    """Show samples above the training examples that they were found to resemble.

    Args:
        samples: ``(N, C, H, W)`` uint8.
        train: the training examples.
        ids: which example each sample resembles.
        distances: between them.
    """
    examples = to_uint8(train.gather(torch.tensor(ids))["x0"])
    above = [Picture(png_uri(image), f"sample {i}") for i, image in enumerate(samples)]
    below = [
        Picture(png_uri(image), f"training example {i}", (short(d), f"no. {i}"))
        for image, i, d in zip(examples, ids, distances, strict=True)
    ]
    return gallery([Row("sample", tuple(above)), Row("nearest", tuple(below))], (), samples.shape[1:])


def nearest_pixels(samples: Tensor, train: Dataset, count: int) -> Neighbours:
    """Return the training examples nearest to samples in pixels of 0 to 255, reading a part of the set at a time."""
    best = torch.full((len(samples), 0), torch.inf, dtype=torch.float64)
    ids = torch.zeros((len(samples), 0), dtype=torch.int64)
    for start in range(0, len(train), _CHUNK):
        some = torch.arange(start, min(start + _CHUNK, len(train)))
        points = to_uint8(train.gather(some)["x0"]).float()
        found = nearest_neighbours(samples.float(), points, min(count, len(some)))
        best, ids = torch.cat([best, found.distances], 1), torch.cat([ids, found.indices + start], 1)
        best, order = best.topk(min(count, best.shape[1]), largest=False)
        ids = ids.gather(1, order)
    return Neighbours(best, ids)


def visible(denoiser: Denoiser, states: Tensor, times: Tensor) -> Tensor:
    """Return noisy states ``(B, ...)`` as pixels: divided by ``sqrt(alpha^2 + sigma^2)`` and clipped to [-1, 1]."""
    schedule = denoiser.process.schedule
    scale = (schedule.alpha(times).square() + schedule.sigma(times).square()).sqrt()
    return to_uint8(states / align(scale.to(states), states))


def unguided(settings: SampleSettings) -> SampleSettings:
    """Return the settings without guidance, which samples without a class need."""
    return settings.with_guidance(1.0)


def short(value: float) -> str:
    """Write a number in few characters."""
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
    return text.replace("-", "−")
