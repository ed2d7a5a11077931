"""What a data set holds, and whether training on it would begin: every picture is decoded once, as training would.

The pictures pass ``gate.passed`` and ``image.decode``, and are judged by what judges them before training. Nothing is
written, so that a set can be looked at that is too large for the cache, or whose pictures still differ in size.
"""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unfog.data.dataset import Report, Skipped
from unfog.data.gate import FACTS, Extents, counted, facts, notices, passed, require_few_bad, require_readable
from unfog.data.image import Look, Size, Stretch, decode
from unfog.data.source import Encoded, Source
from unfog.data.sources import DataSpec, open_splits
from unfog.data.split import choose


@dataclass(frozen=True)
class CaptionCounts:
    """What the captions of the pictures that were read are like.

    Attributes:
        present: pictures with a caption that is not empty.
        empty: pictures with an empty caption.
        missing: pictures without a caption.
        repeated: pictures whose caption another one before it has too.
        shortest: characters of the shortest caption that is not empty; 0 if there is none.
        median: the same of the middle one.
        longest: the same of the longest.
    """

    present: int
    empty: int
    missing: int
    repeated: int
    shortest: int
    median: float
    longest: int

    @property
    def by_state(self) -> dict[str, int]:
        """Pictures by what their caption is."""
        return {"present": self.present, "empty": self.empty, "missing": self.missing}

    @staticmethod
    def of(captions: Sequence[str | None]) -> "CaptionCounts":
        """Count captions."""
        given = [caption for caption in captions if caption and not caption.isspace()]
        lengths = sorted(map(len, given)) or [0]
        return CaptionCounts(
            present=len(given),
            empty=sum(caption is not None for caption in captions) - len(given),
            missing=sum(caption is None for caption in captions),
            repeated=len(given) - len(set(given)),
            shortest=lengths[0],
            median=statistics.median(lengths),
            longest=lengths[-1],
        )


@dataclass(frozen=True)
class Examination:
    """What one split holds.

    Attributes:
        name: of the set.
        split: which of its splits.
        report: which pictures could not be read.
        sizes: pictures by height and width, before anything is cut or resampled.
        aspects: pictures by width / height, in two decimals.
        modes: pictures by how their pixels are stored, as Pillow calls it.
        kinds: pictures by extension, or, where they lie in tables, by format.
        classes: readable pictures of each class; None without labels.
        captions: None where no picture has one.
        duplicates: names of pictures whose pixels are the same as training would see them.
        notices: what the owner of the data should know.
        refusals: why training would not begin; empty where it would.
    """

    name: str
    split: str
    report: Report
    sizes: Mapping[Size, int]
    aspects: Mapping[str, int]
    modes: Mapping[str, int]
    kinds: Mapping[str, int]
    classes: Mapping[str, int] | None
    captions: CaptionCounts | None
    duplicates: tuple[tuple[str, ...], ...]
    notices: tuple[str, ...]
    refusals: tuple[str, ...]


class _Seen(NamedTuple):
    """What is kept of one readable picture."""

    number: int
    name: str
    look: Look
    kind: str
    digest: bytes


