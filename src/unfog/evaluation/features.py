"""Features to measure images with: a small network trained on the data set at hand, kept on disk.

Published feature networks need a download and know photographs; this one is trained in a minute, on one half of the
training examples, to tell classes apart or, where there are no labels, to tell by how much an image was turned, or how
one that is not square was mirrored. Its pooled activations are the features. A distance between features means
something only together with the network that made them: every extractor has a name of its own, and its numbers must
never be printed under the names of metrics that are defined by another network (FID in particular).

Source of the turned images: S. Gidaris, P. Singh and N. Komodakis, "Unsupervised representation learning by
predicting image rotations", 2018, arXiv 1803.07728.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.checkpoint import DamagedCheckpointError, StoredTensors, write_atomically, write_tensors
from unfog.data.batch import Batch, Batches
from unfog.data.dataset import DataInfo, Dataset, to_float
from unfog.data.loader import ShuffledBatches
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.classifier import (
    Budget,
    FeatureNetwork,
    Shift,
    build,
    fit,
    logits,
    pieces,
    stem_stride_for,
    subset,
    to_pixels,
    too_small,
)
from unfog.metrics.interval import Score, proportion

FORMAT = 1
"""Part of the key of a stored network; raised when the same configuration starts to mean another network."""

HELD_OUT = 2000
"""Most examples that the accuracy of a network is measured on."""


VARIANTS = 4
"""How many variants of an image a network without labels tells apart."""

Vary = Callable[[Tensor, Tensor], Tensor]
"""Makes of images ``(B, C, H, W)`` their variants of the numbers ``(B,)`` int64 from 0 to 3; variant 0 is the image."""


class Variants:
    """Telling variants of an image apart as a task: each example stands at four positions, whose number is the label.

    The four are next to each other, so a batch holds them together.

    Args:
        batches: images; labels are not needed.
        vary: makes the variants.

    Source: Gidaris et al. 2018, arXiv 1803.07728, for turned images.
    """

    def __init__(self, batches: Batches, vary: Vary) -> None:
        self.batches = batches
        self.vary = vary

    def take(self, start: int, count: int) -> Batch:
        """Return the variants at positions ``start`` to ``start + count - 1``."""
        positions = torch.arange(start, start + count)
        first, last = start // VARIANTS, (start + count - 1) // VARIANTS
        base = self.batches.take(first, last - first + 1)
        row, numbers = positions // VARIANTS - first, positions % VARIANTS
        varied = self.vary(base.values["x0"][row], numbers)
        return Batch({"x0": varied, "label": numbers}, base.ids[row], base.epochs[row], positions)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn square images ``(B, C, S, S)`` by ``turns`` quarters, ``(B,)`` int64 of 0 to 3."""
    turned = x.clone()
    for quarters in (1, 2, 3):
        chosen = turns == quarters
        turned[chosen] = torch.rot90(x[chosen], quarters, (-2, -1))
    return turned


def mirror(x: Tensor, ways: Tensor) -> Tensor:
    """Mirror images ``(B, C, H, W)`` by ``ways``, ``(B,)`` int64: 0 not, 1 left-right, 2 top-bottom, 3 both."""
    mirrored = x.clone()
    for way, axes in ((1, (-1,)), (2, (-2,)), (3, (-2, -1))):
        chosen = ways == way
        mirrored[chosen] = x[chosen].flip(axes)
    return mirrored


class Pretext(Enum):
    """What a network is trained for so that its features become useful."""

    CLASSES = "class labels"
    ROTATIONS = "four rotations"
    MIRRORINGS = "four mirrorings"

    @staticmethod
    def of(info: DataInfo, *, use_labels: bool) -> "Pretext":
        """Return what suits a data set: its classes, or else rotations, which only square images allow."""
        if use_labels and info.classes is not None and len(info.classes) > 1:
            return Pretext.CLASSES
        return Pretext.ROTATIONS if len(set(info.size)) == 1 else Pretext.MIRRORINGS

    @property
    def vary(self) -> Vary | None:
        """What makes the variants that are told apart; None where it is the classes."""
        return {Pretext.ROTATIONS: turn, Pretext.MIRRORINGS: mirror}.get(self)


