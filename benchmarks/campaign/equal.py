"""Training for a fixed time, and what came of it in that time."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.campaign.jobs import Check, Effort, Equal, Floor, Scored
from benchmarks.campaign.systems import ANCESTRAL, FAST, Drawn, begin, data, fresh_network, peer_of, samples
from benchmarks.peers.peer import Training, parameters
from unfog.checkpoint import StoredTensors, write_tensors
from unfog.data.cache import cache_folder
from unfog.data.dataset import Dataset, to_float
from unfog.data.order import permutation
from unfog.diffusion.random import seed_of
from unfog.evaluation.features import FeatureExtractor, feature_extractor
from unfog.images import tile, write_png
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.manifold import density_coverage, precision_recall

PLANS = 10
"""How often the end of the learning rate is moved to where the measured speed puts it."""
POINTS = 120
"""Points of the loss curve that are recorded."""
WEIGHTS = "ema.safetensors"
SHOWN = 100


def train_for(training: Training, seconds: float) -> dict[str, Any]:
    """Train until the time is up, no step reaching beyond it, or until a learning rate has come to its end.

    A system whose learning rate falls is told at each tenth of the time how many steps there will be at the speed so
    far. Until the first tenth it goes by its own default; both systems concerned are warming up then, which the number
    does not touch.

    Args:
        training: ready to begin.
        seconds: wall time.
    """
    began, cpu = time.perf_counter(), time.process_time()
    steps, due, point = 0, seconds / PLANS, seconds / POINTS
    curve: list[tuple[float, int, float]] = []
    losses: list[float] = []
    now = 0.0
    while now + (now / steps if steps else 0.0) <= seconds:
        if now >= due:
            training.plan(max(round(steps * seconds / now), steps + 1))
            due += seconds / PLANS
        losses.append(training.step())
        steps += 1
        now = time.perf_counter() - began
        if now >= point * (len(curve) + 1):
            curve.append((round(now, 3), steps * training.batch_size, sum(losses) / len(losses)))
            losses.clear()
        if training.planned is not None and steps >= training.planned:
            break
    return {
        "seconds": now,
        "cpu_seconds": time.process_time() - cpu,
        "steps": steps,
        "planned_steps": training.planned,
        "examples": steps * training.batch_size,
        "examples_per_second": steps * training.batch_size / now,
        "loss_curve": {"columns": ["seconds", "examples", "mean loss since the last point"], "points": curve},
    }


def run_equal(job: Equal, effort: Effort, folder: Path) -> dict[str, Any]:
    """Train a system and keep its averaged weights in the folder."""
    train, _ = data()
    training = begin(job.system, train, job.seed)
    measured = train_for(training, effort.seconds)
    network = training.ema_network()
    write_tensors(folder / WEIGHTS, {k: v.contiguous() for k, v in network.state_dict().items()}, {"job": job.id})
    return {
        **measured,
        "budget_seconds": effort.seconds,
        "parameters": parameters(network),
        "settings": training.settings(),
        "training_images": len(train),
    }


def run_scored(job: Scored, effort: Effort, folder: Path, equal: Path, picture: Path) -> dict[str, Any]:
    """Draw from the weights that ``run_equal`` left and compare with the test images."""
    network = fresh_network(job.system)
    network.load_state_dict(dict(StoredTensors(equal / WEIGHTS)))
    began = time.perf_counter()
    drawn = samples(job.system, network.eval(), effort.samples, job.seed)
    seconds = time.perf_counter() - began
    train, test = data()
    judge = Judge(train, test, effort)
    scores = {}
    for one in drawn:
        _keep(one, folder, picture.with_name(f"{picture.name}-{one.name}.png"))
        scores[one.name] = {"settings": one.settings, "evaluations": one.evaluations, **judge.score(one.images)}
    best = min(scores, key=lambda name: float(scores[name]["frechet"]))
    return {
        "features": judge.name,
        "samples": effort.samples,
        "test_images": len(test),
        "sampling_seconds": seconds,
        "samplers": scores,
        "counts": best,
        "frechet": scores[best]["frechet"],
    }


def run_floor(job: Floor, effort: Effort) -> dict[str, Any]:
    """Score real training images that the feature network has not seen."""
    train, test = data()
    judge = Judge(train, test, effort)
    _, unseen = judge.extractor.card.config.split(len(train))
    real = judge.extractor.of(train, unseen[: effort.samples])
    return {
        "features": judge.name,
        "samples": len(real),
        "test_images": len(test),
        "feature_accuracy": judge.extractor.card.accuracy.to_dict(),
        **judge.compare(real),
    }


def run_check(job: Check, effort: Effort, folder: Path, equal: Path) -> dict[str, Any]:
    """Score a peer's ancestral and fast samples of the same weights."""
    network = fresh_network(job.system)
    network.load_state_dict(dict(StoredTensors(equal / WEIGHTS)))
    peer, judge = peer_of(job.system), Judge(*data(), effort)
    scores = {}
    for name, evaluations in (("ancestral", ANCESTRAL), ("ddim", FAST)):
        images = peer.sample(network.eval(), effort.check_samples, evaluations, job.seed)
        _keep(Drawn(name, "", evaluations, images), folder, folder / f"{name}.png")
        scores[name] = {"evaluations": evaluations, **judge.score(images)}
    return {"features": judge.name, "samples": effort.check_samples, "samplers": scores}