class Examiner:
    """Looks at every picture of one split: iterate over it to the end, then ask for the ``result``.

    Args:
        source: the split.
        split: its name.
        spec: how training would read it.
    """

    def __init__(self, source: Source, split: str, spec: DataSpec) -> None:
        self.source = source
        self.split = split
        self._spec = spec
        self._seen: list[_Seen] = []
        self._skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[int]:
        """Decode the pictures and yield how many have been looked at."""
        transform = self._spec.transform

        def seen(item: Encoded) -> tuple[Look, str, bytes]:
            picture = decode(item.content, transform.size, transform.channels, transform.policy)
            digest = hashlib.blake2b(str(picture.pixels.shape).encode() + picture.pixels.data, digest_size=16)
            return picture.look, _kind(item, picture.look), digest.digest()

        self._seen.clear()
        self._skipped.clear()
        for done, one in enumerate(passed(self.source, np.arange(self.source.count), seen), 1):
            if isinstance(one.result, Skipped):
                self._skipped.append(one.result)
            else:
                self._seen.append(_Seen(one.number, one.name, *one.result))
            yield done

    def result(self) -> Examination:
        """Return what was found.

        Raises:
            ValueError: if not every picture has been looked at.
        """
        source, seen = self.source, self._seen
        report = Report(source.count, tuple(self._skipped))
        done = len(seen) + len(self._skipped)
        if done < source.count:
            raise ValueError(f"only {done} of {source.count} pictures were looked at: iterate to the end first")
        numbers = [one.number for one in seen]
        duplicates = self._duplicates()
        captions = None
        if source.captions is not None and any(caption is not None for caption in source.captions):
            captions = CaptionCounts.of([source.captions[number] for number in numbers])
        size, refusals = self._judged(report)
        return Examination(
            name=source.name,
            split=self.split,
            report=report,
            sizes=Counter(one.look.size for one in seen),
            aspects=Counter(f"{one.look.size[1] / one.look.size[0]:.2f}" for one in seen),
            modes=Counter(one.look.mode for one in seen),
            kinds=Counter(one.kind for one in seen),
            classes=self._classes(numbers),
            captions=captions,
            duplicates=tuple(tuple(one.name for one in group) for group in duplicates),
            notices=source.notices + self._decoding(size) + self._telling(duplicates),
            refusals=refusals,
        )

    def _judged(self, report: Report) -> tuple[Size | None, tuple[str, ...]]:
        """Return the size that training would use, and why it would refuse the set."""
        spec, extents, refusals = self._spec, Extents(), []
        for one in self._seen:
            extents.add(one.name, one.look)
        size = None
        try:
            size, _ = extents.settle(self.source.name, spec.height_width, spec.channels)
        except ValueError as refusal:
            refusals.append(str(refusal))
        try:
            require_readable(self.source.name, report)
            require_few_bad(f"{self.source.name}/{self.split}", report, spec.max_bad, spec.path)
        except ValueError as refusal:
            refusals.append(str(refusal))
        return size, tuple(refusals)

    def _classes(self, numbers: Sequence[int]) -> dict[str, int] | None:
        labels, classes = self.source.labels, self.source.classes
        if labels is None or classes is None:
            return None
        counts = np.bincount(labels[np.array(numbers, dtype=np.int64)], minlength=len(classes))
        return dict(zip(classes, counts.tolist(), strict=True))

    def _duplicates(self) -> list[list[_Seen]]:
        groups: dict[bytes, list[_Seen]] = {}
        for one in self._seen:
            groups.setdefault(one.digest, []).append(one)
        return [group for group in groups.values() if len(group) > 1]

    def _decoding(self, size: Size | None) -> tuple[str, ...]:
        found = np.array([facts(one.look) for one in self._seen], FACTS)
        ranged = self._spec.transform.policy.value_range is not None and not self._of_arrays
        return notices(found, size or (1, 1), ranged)

    @property
    def _of_arrays(self) -> bool:
        return any(one.look.format == "array" for one in self._seen)

    def _telling(self, duplicates: Sequence[Sequence[_Seen]]) -> tuple[str, ...]:
        told = []
        formats = Image.registered_extensions()
        misnamed = [one for one in self._seen if one.kind in formats and formats[one.kind] != _plain(one.look.format)]
        if misnamed:
            kinds = counted(f"{one.kind} that are {_plain(one.look.format)}" for one in misnamed)
            told.append(f"{len(misnamed)} pictures are of another format than they are called: {kinds}")
        if duplicates:
            extra = sum(len(group) - 1 for group in duplicates)
            told.append(f"{extra} pictures repeat the pixels of another one, in {len(duplicates)} groups")
        labels = self.source.labels
        if labels is not None:
            torn = sum(len({int(labels[one.number]) for one in group}) > 1 for group in duplicates)
            if torn:
                told.append(f"{torn} of these groups have pictures of different classes")
        return tuple(told)


def _kind(item: Encoded, seen: Look) -> str:
    if isinstance(item.content, (Path, Stretch)):
        return Path(item.name).suffix.lower()
    return seen.format


def _plain(format_: str) -> str:
    """Return the format of a file; Pillow calls a JPEG of several pictures MPO."""
    return "JPEG" if format_ == "MPO" else format_


def examiners(spec: DataSpec, split: str | None) -> list[Examiner]:
    """Return what looks at a split, or at all splits that a data set has.

    Args:
        spec: how training would read it; its ``split``, ``limit`` and ``holdout`` do not matter.
        split: which; None means all.

    Raises:
        ValueError: if the data cannot be found or opened, or there is no such split.
        ImportError: if a library that they need is missing.
    """
    splits = open_splits(spec)
    keys = list(splits) if split is None else [choose(splits, split, None, repr(spec.path)).key]
    return [Examiner(splits[key](), key or "train", spec) for key in keys]
