"""A source: pictures that are not decoded yet, with what is known of them before."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfog.data.dataset import Skipped
from unfog.data.image import Content


class Encoded(NamedTuple):
    """One picture as it is stored, and what to call it in a report."""

    name: str
    content: Content


@dataclass(frozen=True)
class Source:
    """The pictures of one split.

    Attributes:
        name: where they come from, for people.
        count: how many there are.
        stream: given ascending numbers in 0 .. count - 1, without those refused, yields these pictures in that order.
        files: the files that decide the pictures; None where they are in memory already, and not worth a cache.
        variant: what else decides them, such as the column of a table.
        labels: ``(count,)`` int64, or None; of no meaning for those refused.
        classes: names of the labels; None without labels.
        captions: a text for each picture, None for those without; None where no picture has one.
        refused: those that are known to be of no use before they are decoded, by number.
        notices: what a reader of the results should know.
    """

    name: str
    count: int
    stream: Callable[[NDArray[np.int64]], Iterator[Encoded]]
    files: tuple[Path, ...] | None
    variant: str = ""
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[str | None, ...] | None = None
    refused: Mapping[int, Skipped] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


Splits = Mapping[str | None, Callable[[], Source]]
"""How to open each split that a place holds; None stands for an undivided set."""
