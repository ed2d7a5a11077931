"""``unfog audit``."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.asking import asked_like
from unfog.checkpoint import JSON, write_atomically
from unfog.cli.console import number, output, progress, show, table
from unfog.cli.errors import CommandError, refusing
from unfog.cli.options import Sampling
from unfog.cli.sources import open_run, run_settings, weights_of
from unfog.data.cache import cache_folder
from unfog.diffusion.checks import require
from unfog.evaluation import tables
from unfog.evaluation.audit import Audit, Reader, audit, class_reader, shapes_reader
from unfog.evaluation.audit_page import AuditInputs, verdict_of_attribute, verdict_of_view, write_audit
from unfog.evaluation.features import FeatureExtractor, feature_extractor, obstacle
from unfog.evaluation.measure import describe, draw
from unfog.evaluation.memorisation import LEVEL, Features, Memorisation, memorisation, share_of
from unfog.evaluation.scores import Missing
from unfog.metrics.interval import Score
from unfog.recipe.data import Data
from unfog.recipe.export import origin_of
from unfog.sampling.request import SampleRequest
from unfog.training.parallel import World

PAGE, NUMBERS = "audit.html", "audit.json"


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        memorisation: whether to look for near-copies.
        bias: whether to compare shares; both if neither is asked for.
        features: whether near-copies are also looked for in features.
        samples: how many to draw.
        level: of false positives among near-copies; that of ``memorisation`` unless given.
        seed: of the samples and of everything that is drawn at random.
        batch_size: samples at a time.
    """

    memorisation: bool
    bias: bool
    features: bool
    samples: int
    level: float | None
    seed: int
    batch_size: int


def run(folder: Path, asked: Asked, sampling: Sampling, *, out: Path | None) -> int:
    """Audit a run; see ``commands.measuring.audit``."""
    if World.of_environment().size > 1:
        raise CommandError("unfog audit runs in one process; start it without torchrun")
    opened = open_run(folder)
    copies, bias = (True, True) if not (asked.memorisation or asked.bias) else (asked.memorisation, asked.bias)
    if asked.features and not copies:
        raise CommandError("--features says how near-copies are looked for: give --memorisation with it")
    if asked.level is not None and not copies:
        raise CommandError("--level is that of near-copies: give --memorisation with it")
    level = LEVEL if asked.level is None else asked.level
    with refusing():
        weights = opened.weights(weights_of(sampling.average))
        settings = run_settings(sampling, opened.recipe.sample, opened, weights)
        pipeline = opened.pipeline(weights)
        data = opened.data()
        require(asked.samples >= 2, f"--samples: at least 2, got {asked.samples}")
        if copies:
            share_of(level, data.test, by_features=asked.features)
        request = asked_like(
            pipeline.conditioner,
            data.train,
            asked.samples,
            settings=settings,
            seed=asked.seed,
            batch_size=asked.batch_size,
        )
        pipeline.check(request)
    try:
        progress().print(f"drawing {asked.samples} samples", markup=False)
        samples = draw(pipeline, request)
    except FloatingPointError as error:
        raise CommandError(str(error), status=1) from error
    with refusing():
        found = _memorisation(samples, data, asked, level) if copies else Missing("it was not asked for")
        shares = _audit(samples, request, data, asked.seed) if bias else Missing("it was not asked for")
        target = folder / "audit" if out is None else out
        target.mkdir(parents=True, exist_ok=True)
        origin = origin_of(opened, weights)
        numbers: dict[str, JSON] = {
            "origin": origin,
            "data": data.train.info.fingerprint,
            "settings": describe(settings),
            "seed": asked.seed,
            "memorisation": {"reason": found.reason} if isinstance(found, Missing) else found.to_dict(),
            "bias": {"reason": shares.reason} if isinstance(shares, Missing) else shares.to_dict(),
        }
        write_atomically(target / NUMBERS, json.dumps(numbers, indent=1).encode())
        facts = {
            "Model": f"{origin['run']}, step {origin['step']} ({origin['weights']})",
            "Samples": f"{len(samples):,}, seed {asked.seed}; {describe(settings)}",
            "Asked for": _conditions(request),
            "Data": f"{data.train.info.name}, {tables.counted(len(data.train), 'training example')}, "
            f"{len(data.test):,} held out",
        }
        title = f"{opened.recipe.name}: near-copies and shares"
        write_audit(
            target / PAGE,
            AuditInputs(title, _command(folder, asked, sampling, out), facts, samples, data.train, found, shares),
        )
    _tell(found, shares)
    output().print(f"{target / NUMBERS}\n{target / PAGE}", markup=False, soft_wrap=True)
    return 0