class Judge:
    """Compares images with all test images in the features of our built-in network for these data.

    The bootstrap draws the same test images in every job, and the same numbers of samples, so that resamples of two
    systems pair.

    Attributes:
        extractor: the feature network.
        name: of it.
    """

    def __init__(self, train: Dataset, test: Dataset, effort: Effort) -> None:
        self.extractor: FeatureExtractor = feature_extractor(train, cache_folder() / "features")
        self.name = self.extractor.card.name
        self._test = self.extractor.of(test).double()
        self._moments = Moments.of(self._test)
        self._resamples = effort.resamples

    def score(self, images: torch.Tensor) -> dict[str, Any]:
        """Score images ``(N, C, H, W)`` uint8."""
        return self.compare(self.extractor(images))

    def compare(self, features: torch.Tensor) -> dict[str, Any]:
        """Score features ``(N, D)``."""
        features = features.double()
        fewer = features.shape[0] <= features.shape[1]
        frechet = frechet_distance(Moments.of(features), self._moments, allow_singular=fewer)
        # Equal counts for the measures that depend on them.
        like = self._test[torch.from_numpy(permutation(len(self._test), seed_of("campaign", "test"), 0))]
        like = like[: len(features)]
        precision, recall = precision_recall(like, features)
        density, coverage = density_coverage(like, features)
        return {
            "frechet": frechet,
            "resampled": self._resampled(features),
            "singular": fewer,
            "precision": precision.to_dict(),
            "recall": recall.to_dict(),
            "density": density.to_dict(),
            "coverage": coverage.to_dict(),
        }

    def _resampled(self, features: torch.Tensor) -> list[float]:
        generator = torch.Generator().manual_seed(seed_of("campaign", "bootstrap"))
        drawn = []
        for _ in range(self._resamples):
            ours = torch.randint(len(features), (len(features),), generator=generator)
            theirs = torch.randint(len(self._test), (len(self._test),), generator=generator)
            a, b = Moments.of(features[ours]), Moments.of(self._test[theirs])
            drawn.append(frechet_distance(a, b, allow_singular=True))
        return drawn


def _keep(drawn: Drawn, folder: Path, picture: Path) -> None:
    """Keep all samples in the folder, and show the first ones."""
    write_tensors(folder / f"samples-{drawn.name}.safetensors", {"images": drawn.images}, {})
    write_png(picture, tile(to_float(drawn.images[:SHOWN]), 10), {"settings": drawn.settings})
