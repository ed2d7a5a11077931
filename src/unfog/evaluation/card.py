"""Metric cards: under which conditions a number was measured, so that only numbers of one kind stand side by side.

A Fréchet distance of one network, count or resize filter says nothing beside one of another, though both are called
by the same name. So every set of scores carries a card, and whoever puts the scores of several into one table asks
``require_comparable`` first, which refuses with a sentence on what differs.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class ExtractorCard:
    """What a network that makes features is, and what it does with pictures first.

    Attributes:
        name: of the network.
        sha256: of its weights.
        resize: what pictures are brought to, and by which filter; ``none`` if they are taken as they are.
        value_range: what 0 .. 255 becomes.
        channels: what is done where channels are other than the network's.
        title: what the squared Fréchet distance of its features is called: ``FID`` for the published Inception network
            with its published weights, else words that say that it is another number.
    """

    name: str
    sha256: str
    resize: str
    value_range: str
    channels: str
    title: str = "not FID"


@dataclass(frozen=True)
class Card:
    """Under which conditions scores were measured.

    Attributes:
        extractor: name of the network that made the features.
        sha256: of its weights.
        resize: what pictures are brought to before it, and by which filter.
        value_range: what 0 .. 255 becomes.
        channels: what is done where channels are other than the network's.
        pictures: channels, height and width of the samples before that.
        count: samples.
        reference_count: real examples.
        reference: fingerprint of the data that they were taken from.
        seed: of subsets and cuts.
        interval: kinds of the intervals.
        version: of the library.
    """

    extractor: str
    sha256: str
    resize: str
    value_range: str
    channels: str
    pictures: str
    count: int
    reference_count: int
    reference: str
    seed: int
    interval: str
    version: str

    @staticmethod
    def of(
        extractor: ExtractorCard,
        shape: Collection[int],
        counts: tuple[int, int],
        reference: str,
        seed: int,
        interval: str,
    ) -> "Card":
        """Return the card of scores that are measured now.

        Args:
            extractor: makes the features.
            shape: ``(C, H, W)`` of the samples.
            counts: of samples and of real examples.
            reference: fingerprint of the real data.
            seed: of subsets and cuts.
            interval: kinds of the intervals.
        """
        return Card(
            extractor=extractor.name,
            sha256=extractor.sha256,
            resize=extractor.resize,
            value_range=extractor.value_range,
            channels=extractor.channels,
            pictures=" x ".join(map(str, shape)),
            count=counts[0],
            reference_count=counts[1],
            reference=reference,
            seed=seed,
            interval=interval,
            version=version("unfog"),
        )

    def to_dict(self) -> dict[str, str | int]:
        """Return the card as a dictionary that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Card":
        """Return the card that ``to_dict`` turned into a dictionary."""
        return Card(**stored)


NAMES = {
    "extractor": "the feature network",
    "sha256": "its weights",
    "resize": "the resize filter",
    "value_range": "the value range",
    "channels": "the treatment of channels",
    "pictures": "the size of the pictures",
    "count": "the number of samples",
    "reference_count": "the number of real examples",
    "reference": "the real data",
    "seed": "the seed",
    "interval": "the kinds of intervals",
    "version": "the version of the library",
}
"""What the fields of a card are called."""


class IncomparableError(ValueError):
    """Numbers that were measured under different conditions were to stand in one table."""


def require_comparable(cards: Mapping[str, Card], *, varying: Collection[str] = ()) -> None:
    """Refuse numbers that cannot stand in one table.

    Args:
        cards: by the names of what was measured.
        varying: fields in which the rows differ on purpose, such as the seed of a table over seeds.

    Raises:
        IncomparableError: if two cards differ in another field; says in what.
        ValueError: if there is no such field.
    """
    known = [field.name for field in fields(Card)]
    if unknown := set(varying) - set(known):
        raise ValueError(f"a card has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    require_alike({name: card.to_dict() for name, card in cards.items()}, varying=varying, called=NAMES)


def require_alike(
    conditions: Mapping[str, Mapping[str, Any]],
    *,
    varying: Collection[str] = (),
    called: Mapping[str, str] | None = None,
) -> None:
    """Refuse numbers whose stated conditions differ; for records that state fewer than a card does.

    Args:
        conditions: by the names of what was measured, what was stated of each.
        varying: conditions in which they differ on purpose.
        called: what the conditions are called; their own names where left out.

    Raises:
        IncomparableError: if two of them differ in another condition; says in what.
    """
    names = called or {}
    if not conditions:
        return
    first, *others = conditions.items()
    for other, stated in others:
        keys = [key for key in {**first[1], **stated} if key not in varying]
        parts = [
            f"{names.get(key, key)} ({_short(first[1].get(key))}; {_short(stated.get(key))})"
            for key in keys
            if first[1].get(key) != stated.get(key)
        ]
        if parts:
            raise IncomparableError(
                f"{first[0]} and {other} cannot stand in one table: they differ in {', '.join(parts)}. Measure them "
                "alike, or show them apart"
            )


def _short(value: object) -> str:
    text = str(value)
    hexadecimal = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if hexadecimal else text
