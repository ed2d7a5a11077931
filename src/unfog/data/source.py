"""A source: pictures that are not decoded yet, with what is known of them before."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
        stream: given ascending numbers in 0 .. count - 1, yields these pictures in that order.
        files: the files that decide the pictures; None where they are in memory already, and not worth a cache.
        variant: what else decides them, such as the column of a table.
        labels: ``(count,)`` int64, or None.
        classes: names of the labels; None without labels.
        notices: what a reader of the results should know.
    """

    name: str
    count: int
    stream: Callable[[NDArray[np.int64]], Iterator[Encoded]]
    files: tuple[Path, ...] | None
    variant: str = ""
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()


Splits = Mapping[str | None, Callable[[], Source]]
"""How to open each split that a place holds; None stands for an undivided set."""
