"""``unfog score``."""

import json
from pathlib import Path

import numpy as np

from unfog.cli.console import output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Pictures
from unfog.data.dataset import ArrayDataset, Dataset
from unfog.data.sources import DataSpec
from unfog.evaluation.extractors import Features
from unfog.evaluation.image_scores import ImageScores, yardstick
from unfog.evaluation.measure import draw, requested
from unfog.evaluation.scores import NAMES, Missing
from unfog.evaluation.tables import Compared, joined, side_by_side, told_card
from unfog.recipe.export import open_pictures
from unfog.recipe.run import MANIFEST, Run, default_device


def features_named(name: str) -> Features:
    """Return the features of a name.

    Raises:
        CommandError: if there are none of that name.
    """
    try:
        return Features(name.strip().lower())
    except ValueError:
        known = ", ".join(one.value for one in Features)
        raise CommandError(f"--features: expected one of {known}; got {name!r}") from None


def run(images: tuple[str, ...], pictures: Pictures, *, weights: Path | None, seed: int, as_json: bool) -> int:
    """Score pictures against pictures; see ``commands.measuring.score``."""
    which = features_named(pictures.features)
    with refusing():
        spec = DataSpec(
            path=pictures.against,
            split=pictures.split,
            size=pictures.size,
            channels=pictures.channels,
            background=pictures.background,
        )
        stick = yardstick(spec, which, weights=weights, device=default_device())
        found: dict[str, ImageScores] = {}
        for path in images:
            progress().print(f"scoring {path}", markup=False, soft_wrap=True)
            opened = _opened(path, spec, pictures.count, seed)
            count = None if pictures.count is None else min(pictures.count, len(opened))
            found[path] = stick.score(opened, count=count, seed=seed)
        cells = side_by_side({path: Compared(one.card, one.scores) for path, one in found.items()})
    if as_json:
        print(json.dumps([one.to_dict() for one in found.values()], indent=1))
        return 0
    head, *rows = cells
    listing = table(head[0], *(f"{name}>" for name in head[1:]))
    for row in rows:
        listing.add_row(*row)
    first = next(iter(found.values()))
    show(f"against {first.against}", listing)
    for path, one in found.items():
        for name, score in vars(one.scores).items():
            if isinstance(score, Missing):
                progress().print(f"left out of {path}: {NAMES[name]}: {score.reason}", markup=False, soft_wrap=True)
    told = joined([f"{name}: {value}" for name, value in told_card(first.card).items()])
    output().print(f"metric card: {told}", markup=False, soft_wrap=True)
    return 0


def _opened(path: str, against: DataSpec, count: int | None, seed: int) -> Dataset:
    """Open what is scored: samples of a run, a folder that 'unfog sample' wrote, or any data set."""
    folder = Path(path)
    if (folder / MANIFEST).exists():
        return _drawn(folder, count, seed)
    return open_pictures(folder, against)


def _drawn(folder: Path, count: int | None, seed: int) -> Dataset:
    """Draw from a run as its recipe says, evenly over the classes."""
    opened = Run.open(folder)
    config = opened.recipe.evaluation
    pipeline = opened.pipeline()
    wanted = config.samples if count is None else count
    settings = pipeline.settings.with_guidance(config.guidance)
    progress().print(f"drawing {wanted} samples", markup=False)
    request, _ = requested(pipeline, opened.data().test, settings, wanted, seed, config.batch_size)
    labels = None if request.labels is None else np.array(request.labels)
    return ArrayDataset(draw(pipeline, request).numpy(), labels, name=str(folder))
