"""Which examples belong to training and which are kept for testing: pure functions of names and numbers.

A source says by the names of its files or folders which splits it has. Where it has no test split, a part is carved
out by a fixed hash of the example's number, class by class, so that the same examples are held out in every run, on
every machine, and every class is represented in proportion.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

_ALIASES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
}
_SHARD = re.compile(r"[-_.](\d+([-_.]of[-_.]\d+)?|part[-_.]?\d+)$", re.IGNORECASE)

Named = TypeVar("Named")


def canonical(name: str) -> str:
    """Return ``train``, ``test`` or ``valid`` for the usual spellings of these, and other names as they are."""
    return _ALIASES.get(name.lower(), name)


def is_split(name: str) -> bool:
    """Tell whether a name is a usual name of a split."""
    return name.lower() in _ALIASES


def split_of(stem: str) -> str | None:
    """Return the split that a file name (without extension) tells of: the first usual name in it, or None."""
    words = re.split(r"[^a-z0-9]+", stem.lower())
    return next((_ALIASES[word] for word in words if word in _ALIASES), None)


def by_split(files: Iterable[tuple[str, Named]]) -> dict[str | None, list[Named]]:
    """Group files by split.

    Args:
        files: the stem of each file's name, and the file.

    Returns:
        files by split name. Where no file's name tells of a split, all files are one undivided set under None;
        where some do, the others go by their own name, without the number of the shard.
    """
    listed = list(files)
    if not any(split_of(stem) for stem, _ in listed):
        return {None: [file for _, file in listed]} if listed else {}
    groups: dict[str | None, list[Named]] = {}
    for stem, file in listed:
        groups.setdefault(split_of(stem) or _SHARD.sub("", stem), []).append(file)
    return groups


class Choice(NamedTuple):
    """What to read for a split: the source's own split ``key``, all of it or (``test`` is a bool) one part of it."""

    key: str | None
    test: bool | None


def choose(available: Collection[str | None], split: str, holdout: float | None, name: str) -> Choice:
    """Find out what a split of a source is.

    Args:
        available: the splits that the source has; None stands for an undivided set.
        split: the split wanted.
        holdout: share of the training examples to carve out as the test part of a source that has none, or None.
            It concerns the splits train and test only.
        name: what to call the source in errors.

    Raises:
        ValueError: if there is no such split, or a holdout is asked of a source with a test split.
    """
    wanted = canonical(split)
    base = "train" if "train" in available else None
    carved = holdout is not None and wanted in ("train", "test") and base in available
    listing = ", ".join(sorted(repr(key) for key in available if key is not None)) or "none (it is undivided)"
    if holdout is not None and "test" in available:
        raise ValueError(f"{name} has its own test split (splits: {listing}): leave holdout out")
    if carved:
        return Choice(base, wanted == "test")
    if wanted in available:
        return Choice(wanted, None)
    if wanted == "train" and None in available:
        return Choice(None, None)
    advice = ""
    if wanted == "test" and base in available:
        advice = "; holdout=0.1 carves a test part of 10 % out of the training examples (give it to both splits)"
    raise ValueError(f"{name} has no split {split!r}; splits found: {listing}{advice}")


def hashed(indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the outputs of SplitMix64 (seed 0) at some places: 64 well-mixed bits, the same on every machine.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195.
    """
    z = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def ranks(ids: NDArray[np.int64], labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the place of each example among those of its class, in the order of their hashes.

    Args:
        ids: ``(n,)``, numbers of examples.
        labels: ``(n,)``, or None to treat all as one class.
    """
    keys = hashed(ids)
    found = np.empty(len(ids), dtype=np.int64)
    groups = np.zeros(len(ids), dtype=np.int64) if labels is None else labels
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        found[members[np.argsort(keys[members], kind="stable")]] = np.arange(len(members))
    return found


def class_sizes(labels: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """Return for each of ``count`` examples how many examples its class has."""
    if labels is None:
        return np.full(count, count, dtype=np.int64)
    return np.bincount(labels)[labels].astype(np.int64)


def held_out(count: int, labels: NDArray[np.int64] | None, share: float) -> NDArray[np.bool_]:
    """Tell which examples form the test part.

    Of each class, the ``round(share * size)`` examples whose numbers hash lowest. Where the classes are so small that
    this leaves one part empty, the same of all examples as one class, but at least one and not all.

    Args:
        count: number of examples.
        labels: ``(count,)``, or None to treat all as one class.
        share: wanted share of the test part, between 0 and 1.

    Returns:
        ``(count,)`` bool.

    Raises:
        ValueError: if there are not two examples.
    """
    if count < 2:
        raise ValueError(f"holdout={share} of {count} examples leaves one of the parts empty")
    numbers = np.arange(count, dtype=np.int64)
    test = ranks(numbers, labels) < np.floor(share * class_sizes(labels, count) + 0.5)
    if test.all() or not test.any():
        wanted = min(max(1, round(share * count)), count - 1)
        test = ranks(numbers, None) < wanted
    return np.asarray(test)


def limited(ids: NDArray[np.int64], labels: NDArray[np.int64] | None, limit: int | None) -> NDArray[np.int64]:
    """Choose at most ``limit`` examples, each class in proportion.

    Neither the first ones (of a set sorted by class, all of one class) nor every so-manyth (of a set whose classes
    alternate, all of one class too) would do. A smaller limit chooses from the choice of a larger one.

    Args:
        ids: ``(n,)``, ascending numbers of examples.
        labels: ``(n,)``, or None.
        limit: how many; None takes all.

    Returns:
        The numbers chosen, ascending.
    """
    if limit is None or limit >= len(ids):
        return ids
    through = (ranks(ids, labels) + 0.5) / class_sizes(labels, len(ids))  # how far through its class, 0 to 1
    return np.sort(ids[np.lexsort((hashed(ids), through))[:limit]])
