"""What a run remembers of its data."""

from dataclasses import dataclass

from unfog.data.dataset import Attribute, DataInfo


@dataclass(frozen=True)
class DataCard:
    """Which data a run learned from.

    Attributes:
        name: where they came from.
        fingerprint: SHA-256 of the training examples; empty if it is not known which they were, as
            of published weights.
        count: how many there are; 0 if that is not known.
        shape: of one example, ``(C, H, W)``.
        classes: names of the classes; none without labels.
        attributes: names of the attributes and of their values; none without.
        latent: whether what is diffused are codes of pictures, and the autoencoder is not at hand.
    """

    name: str
    fingerprint: str
    count: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    attributes: tuple[Attribute, ...] = ()
    latent: bool = False

    @staticmethod
    def of(info: DataInfo) -> "DataCard":
        """Return the card of a data set."""
        shape = info.fields["x0"].shape
        return DataCard(info.name, info.fingerprint, info.count, shape, info.classes or (), info.attributes)