@dataclass(frozen=True)
class FeatureConfig:
    """How a feature network is made.

    Attributes:
        budget: size and training.
        share: share of the training examples that it is trained on, in (0, 1). The others are unknown to it,
            as test examples are, and serve where real data are compared with real data.
        limit: most examples that it is trained on.
        shift: augmentation, see ``Shift``.
        use_labels: tell classes apart where the data have labels; otherwise, and without labels, tell
            rotations apart, or mirrorings of images that are not square.
        seed: of the split, the weights, the order and the augmentation.
    """

    budget: Budget = field(default_factory=Budget)
    share: float = 0.5
    limit: int = 20_000
    shift: float = 1 / 14
    use_labels: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"a share strictly between 0 and 1, got {self.share}")
        require(self.limit >= 2, f"a limit of at least 2 examples, got {self.limit}")
        require(0 <= self.shift < 1, f"a shift in [0, 1), got {self.shift}")

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the ids of ``count`` training examples that the network learns from, and the others."""
        used = self.used(count)
        require(used < count, f"more training examples than the {used} that the network learns from, got {count}")
        order = torch.from_numpy(permutation(count, seed_of("features", self.seed), 0))
        return order[:used], order[used:]

    def used(self, count: int) -> int:
        """Return how many of ``count`` training examples the network would learn from: no fewer than 2."""
        return min(max(round(self.share * count), 2), self.limit)


@dataclass(frozen=True)
class FeatureCard:
    """What a feature network is; printed with every number that it took part in.

    Attributes:
        name: ``unfog-features-<data set>-<first digits of sha256>``.
        pretext: what it was trained for.
        channels: of the images.
        classes: number of logits.
        stem_stride: see ``FeatureNetwork``.
        config: how it was made.
        dataset: name of the training set.
        fingerprint: of the training set.
        examples: how many of them it was trained on.
        accuracy: on training examples that were kept from it.
        sha256: of the file of its weights.
    """

    name: str
    pretext: Pretext
    channels: int
    classes: int
    stem_stride: int
    config: FeatureConfig
    dataset: str
    fingerprint: str
    examples: int
    accuracy: Score
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the card as a dictionary that JSON can hold."""
        return {**asdict(self), "pretext": self.pretext.value}

    @staticmethod
    def from_dict(card: dict[str, Any]) -> "FeatureCard":
        """Return the card that ``to_dict`` turned into a dictionary."""
        config = dict(card["config"])
        config["budget"] = Budget(**config["budget"])
        made = {"pretext": Pretext(card["pretext"]), "config": FeatureConfig(**config)}
        return FeatureCard(**{**card, **made, "accuracy": Score(**card["accuracy"])})

    def network(self) -> FeatureNetwork:
        """Return a network of this architecture with fresh weights."""
        return FeatureNetwork(
            self.channels,
            self.classes,
            width=self.config.budget.width,
            stem_stride=self.stem_stride,
            dropout=self.config.budget.dropout,
        )


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A trained feature network and its card.

    Attributes:
        card: what the network is.
        network: in evaluation mode.
    """

    card: FeatureCard
    network: FeatureNetwork

    @property
    def identity(self) -> ExtractorCard:
        """What metric cards say of the network."""
        return ExtractorCard(
            name=self.card.name,
            sha256=self.card.sha256,
            resize="none",
            value_range="x / 127.5 - 1",
            channels=str(self.card.channels),
        )

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.head.weight.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images, one row each.

        Args:
            images: ``(N, C, H, W)`` uint8, or floats in [-1, 1], which are rounded to 8 bits.

        Returns:
            ``(N, D)`` float32 on the CPU.

        Raises:
            ValueError: if the images have another number of channels or are too small.
        """
        pixels = to_pixels(images)
        require(
            pixels.shape[1] == self.card.channels,
            f"images of {self.card.channels} channels for {self.card.name}, got {pixels.shape[1]}",
        )
        stem_stride_for(tuple(pixels.shape[2:]))
        return torch.cat([self._features(to_float(piece)) for piece in pieces(pixels)])

    def of(self, dataset: Dataset, ids: Tensor | None = None) -> Tensor:
        """Return the features of some examples of a data set, or of all: ``(N, D)`` float32."""
        chosen = torch.arange(len(dataset)) if ids is None else ids
        return torch.cat([self(dataset.gather(piece)["x0"]) for piece in pieces(chosen)])

    def logits(self, features: Tensor) -> None:
        """Return None: the Inception Score is defined by another network."""

    @torch.inference_mode()
    def _features(self, x: Tensor) -> Tensor:
        return self.network.features(x.to(self.device)).cpu()


def obstacle(dataset: Dataset, config: FeatureConfig | None = None) -> str | None:
    """Say why no feature network can be made of a training set: a sentence, or None where one can be made."""
    if (small := too_small(dataset.info.size)) is not None:
        return small
    count = len(dataset)
    used = (config or FeatureConfig()).used(count)
    if used < count:
        return None
    return f"the feature network learns from {used} training examples and is judged on others, of {count} in all"


