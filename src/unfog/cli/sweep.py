"""``unfog sweep``."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from unfog.asking import needs_examples
from unfog.checkpoint import JSON, DamagedCheckpointError, StoredTensors, write_tensors
from unfog.cli.console import duration, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.lists import counts_of, items_of, name_of, values_of
from unfog.cli.options import Sweeping
from unfog.cli.sources import open_run, weights_of
from unfog.cli.sweep_book import NUMBERS, Book, Setting, writing
from unfog.data.cache import cache_folder
from unfog.data.dataset import Dataset
from unfog.diffusion.checks import require
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import (
    RULE,
    Accurate,
    Amount,
    Judge,
    Point,
    accurate_solution,
    draw,
    injects_noise,
    measure_setting,
    recommended,
    request_for,
    undominated,
)
from unfog.evaluation.sweep_chart import draw_sweep
from unfog.evaluation.tables import counted
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.recipe.data import Data
from unfog.recipe.export import origin_of
from unfog.recipe.fitted import FITTED, find_fitted
from unfog.recipe.plain import encode
from unfog.recipe.run import Run, StoredWeights
from unfog.sampling.grid import TimeGrid, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.sampling.sampler import Sampler
from unfog.training.parallel import World

PICTURE = "sweep.png"


def run(folder: Path, asked: Sweeping, *, out: Path | None, dry_run: bool) -> int:
    """Measure many settings; see ``commands.measuring.sweep``."""
    if World.of_environment().size > 1:
        raise CommandError("unfog sweep runs in one process; start it without torchrun")
    opened = open_run(folder)
    with refusing():
        much = Amount(asked.samples, asked.noises, asked.seed, asked.batch_size)
        steps = asked.accurate_steps
        require(steps >= 2 and steps % 2 == 0, f"--accurate-steps: an even number of at least 2, got {steps}")
        weights = opened.weights(weights_of(asked.average))
        settings = settings_asked(opened, asked, weights)
        pipeline = opened.pipeline(weights)
        told = needs_examples(pipeline.conditioner)
        data = opened.data() if much.samples > 0 or told else None
        examples = data.test if data is not None and told else None
        for setting in settings:
            _check(pipeline, setting, much, examples)
        accurate = replace(opened.recipe.sample, sampler=DPMSolverPP2M(), grid=Trailing(), steps=steps)
        about: dict[str, JSON] = {
            "origin": origin_of(opened, weights),
            "data": opened.manifest.data.fingerprint,
            "amount": {name: value for name, value in asdict(much).items() if name != "batch_size"},
            "accurate_by": _written(accurate),
        }
    with writing((folder / "sweep" if out is None else out) / NUMBERS) as path:
        with refusing():
            book = Book.open(path, about)
        sweep = _Sweep(pipeline, settings, much, accurate, book, examples)
        sweep.tell_cost()
        if dry_run:
            return 0
        try:
            sweep.measure(data)
        except FloatingPointError as error:
            raise CommandError(str(error), status=1) from error
        sweep.tell_found()
    return 0


def settings_asked(run: Run, asked: Sweeping, weights: StoredWeights) -> list[Setting]:
    """Return every combination of what was asked for; the recipe's own grid and guidance unless given.

    A fitted sampler goes on its own grid, and is there for each of the numbers of steps and scales.

    Raises:
        CommandError: if an option is refused.
    """
    own = run.recipe.sample
    items = items_of(asked.samplers, "--samplers")
    fixed = [item for item in items if item != FITTED]
    samplers = values_of(Sampler, json.dumps(fixed)[1:-1], "--samplers") if fixed else []
    grids = [(own.grid, name_of(own.grid, TimeGrid))]
    if asked.grids is not None:
        if not fixed:
            raise CommandError(
                f"--grids={asked.grids} means nothing to fitted samplers alone: they have their own times"
            )
        grids = values_of(TimeGrid, asked.grids, "--grids")
    steps = counts_of(asked.steps, "--steps")
    made = []
    for scale in [own.guidance] if asked.guidance is None else _scales(asked.guidance):
        for (grid, grid_name), (sampler, name), count in product(grids, samplers, steps):
            settings = replace(own.with_guidance(scale), sampler=sampler, grid=grid, steps=count)
            made.append(Setting(settings, (name, grid_name), _written(settings)))
        for count in steps if FITTED in items else ():
            with refusing():
                settings = find_fitted(run, replace(own.with_guidance(scale), steps=count), weights).settings
            made.append(Setting(settings, (FITTED, "its own"), _written(settings)))
    return made


def _scales(text: str) -> list[float]:
    items = items_of(text, "--guidance")
    for item in items:
        if not isinstance(item, int | float) or isinstance(item, bool):
            raise CommandError(f"--guidance: expected numbers such as 1,2,4, got {item!r}")
    return list(dict.fromkeys(float(item) for item in items))


def _written(settings: SampleSettings) -> dict[str, JSON]:
    written = encode(settings, SampleSettings)
    assert isinstance(written, dict)
    return written


def _check(pipeline: Pipeline, setting: Setting, amount: Amount, examples: Dataset | None) -> None:
    """Refuse a setting before anything is measured."""
    try:
        pipeline.check(request_for(pipeline, setting.settings, amount, 1, examples))
        injects_noise(setting.settings, pipeline.denoiser.process.schedule)
    except ValueError as error:
        raise CommandError(f"{setting}: {error}") from error


class _Sweep:
    """One call of the command."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Sequence[Setting],
        amount: Amount,
        accurate: SampleSettings,
        book: Book,
        examples: Dataset | None,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.amount = amount
        self.accurate = accurate
        self.book = book
        self.examples = examples
        self.missing = [setting for setting in settings if book.find(setting) is None]
        self.seconds_an_evaluation = 0.0

    def tell_cost(self) -> None:
        """Measure what an evaluation costs, and say how long the rest will take."""
        console = progress()
        known = len(self.settings) - len(self.missing)
        told = counted(len(self.settings), "setting") + (f", {known} known from {self.book.path}" if known else "")
        if not self.missing:
            console.print(told, markup=False, soft_wrap=True)
            return
        self.seconds_an_evaluation = _seconds_an_evaluation(self.pipeline, self.amount, self.examples)
        calls = sum(self.amount.total * setting.settings.evaluations for setting in self.missing)
        solving = [scale for scale in self._scales_to_solve() if not self._place(scale).exists()]
        calls += sum(self._calls_of_accurate(scale) for scale in solving)
        seconds = calls * self.seconds_an_evaluation
        console.print(
            f"{told}; {calls:,} evaluations of the network at {1e3 * self.seconds_an_evaluation:.3g} ms: "
            f"{duration(seconds)}, and the time of the metrics",
            markup=False,
            soft_wrap=True,
        )

    def measure(self, data: Data | None) -> None:
        """Measure what is missing, writing each setting down when it is done."""
        if not self.missing:
            return
        judge = self._judge(data)
        left = sum(setting.settings.evaluations for setting in self.missing)
        for scale in dict.fromkeys(setting.settings.guidance for setting in self.missing):
            accurate = self._solved(scale)
            for setting in (setting for setting in self.missing if setting.settings.guidance == scale):
                point = measure_setting(
                    self.pipeline, setting.settings, setting.names, self.amount, accurate, judge, self.examples
                )
                self.book.add(setting, point)
                left -= point.evaluations
                rest = left * self.amount.total * self.seconds_an_evaluation
                progress().print(
                    f"{setting}: {_found(point)}; about {duration(rest)} left", markup=False, soft_wrap=True
                )

    def tell_found(self) -> None:
        """Print the table and the recommendation, and draw the picture."""
        points = [point for setting in self.settings if (point := self.book.find(setting)) is not None]
        here = self.book.here
        floor = _floor(here)
        listing = _listing(points, floor)
        origin = here["origin"]
        grids = ", ".join(dict.fromkeys(point.grid for point in points))
        show(f"{origin['run']}, step {origin['step']} ({origin['weights']}), {self._counts()}, on {grids}", listing)
        for sentence in self._sentences(points):
            output().print(sentence, markup=False, soft_wrap=True)
        errors = {float(scale): Score(**known["error"]) for scale, known in here["accurate"].items()}
        picture = self.book.path.with_name(PICTURE)
        draw_sweep(points, floor, errors, picture)
        chosen = recommended(points)
        here["recommended"] = {"rule": RULE, "found": asdict(chosen)}
        self.book.save()
        output().print(f"{self.book.path}\n{picture}", markup=False, soft_wrap=True)

    def _counts(self) -> str:
        return f"{self.amount.samples} samples, {self.amount.noises} paired noises, seed {self.amount.seed}"

    def _sentences(self, points: Sequence[Point]) -> Iterator[str]:
        accurate = self.book.here["accurate"]
        if accurate:
            known = ", ".join(f"{known['error']['value']:.2g} at guidance {scale}" for scale, known in accurate.items())
            yield (
                f"distance: root mean square difference from dpmpp on trailing with {self.accurate.steps} steps, same "
                f"noises and labels; black to white is 2. With {self.accurate.steps // 2} steps it ends this far away: "
                f"{known}. Settings that inject noise have none."
            )
        chosen = recommended(points)
        by = "distance to the accurate solution" if isinstance(chosen, Missing) else "Fréchet distance"
        yield f"*: no setting that costs as much or less has a smaller {by}."
        if isinstance(chosen, Missing):
            yield f"nothing is recommended: {chosen.reason}"
            return
        grid = [] if chosen.sampler == FITTED else ["--grid", chosen.grid]
        how = ["--sampler", chosen.sampler, *grid, "--steps", str(chosen.steps), "--guidance", f"{chosen.guidance:g}"]
        yield f"recommended: {shlex.join(how)} ({counted(chosen.evaluations, 'evaluation')}): {RULE}"

    def _scales_to_solve(self) -> list[float]:
        """Return the scales of guidance at which settings without noise are missing, if noises are compared at all."""
        if self.amount.noises == 0:
            return []
        schedule = self.pipeline.denoiser.process.schedule
        settings = [setting.settings for setting in self.missing]
        return list(dict.fromkeys(one.guidance for one in settings if not injects_noise(one, schedule)))

    def _calls_of_accurate(self, scale: float) -> int:
        settings = self.accurate.with_guidance(scale)
        half = replace(settings, steps=settings.steps // 2)
        return self.amount.noises * (settings.evaluations + half.evaluations)

    def _place(self, scale: float) -> Path:
        """Return where the accurate solution of a scale is kept, which several books may share."""
        about = (
            [self.book.here[name] for name in ("origin", "accurate_by")],
            self.amount.noises,
            self.amount.seed,
            scale,
        )
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "sweep" / f"accurate-{key}.safetensors"

    def _solved(self, scale: float) -> Accurate | Missing:
        """Return the accurate solution of a scale, from the cache or by solving it."""
        if scale not in self._scales_to_solve():
            return Missing("no noises were asked for")
        path = self._place(scale)
        if (solved := _read(path)) is None:
            progress().print(f"solving {self.amount.noises} noises accurately at guidance {scale:g}", markup=False)
            solved = accurate_solution(self.pipeline, self.accurate.with_guidance(scale), self.amount, self.examples)
            told = {"error": json.dumps(asdict(solved.error)), "seconds": str(solved.seconds)}
            write_tensors(path, {"x": solved.x}, told)
        self.book.here["accurate"][f"{scale:g}"] = {"error": asdict(solved.error), "seconds": solved.seconds}
        return solved

    def _judge(self, data: Data | None) -> Judge | Missing:
        if data is None:
            return Missing("no samples were asked for")
        with refusing():
            judge = Judge.of(data.train, data.test, cache_folder() / "features", self.amount)
        self.book.here["floor"] = asdict(judge if isinstance(judge, Missing) else judge.floor)
        self.book.here["features"] = None if isinstance(judge, Missing) else judge.extractor.card.name
        return judge


def _seconds_an_evaluation(pipeline: Pipeline, amount: Amount, examples: Dataset | None) -> float:
    """Return the wall time of one evaluation for one sample, in the batches that will be drawn."""
    few = replace(amount, samples=min(amount.total, amount.batch_size), noises=0)
    settings = replace(pipeline.settings, sampler=DPMSolverPP2M(), grid=Trailing(), steps=2)
    draw(pipeline, replace(settings, steps=1), few, examples)
    return draw(pipeline, settings, few, examples).seconds / (few.total * settings.evaluations)


def _read(path: Path) -> Accurate | None:
    """Return the accurate solution that was written down, or None where there is none that is whole."""
    if not path.exists():
        return None
    try:
        stored = StoredTensors(path)
        metadata = stored.metadata
        return Accurate(stored["x"].clone(), Score(**json.loads(metadata["error"])), float(metadata["seconds"]))
    except (DamagedCheckpointError, KeyError, ValueError, TypeError):
        return None


def _floor(here: Mapping[str, Any]) -> Comparison | Missing:
    stored = here["floor"]
    if stored is None:
        return Missing("no samples were asked for")
    return Missing(**stored) if "reason" in stored else Comparison.from_dict(stored)


def _listing(points: Sequence[Point], floor: Comparison | Missing) -> Table:
    """Return the table of what was found; a grid that all share is not told in each row."""
    grids, best = {point.grid for point in points}, set(map(id, undominated(points)))
    listing = table(
        *("sampler", *(["grid"] if len(grids) > 1 else []), "steps>", "guidance>", "evaluations>", "ms a sample>"),
        *("distance>", "Fréchet distance>", "precision>", "recall>", ""),
    )
    for point in points:
        listing.add_row(
            *(point.sampler, *([point.grid] if len(grids) > 1 else []), str(point.steps), f"{point.guidance:g}"),
            *(str(point.evaluations), f"{1e3 * point.seconds:.3g}", _short(point.distance)),
            *(_shown(point.quality.frechet), _short(point.quality.precision), _short(point.quality.recall)),
            "*" if id(point) in best else "",
        )
    if isinstance(floor, Comparison):
        cells = _shown(floor.frechet), _short(floor.precision), _short(floor.recall), ""
        listing.add_row("real images", *[""] * (len(listing.columns) - 5), *cells)
    return listing


def _found(point: Point) -> str:
    measured = {"distance": point.distance, "Fréchet distance": point.quality.frechet}
    told = [f"{name} {_short(score)}" for name, score in measured.items() if isinstance(score, Score)]
    return ", ".join(told) or "nothing could be measured"


def _shown(score: Score | Missing) -> str:
    return "–" if isinstance(score, Missing) else f"{score.value:.3g} [{score.low:.3g}, {score.high:.3g}]"


def _short(score: Score | Missing) -> str:
    return "–" if isinstance(score, Missing) else f"{score.value:.3g}"
