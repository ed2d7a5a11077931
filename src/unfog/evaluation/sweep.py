"""Quality against cost: what each setting of a sampler costs, how near it comes, and how good its samples are.

Two things are measured. The *distance to the accurate solution* says how well a deterministic setting solves the
probability-flow ODE: the samples of the same noises and labels are compared with those of a fine solver, one by one,
so that a hundred noises tell settings apart. The accurate solver is run with half its steps as well; how far that ends
away says how far the accurate solution is to be trusted. The *evaluation metrics* say how good the samples are as a
set, whatever their noises became: they hold for settings that inject noise too, need many more samples, and do not
reward accuracy for its own sake.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfog.asking import in_turn
from unfog.data.dataset import Dataset, to_uint8
from unfog.data.order import permutation
from unfog.diffusion.analytic import gaussian
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Denoiser, NetworkDenoiser
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Schedule
from unfog.evaluation.features import FeatureConfig, FeatureExtractor, feature_extractor, obstacle
from unfog.evaluation.scores import Comparison, Missing, classes_of, compare, score_of
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.frechet_limit import Strata
from unfog.metrics.interval import LEVEL, Score, mean
from unfog.pipeline import Pipeline
from unfog.sampling.request import SampleRequest, SampleSettings
from unfog.sampling.sampler import sample

RULE = (
    "the fewest evaluations among the settings whose Fréchet distance is not shown to be above the smallest (the 95 % "
    "interval of the difference, both resampled alike, reaches zero); of several the smallest distance"
)


@dataclass(frozen=True)
class Amount:
    """How much is drawn for each setting.

    Attributes:
        samples: for the metrics, evenly over the classes or, of a model of attributes, for those of examples in turn; 0
            measures none.
        noises: how many of the samples, from the first, are compared with the accurate solution; 0 compares none.
        seed: of the samples; sample k of a seed begins with the same noise whatever the setting.
        batch_size: samples at a time; it changes speed and memory only.
        resamples: of each bootstrap.
    """

    samples: int = 1000
    noises: int = 128
    seed: int = 0
    batch_size: int = 250
    resamples: int = 200

    def __post_init__(self) -> None:
        require(self.samples >= 0, f"samples of at least 0, got {self.samples}")
        require(self.noises == 0 or self.noises >= 2, f"noises of 0, or of at least 2, got {self.noises}")
        require(self.total > 0, "samples or noises above 0, or there is nothing to measure")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")

    @property
    def total(self) -> int:
        """Samples that are drawn with each setting."""
        return max(self.samples, self.noises)


@dataclass(frozen=True)
class Point:
    """What one setting costs and what it is worth.

    Attributes:
        sampler: its name.
        grid: name of its grid.
        steps: of the grid.
        guidance: scale.
        evaluations: of the network for one sample; of an adaptive sampler the mean, rounded.
        seconds: wall time of one sample.
        distance: root mean square difference from the accurate solution, in the units of the data (black to white is
            2), mean over the noises; missing where noise is injected.
        quality: the samples against held-out examples.
        draws: the Fréchet distance of resampled samples to resampled examples; draw k of every setting takes the same
            ones, so differences between settings can be judged by theirs. None where there is no distance.
    """

    sampler: str
    grid: str
    steps: int
    guidance: float
    evaluations: int
    seconds: float
    distance: Score | Missing
    quality: Comparison
    draws: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the point as a dictionary that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Point":
        """Return the point that ``to_dict`` turned into a dictionary."""
        made = {"distance": score_of(stored["distance"]), "quality": Comparison.from_dict(stored["quality"])}
        return Point(**{**stored, **made, "draws": tuple(stored["draws"])})


@dataclass(frozen=True)
class Accurate:
    """The accurate solution of some noises.

    Attributes:
        x: ``(noises, ...)`` float32, the data that they become.
        error: root mean square difference of the same solver with half the steps, mean over the noises: by how much
            the solution may be off at most, for a method that converges.
        seconds: wall time that finding it took.
    """

    x: Tensor
    error: Score
    seconds: float


class Drawn(NamedTuple):
    """Samples of one setting.

    Attributes:
        x: ``(noises, ...)`` float32, the first ones.
        pixels: ``(samples, C, H, W)`` uint8.
        evaluations: of the network for one sample, counted as they were made.
        seconds: wall time of all.
    """

    x: Tensor
    pixels: Tensor
    evaluations: float
    seconds: float


def injects_noise(settings: SampleSettings, schedule: Schedule) -> bool:
    """Tell whether a sampler draws noise on its way: from one start, two keys then lead to two ends.

    It is tried on Gaussian data, whose denoiser is exact, so nothing has to be known of the sampler.

    Raises:
        ValueError: if the sampler refuses the grid, or the grid the steps.
    """
    process = Gaussian(schedule)
    denoiser = gaussian(process, torch.zeros(4, dtype=torch.float64), 0.3)
    x = process.prior((4,), rng=Rng.of(0, 1), dtype=torch.float64)
    times = settings.grid.times(schedule, settings.steps)
    first, second = (sample(denoiser, settings.sampler, times, x, rng=Rng.of(key, 1)) for key in (1, 2))
    return not torch.equal(first, second)


def request_for(
    pipeline: Pipeline, settings: SampleSettings, amount: Amount, count: int, examples: Dataset | None = None
) -> SampleRequest:
    """Return the request for the first samples of a sweep; their conditions are those of ``asking.in_turn``."""
    condition = in_turn(pipeline.conditioner, examples, range(count))
    return SampleRequest.of(count, condition, seed=amount.seed, settings=settings, batch_size=amount.batch_size)


def draw(pipeline: Pipeline, settings: SampleSettings, amount: Amount, examples: Dataset | None = None) -> Drawn:
    """Draw the samples of one setting, of which only the first are kept as floats.

    Args:
        pipeline: what is sampled from.
        settings: how.
        amount: how much.
        examples: whose attributes are asked for, of a model that is told any.

    Raises:
        ValueError: if the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    began = time.perf_counter()
    exact: list[Tensor] = []
    pixels: list[Tensor] = []
    with _counting(pipeline.denoiser) as batches:
        for preview in pipeline.stream(request_for(pipeline, settings, amount, amount.total, examples)):
            if preview.finished:
                exact.append(preview.step.x[: max(0, amount.noises - preview.start)].float().cpu())
                if preview.start < amount.samples:
                    pixels.append(to_uint8(preview.step.x[: amount.samples - preview.start]).cpu())
    seconds = time.perf_counter() - began
    none = torch.empty(0, *pipeline.shape)
    evaluations = sum(batches) / amount.total
    return Drawn(torch.cat(exact), torch.cat(pixels or [none.to(torch.uint8)]), evaluations, seconds)


