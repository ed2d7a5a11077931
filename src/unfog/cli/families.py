"""``unfog families``."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unfog.checkpoint import write_atomically
from unfog.cli.console import duration, output, progress, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.lists import items_of
from unfog.cli.sources import find_recipe
from unfog.data.cache import cache_folder
from unfog.data.dataset import to_float
from unfog.diffusion.checks import require
from unfog.evaluation.families import WARMUP, Contender, Family, baseline, count_parameters, diffusion
from unfog.evaluation.families_table import COLUMNS, draw_curves, notes, rows
from unfog.evaluation.features import FeatureExtractor, feature_extractor, obstacle
from unfog.evaluation.measure import worded
from unfog.evaluation.race import Raced, RaceEffort, Trained, race
from unfog.images import PNG_CHANNELS, tile, write_png
from unfog.machine import machine
from unfog.pipeline import Pipeline
from unfog.recipe.build import build_pipeline, build_training, fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.data import Data, open_data
from unfog.recipe.run import default_device, initial_network
from unfog.recipe.schema import Recipe
from unfog.recipes import RECIPES
from unfog.training.ema import average_of

OF_DATA = {"digits": "digits", "mnist": "mnist-small", "cifar10": "cifar10-small"}
"""The recipe whose diffusion model takes part, by the name of the data, even where a larger recipe has that name."""
OTHERWISE = "cifar10-small"
BATCH = 32
"""Examples a step, unless told: the time is short, and many small steps lead further than few large ones."""
UNUSED = {
    "train.steps": "a training is as long as its time, --minutes",
    "train.seed": "seeds are given with --seeds",
    "save": "a race keeps no checkpoints",
    "sample.guidance": "samples are drawn at evaluation.guidance",
    "evaluation.samples": "samples are counted with --samples",
    "evaluation.seed": "seeds are given with --seeds",
    "evaluation.batch_size": "samples are drawn in batches of a fixed size, so that their speeds compare",
}
"""Settings of recipes that a race has no use for, and why."""
RECORD, PICTURE = "families.json", "families.png"
SHOWN = 100


@dataclass(frozen=True)
class Race:
    """What the families are compared on.

    Attributes:
        recipe: of the diffusion model, fitted to the data.
        data: both parts.
        card: of the training examples.
    """

    recipe: Recipe
    data: Data
    card: DataCard

    @staticmethod
    def of(data: str, settings: Sequence[str], recipe: str | None = None) -> "Race":
        """Open the data, and find the recipe whose diffusion model takes part.

        Args:
            data: a named recipe, whose own data are taken, or data as ``data.path`` has them.
            settings: of the recipe.
            recipe: whose diffusion model; one that suits the data unless given.

        Raises:
            CommandError: if something is refused.
        """
        own = data in RECIPES and data not in OF_DATA and recipe is None
        name = data if own else recipe or OF_DATA.get(data, OTHERWISE)
        # Of data that are not the recipe's nobody knows yet of what size they are, and whether they may be mirrored.
        unknown = {"data.size": "null", "data.channels": "null", "data.flip": "false"}
        other = {} if own or OF_DATA.get(data) == name else unknown
        path = [] if own else [f"data.path={json.dumps(data)}"]
        short = {"train.batch_size": BATCH, "train.optimizer.warmup_examples": WARMUP * BATCH}
        told = [setting.partition("=")[0] for setting in settings]
        for setting in told:
            if why := next((why for part, why in UNUSED.items() if f"{setting}.".startswith(f"{part}.")), None):
                raise CommandError(f"{setting} would be ignored: {why}")
        usual = [f"{key}={value}" for key, value in {**other, **short}.items() if key not in told]
        chosen = find_recipe(name, [*path, *usual, *settings]).recipe
        with refusing():
            opened = open_data(chosen.data, labelled=chosen.condition.classes)
            card = DataCard.of(opened.train.info)
            require(not chosen.condition.attributes, "condition.attributes=false: the baselines know classes alone")
            return Race(fit_to_data(chosen, card), opened, card)

    @property
    def classes(self) -> int | None:
        """How many classes the models are told, or None."""
        return len(self.card.classes) if self.recipe.condition.classes else None

    def contender(self, family: Family, seed: int) -> Contender:
        """Return a fresh model of a family, of the size of the diffusion model.

        Raises:
            ValueError: if its network cannot take the data.
        """
        recipe = replace(self.recipe, train=replace(self.recipe.train, seed=seed))
        network = initial_network(recipe)
        if family is not Family.DIFFUSION:
            made = baseline(
                family,
                self.data.train,
                classes=self.classes,
                target=count_parameters(network),
                seed=seed,
                batch_size=recipe.train.batch_size,
            )
            made.task.to(default_device())
            return made

        def pipeline() -> Pipeline:
            model = build_pipeline(recipe, network, self.card)
            model.settings = model.settings.with_guidance(recipe.evaluation.guidance)
            return model

        average = None if recipe.average is None else average_of(recipe.average)
        settings = {
            "model": f"recipe {recipe.name}, {type(network).__name__}",
            "loss": f"{worded(recipe.parameterization)} on {worded(recipe.schedule)}, mean squared error",
            "optimiser": worded(recipe.train.optimizer),
        }
        task = build_training(recipe, network).to(default_device())
        return diffusion(pipeline, task, recipe.train, average, self.classes, settings)

    def run(
        self,
        family: Family,
        seed: int,
        extractor: FeatureExtractor,
        effort: RaceEffort,
        tell: Callable[[Trained], None] | None = None,
    ) -> Raced:
        """Train and measure a model of a family."""
        return race(self.contender(family, seed), *self.data, extractor, effort, flip=self.recipe.data.flip, tell=tell)

    def features(self) -> FeatureExtractor:
        """Return the feature network of the data.

        Raises:
            CommandError: if none can be made.
        """
        if why := obstacle(self.data.train):
            raise CommandError(f"families are compared in features of these data, which cannot be made: {why}")
        return feature_extractor(self.data.train, cache_folder() / "features", device=default_device())


def run(
    data: str,
    settings: Sequence[str],
    *,
    families: str,
    minutes: float,
    seeds: str,
    recipe: str | None,
    samples: int,
    likelihood: int,
    out: Path | None,
) -> int:
    """Compare families; see ``commands.measuring.families``."""
    wanted, numbers = _families(families), _seeds(seeds)
    if not minutes > 0:
        raise CommandError(f"--minutes: expected above 0, got {minutes:g}")
    if samples < 1:
        raise CommandError(f"--samples: expected at least 1, got {samples}")
    if likelihood != 0 and likelihood < 2:
        raise CommandError(f"--likelihood: expected 0, or at least 2, got {likelihood}")
    effort = RaceEffort(
        seconds=60.0 * minutes,
        samples=samples,
        curve_samples=min(samples, RaceEffort.curve_samples),
        likelihood_examples=likelihood,
    )
    course = Race.of(data, settings, recipe)
    with refusing():
        for family in wanted:  # what cannot be made is refused before anything is trained
            course.contender(family, numbers[0])
    folder = Path("runs", f"families-{Path(data).name}") if out is None else out
    many = len(wanted) * len(numbers)
    progress().print(
        f"{many} training{'' if many == 1 else 's'} of {duration(effort.seconds)} each, and the time of measuring; "
        "before, features of these data are learned, if they never were",
        markup=False,
        soft_wrap=True,
    )
    extractor = course.features()
    records: list[dict[str, Any]] = []
    for seed in numbers:
        for family in wanted:
            raced = course.run(family, seed, extractor, effort, _teller(family, seed, effort))
            records.append(raced.record)
            _keep(raced, folder, records)
    _show(records, folder)
    return 0


def _families(text: str) -> list[Family]:
    known = {family.value: family for family in Family}
    names = [str(item) for item in items_of(text, "--families")]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise CommandError(f"--families: expected some of {', '.join(known)}, got {', '.join(wrong) or 'none'}")
    return [known[name] for name in dict.fromkeys(names)]


def _seeds(text: str) -> list[int]:
    items = items_of(text, "--seeds")
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise CommandError(f"--seeds: expected whole numbers of at least 0 such as 0,1,2, got {item!r}")
    return list(dict.fromkeys(items))


def _teller(family: Family, seed: int, effort: RaceEffort) -> Callable[[Trained], None]:
    """Return what says how far a training is, at each fifth of its time."""
    due = iter([effort.seconds * part / 5 for part in range(1, 6)])
    following = [next(due)]

    def tell(found: Trained) -> None:
        if found.seconds >= following[0]:
            progress().print(
                f"{family.value}, seed {seed}: {duration(found.seconds)} of {duration(effort.seconds)}, step "
                f"{found.steps}",
                markup=False,
            )
            following[0] = next((time for time in due if time > found.seconds), float("inf"))

    return tell


def _keep(raced: Raced, folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write what there is so far, so that a race that is stopped has lost one model."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(), "records": list(records)}
    write_atomically(folder / RECORD, (json.dumps(told, indent=1) + "\n").encode())
    keep_samples(raced, folder / f"{raced.record['family']}-seed-{raced.record['seed']}.png")


def keep_samples(raced: Raced, path: Path) -> None:
    """Write a picture of the first samples, if PNG has room for their channels; of ten classes each is a column."""
    if raced.images is not None and raced.images.shape[1] in PNG_CHANNELS:
        write_png(path, tile(to_float(raced.images[:SHOWN]), 10), {"unfog": json.dumps(raced.record["settings"])})


def _show(records: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print the table, with a row for each number, and draw the curves."""
    cells = rows(records)
    listing = table("", *(row[0] for row in cells))
    for number, column in enumerate(COLUMNS[1:], start=1):
        listing.add_row(column, *(row[number] for row in cells))
    console = output()
    console.print(listing)
    for sentence in notes(records):
        console.print(sentence, markup=False, soft_wrap=True)
    draw_curves(records, folder / PICTURE)
    console.print(f"{folder / RECORD}\n{folder / PICTURE}", markup=False, soft_wrap=True)
