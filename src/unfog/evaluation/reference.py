"""Statistics of real data in the features of one network, kept on disk so that they are computed once.

The name of the file is a hash of the fingerprint of the data (which covers pixels, size, channels and selection) and of
everything that is known of the network and its preparation, so changed data never meet old statistics. What was
written is checked by its SHA-256 when it is read; a damaged file is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.random import seed_of
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.classifier import pieces
from unfog.evaluation.extractors import Extractor
from unfog.files import (
    DamagedCheckpointError,
    json_object,
    load_tensors,
    read_checked,
    read_file,
    serialized,
    write_atomically,
)
from unfog.metrics.frechet import Moments

FORMAT = 1
"""Part of the key; raised when the same data and network start to mean other statistics."""

KEPT = 50_000
"""Most examples whose features are kept; of more, these are a random choice, and the moments are of all."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of a data set.

    Attributes:
        moments: of the features of all examples.
        features: ``(K, D)`` float32 of the examples ``ids``.
        ids: ``(K,)`` int64, ascending: all, or a random choice of ``KEPT``.
    """

    moments: Moments
    features: Tensor
    ids: Tensor

    @property
    def whole(self) -> bool:
        """Whether the features of all examples are kept."""
        return len(self.ids) == self.moments.count


def reference_statistics(dataset: Dataset, extractor: Extractor, cache: Path, *, kept: int = KEPT) -> Reference:
    """Return the statistics of a data set, computing them if they are not in the cache.

    Args:
        dataset: real examples.
        extractor: makes the features.
        cache: folder of the stored statistics; made if it is not there.
        kept: most examples whose features are kept, at least 1.

    Raises:
        DamagedCheckpointError: if the stored statistics are not what was written.
    """
    path = cache / f"reference-{_key(dataset, extractor.identity, kept)}.safetensors"
    told = path.with_suffix(".json")
    if told.exists():
        return _read(path, told)
    made = _computed(dataset, extractor, kept)
    tensors = {
        "mean": made.moments.mean,
        "covariance": made.moments.covariance,
        "features": made.features,
        "ids": made.ids,
    }
    content = serialized(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    # What tells of the file comes last: its presence says that the file is whole.
    about = {
        "data": dataset.info.name,
        "fingerprint": dataset.info.fingerprint,
        "count": made.moments.count,
        "extractor": asdict(extractor.identity),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_atomically(told, json.dumps(about, indent=1).encode())
    return made


@dataclass(frozen=True, eq=False)
class Remembering:
    """An extractor that looks up features of whole data sets in the cache.

    Attributes:
        extractor: makes the features.
        cache: folder of the stored statistics.
    """

    extractor: Extractor
    cache: Path

    @property
    def identity(self) -> ExtractorCard:
        """What the network is."""
        return self.extractor.identity

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.extractor.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images."""
        return self.extractor(images)

    def logits(self, features: Tensor) -> Tensor | None:
        """Return the logits that the Inception Score is defined by."""
        return self.extractor.logits(features)

    def of(self, dataset: Dataset, ids: Tensor | None = None) -> Tensor:
        """Return the features of some examples of a data set, or of all; those of up to ``KEPT`` are remembered."""
        if len(dataset) > KEPT:
            return self.extractor.of(dataset, ids)
        features = reference_statistics(dataset, self.extractor, self.cache).features
        return features if ids is None else features[ids]


def _key(dataset: Dataset, identity: ExtractorCard, kept: int) -> str:
    text = json.dumps([FORMAT, dataset.info.fingerprint, asdict(identity), kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _computed(dataset: Dataset, extractor: Extractor, kept: int) -> Reference:
    count = len(dataset)
    chosen = torch.from_numpy(permutation(count, seed_of("reference", 0), 0)[:kept]).sort().values
    wanted = torch.zeros(count, dtype=torch.bool)
    wanted[chosen] = True
    moments: Moments | None = None
    features = []
    for ids in pieces(torch.arange(count)):
        found = extractor.of(dataset, ids)
        part = Moments.of(found)
        moments = part if moments is None else moments.merge(part)
        features.append(found[wanted[ids]])
    assert moments is not None
    return Reference(moments, torch.cat(features), chosen)


def _read(path: Path, told: Path) -> Reference:
    about = json_object(told, read_file(told))
    try:
        tensors = load_tensors(path, read_checked(path, about))
        count = about["count"]
        if not isinstance(count, int):
            raise DamagedCheckpointError(f"{told} does not say of how many examples it tells")
        moments = Moments(tensors["mean"], tensors["covariance"], count)
        return Reference(moments, tensors["features"], tensors["ids"])
    except (DamagedCheckpointError, KeyError, ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"{error}; delete {told} to have the statistics computed anew") from error