@contextmanager
def _counting(denoiser: Denoiser) -> Iterator[list[int]]:
    """Note how many examples each call of a network is for, while the context lasts."""
    batches: list[int] = []
    called = denoiser.network if isinstance(denoiser, NetworkDenoiser) else denoiser
    handle = called.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    try:
        yield batches
    finally:
        handle.remove()


def accurate_solution(
    pipeline: Pipeline, settings: SampleSettings, amount: Amount, examples: Dataset | None = None
) -> Accurate:
    """Solve the probability-flow ODE from the noises of a sweep, and with half the steps to see how well.

    Args:
        pipeline: what is sampled from.
        settings: a deterministic sampler with many steps, an even number.
        amount: says which noises.
        examples: as for ``draw``.

    Raises:
        ValueError: if the settings are not deterministic, or their steps odd.
        FloatingPointError: if a sample is not finite.
    """
    require(
        not injects_noise(settings, pipeline.denoiser.process.schedule),
        f"a deterministic sampler for the accurate solution, got {settings.sampler}",
    )
    require(settings.steps % 2 == 0, f"an even number of steps for the accurate solution, got {settings.steps}")
    fewer = replace(amount, samples=0)
    fine = draw(pipeline, settings, fewer, examples)
    coarse = draw(pipeline, replace(settings, steps=settings.steps // 2), fewer, examples)
    error = distances(coarse.x, fine.x)
    return Accurate(fine.x, mean(error, note=f"{settings.steps // 2} steps"), fine.seconds + coarse.seconds)


def distances(x: Tensor, accurate: Tensor) -> Tensor:
    """Return the root mean square difference of each sample from its accurate solution, ``(N,)`` float64."""
    require(x.shape == accurate.shape, f"samples shaped {tuple(accurate.shape)}, got {tuple(x.shape)}")
    return (x.double() - accurate.double()).square().flatten(1).mean(1).sqrt()


@dataclass(frozen=True, eq=False)
class Judge:
    """Held-out examples in the features of one network, which the samples of every setting are compared with.

    Attributes:
        extractor: makes the features.
        held_out: ``(count, D)`` features of test examples.
        classes: ``(count,)`` their classes; None where the data have none.
        floor: what as many real training examples get, which the feature network has not seen either.
        seed: of the bootstraps.
        resamples: of each bootstrap.
    """

    extractor: FeatureExtractor
    held_out: Tensor
    classes: Tensor | None
    floor: Comparison
    seed: int
    resamples: int

    @staticmethod
    def of(
        train: Dataset, test: Dataset, cache: Path, amount: Amount, config: FeatureConfig | None = None
    ) -> "Judge | Missing":
        """Return the judge for some data, or why there is none.

        Args:
            train: the examples that the model was trained on.
            test: examples that it has not seen.
            cache: folder in which the feature network is kept.
            amount: says how many samples there will be; as many examples are compared.
            config: how the feature network is made.
        """
        if amount.samples == 0:
            return Missing("no samples were asked for")
        if (why := obstacle(train, config)) is not None:
            return Missing(why)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        extractor = feature_extractor(train, cache, config, device=device)
        unseen = extractor.card.config.split(len(train))[1]
        count = min(amount.samples, len(test), len(unseen))
        # Sets are often sorted by class, so not the first ones.
        chosen = torch.from_numpy(permutation(len(test), seed_of("sweep", amount.seed), 0)[:count])
        held_out = extractor.of(test, chosen)
        classes, ids = classes_of(test, chosen), unseen[:count]
        strata = Strata(classes, classes_of(train, ids))
        floor = compare(held_out, extractor.of(train, ids), extractor.identity, amount.seed, strata=strata)
        return Judge(extractor, held_out, classes, floor, amount.seed, amount.resamples)

    def compared(self, pixels: Tensor, labels: Sequence[int] | None) -> tuple[Comparison, tuple[float, ...]]:
        """Compare samples with as many held-out examples.

        Args:
            pixels: ``(N, C, H, W)`` uint8.
            labels: the class that each was drawn for; None without.

        Returns:
            The comparison, and Fréchet distances of resampled ones: those of ``Point.draws``.
        """
        features, held_out = self.extractor(pixels[: len(self.held_out)]).double(), self.held_out.double()
        strata = Strata(self.classes, None if labels is None else torch.tensor(labels[: len(features)]))
        found = compare(held_out, features, self.extractor.identity, self.seed, strata=strata)
        if isinstance(found.frechet, Missing):
            return found, ()
        generator = torch.Generator().manual_seed(seed_of("sweep", "draws", self.seed))
        draws = []
        for _ in range(self.resamples):
            mine, real = (torch.randint(len(features), (len(features),), generator=generator) for _ in range(2))
            moments = Moments.of(features[mine]), Moments.of(held_out[real])
            draws.append(frechet_distance(*moments, allow_singular=True))
        return found, tuple(draws)


def measure_setting(
    pipeline: Pipeline,
    settings: SampleSettings,
    names: tuple[str, str],
    amount: Amount,
    accurate: Accurate | Missing,
    judge: Judge | Missing,
    examples: Dataset | None = None,
) -> Point:
    """Draw the samples of one setting and measure them.

    Args:
        pipeline: what is sampled from.
        settings: how.
        names: of the sampler and of its grid, for people.
        amount: how much.
        accurate: the solution at the same guidance, or why there is none.
        judge: compares the samples with real examples, or says why nobody does.
        examples: as for ``draw``.

    Raises:
        ValueError: if the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    drawn = draw(pipeline, settings, amount, examples)
    distance: Score | Missing
    if injects_noise(settings, pipeline.denoiser.process.schedule):
        distance = Missing("it injects noise, and the accurate solution of the ODE has none to be paired with")
    elif isinstance(accurate, Missing):
        distance = accurate
    else:
        distance = mean(distances(drawn.x, accurate.x), note=f"{amount.noises} noises of seed {amount.seed}")
    request = request_for(pipeline, settings, amount, amount.total, examples)
    labels = request.labels if isinstance(request.labels, Sequence) else None
    quality, draws = (
        (Comparison.without(judge), ()) if isinstance(judge, Missing) else judge.compared(drawn.pixels, labels)
    )
    return Point(
        sampler=names[0],
        grid=names[1],
        steps=settings.steps,
        guidance=settings.guidance,
        evaluations=round(drawn.evaluations),
        seconds=drawn.seconds / amount.total,
        distance=distance,
        quality=quality,
        draws=draws,
    )


def recommended(points: Sequence[Point]) -> Point | Missing:
    """Return the setting to use, by ``RULE``, or why none can be recommended."""
    found = _with_frechet(points)
    if not found:
        reasons = [point.quality.frechet.reason for point in points if isinstance(point.quality.frechet, Missing)]
        return Missing(f"no setting has a Fréchet distance: {reasons[0]}" if reasons else "nothing was measured")
    least, best = min(found, key=lambda scored: scored[0].value)
    as_good = [
        (p.evaluations, s.value, k) for k, (s, p) in enumerate(found) if not _worse(p, best, s.value - least.value)
    ]
    return found[min(as_good)[2]][1]


def _worse(point: Point, best: Point, difference: float) -> bool:
    """Tell whether a setting is worse than the best by more than chance, given the difference of their distances."""
    if point is best:
        return False
    draws = torch.tensor(point.draws, dtype=torch.float64) - torch.tensor(best.draws, dtype=torch.float64)
    # Resampling lowers the number of distinct examples and raises every distance: the spread counts, not the place.
    low = torch.quantile(draws - draws.mean(), 0.5 - LEVEL / 2)
    return difference + float(low) > 0


def undominated(points: Sequence[Point]) -> list[Point]:
    """Return the settings that are better than every other that costs no more, the cheapest first.

    They are compared by their Fréchet distances, or, where there are none, by those to the accurate solution.
    """
    distances = [(point.distance, point) for point in points]
    found = _with_frechet(points) or [(score, point) for score, point in distances if isinstance(score, Score)]
    kept: list[Point] = []
    least = float("inf")
    for _, value, k in sorted((point.evaluations, score.value, k) for k, (score, point) in enumerate(found)):
        if value < least:
            least = value
            kept.append(found[k][1])
    return kept


def _with_frechet(points: Sequence[Point]) -> list[tuple[Score, Point]]:
    scored = [(point.quality.frechet, point) for point in points]
    return [(score, point) for score, point in scored if isinstance(score, Score)]