def feature_extractor(
    dataset: Dataset, cache: Path, config: FeatureConfig | None = None, *, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Return the feature network of a training set, training it if it is not in the cache.

    The cache is looked up by the fingerprint of the data and the configuration, so changed data never meet an
    old network.

    Args:
        dataset: training examples, of 8 x 8 pixels or more.
        cache: folder of the stored networks; made if it is not there.
        config: how the network is made.
        device: where it is trained and used.

    Raises:
        ValueError: if the images are too small, or there are too few, as ``obstacle`` says.
        DamagedCheckpointError: if the stored network is not what was written.
    """
    config = config or FeatureConfig()
    if (why := obstacle(dataset, config)) is not None:
        raise ValueError(why)
    path = cache / f"features-{_key(dataset, config)}.safetensors"
    if path.with_suffix(".json").exists():
        return load_extractor(path, device=device)
    extractor = _trained(dataset, path, config, device)
    # The card comes last: its presence says that the weights are whole.
    card = json.dumps(extractor.card.to_dict(), indent=1, sort_keys=True)
    write_atomically(path.with_suffix(".json"), card.encode())
    return extractor


def load_extractor(path: Path, *, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return a stored feature network.

    Args:
        path: its weights, with the card beside them under the same name and ``.json``.
        device: where it is used.

    Raises:
        DamagedCheckpointError: if the weights are not those that the card was written for.
    """
    try:
        card = FeatureCard.from_dict(json.loads(path.with_suffix(".json").read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path.with_suffix('.json')} is no feature card ({error}); delete it") from error
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256:
        raise DamagedCheckpointError(
            f"{path} does not hold the weights of {card.name}; delete it and its .json to have the network made again"
        )
    network = card.network()
    network.load_state_dict(dict(StoredTensors(path)))
    return FeatureExtractor(card, network.eval().to(device))


def _key(dataset: Dataset, config: FeatureConfig) -> str:
    text = json.dumps([FORMAT, dataset.info.fingerprint, asdict(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _trained(dataset: Dataset, path: Path, config: FeatureConfig, device: torch.device | str) -> FeatureExtractor:
    """Train a network, write its weights to ``path``, and measure it on examples that it has not seen."""
    info = dataset.info
    pretext = Pretext.of(info, use_labels=config.use_labels)
    vary = pretext.vary
    classes = len(info.classes or ()) if vary is None else VARIANTS
    used, others = config.split(len(dataset))
    batches: Batches = ShuffledBatches(subset(dataset, used), seed=seed_of("features", "order", config.seed))
    if vary is not None:
        batches = Variants(batches, vary)
    seed = seed_of("features", "weights", config.seed)
    network = build(info.channels, classes, info.size, config.budget, seed=seed).to(device)
    steps = config.budget.steps_for(len(used) * (1 if vary is None else VARIANTS))
    fit(network, batches, classes, steps, config.budget, Shift(config.shift), seed=seed)
    write_tensors(path, network.state_dict(), {})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    # The end of the name: data sets call themselves "mnist/train", folders by their whole path.
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join(Path(info.name).parts[-2:]).lower()).strip("-")
    card = FeatureCard(
        name=f"unfog-features-{slug}-{sha256[:8]}",
        pretext=pretext,
        channels=info.channels,
        classes=classes,
        stem_stride=stem_stride_for(info.size),
        config=config,
        dataset=info.name,
        fingerprint=info.fingerprint,
        examples=len(used),
        accuracy=_held_out_accuracy(network, dataset, others[:HELD_OUT], pretext),
        sha256=sha256,
    )
    return FeatureExtractor(card, network)


def _held_out_accuracy(network: FeatureNetwork, dataset: Dataset, ids: Tensor, pretext: Pretext) -> Score:
    values = dataset.gather(ids)
    right = 0
    questions = 0
    for x0, label in _questions(values["x0"], values.get("label"), pretext):
        right += int((logits(network, x0).argmax(1) == label).sum())
        questions += len(label)
    return proportion(right, questions, note=f"{pretext.value}, training examples kept from the network")


def _questions(x0: Tensor, label: Tensor | None, pretext: Pretext) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and the answers that the network was trained to give."""
    vary = pretext.vary
    if vary is None:
        assert label is not None
        yield x0, label
        return
    for number in range(VARIANTS):
        numbers = torch.full((len(x0),), number)
        yield vary(x0, numbers), numbers