def _conditions(request: SampleRequest) -> str:
    named = [
        name for name, told in (("classes", request.labels), ("attributes", request.attributes)) if told is not None
    ]
    return f"the {' and '.join(named)} of training examples, chosen at random" if named else "nothing: no conditions"


def _memorisation(samples: Tensor, data: Data, asked: Asked, level: float) -> Memorisation | Missing:
    progress().print(f"comparing them with {len(data.train):,} training examples", markup=False)
    features = None
    if asked.features:
        extractor = _extractor(data)
        if isinstance(extractor, Missing):
            raise CommandError(f"--features: {extractor.reason}")
        features = Features(extractor.card.name, extractor)
    return memorisation(samples, data.train, data.test, level=level, features=features, seed=asked.seed)


def _audit(samples: Tensor, request: SampleRequest, data: Data, seed: int) -> Audit | Missing:
    reader, labelled = _reader(data)
    if isinstance(reader, Missing):
        return reader
    progress().print(f"reading them with {reader.name}", markup=False)
    wanted = torch.tensor(request.labels) if labelled and request.labels is not None else None
    return audit(samples, data.test, reader, wanted=wanted, labelled=labelled, seed=seed)


def _reader(data: Data) -> tuple[Reader | Missing, bool]:
    """Return who says what is on a picture, and whether the labels of the data are what it reads."""
    info = data.train.info
    if info.attributes:
        return shapes_reader(), False
    if info.classes is None or len(info.classes) < 2:
        return Missing("the data have no classes, and nothing else says what is on a picture"), False
    extractor = _extractor(data)
    if isinstance(extractor, Missing):
        return extractor, False
    return class_reader(extractor, info.classes), True


def _extractor(data: Data) -> FeatureExtractor | Missing:
    if (why := obstacle(data.train)) is not None:
        return Missing(why)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return feature_extractor(data.train, cache_folder() / "features", device=device)


def _command(folder: Path, asked: Asked, sampling: Sampling, out: Path | None) -> str:
    """Return the command line that asks for the same again."""
    flags = [f"--{name}" for name in ("memorisation", "bias", "features") if getattr(asked, name)]
    level = [] if asked.level is None else ["--level", f"{asked.level:g}"]
    counts = ["--samples", str(asked.samples), *level, "--seed", str(asked.seed)]
    given = {name.replace("_", "-"): value for name, value in asdict(sampling).items() if value is not None}
    how = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    where = [] if out is None else ["--out", str(out)]
    return shlex.join(["unfog", "audit", str(folder), *flags, *counts, *how, *where])


def _tell(copies: Memorisation | Missing, shares: Audit | Missing) -> None:
    console = output()
    if isinstance(copies, Memorisation):
        for view in copies.views:
            console.print(f"by {view.name}: {verdict_of_view(view)}", markup=False, soft_wrap=True)
            listing = table("sample>", "training example>", "ratio>", "p>", "false discovery rate>")
            for one in view.suspects[:10]:
                cells = (number(one.ratio), number(one.p_value), number(one.false_discovery))
                listing.add_row(str(one.sample), str(one.training), *cells)
            if view.suspects:
                show("the first suspects", listing)
    if isinstance(shares, Missing):
        progress().print(f"shares are not compared: {shares.reason}", markup=False, soft_wrap=True)
        return
    for attribute in shares.attributes:
        console.print(f"{attribute.name}: {verdict_of_attribute(attribute)}", markup=False, soft_wrap=True)
        listing = table("value", "samples", "data", "ratio", "")
        for value in attribute.values:
            ratio = tables.spoken(value.ratio) if isinstance(value.ratio, Score) else "–"
            mine, real = (tables.spoken(one, percent=True) for one in (value.samples, value.data))
            listing.add_row(value.name, mine, real, ratio, "*" if value.marked else "")
        show(f"read by {shares.reader}; *: more than chance", listing)
