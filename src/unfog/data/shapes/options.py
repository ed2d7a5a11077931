"""The name of a set of shapes, and the options in it: ``shapes``, ``shapes:objects=1-2,train=20000``."""

import difflib
import re
from dataclasses import dataclass

from unfog.data.shapes.scene import MOST

NAME = "shapes"
_PREFIX = f"{NAME}:"
_KNOWN = ("objects", "train", "test", "seed")


@dataclass(frozen=True)
class ShapesOptions:
    """Which set of shapes.

    Attributes:
        objects: fewest and most objects of a scene, 1 to 4; each number is as frequent as the others.
        train: training examples.
        test: test examples; they share no scene with the training examples.
        seed: another seed is another set.

    Raises:
        ValueError: if a value is out of its range.
    """

    objects: tuple[int, int] = (1, 3)
    train: int = 50_000
    test: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        fewest, most = self.objects
        if not 1 <= fewest <= most <= MOST:
            raise ValueError(f"{NAME}: objects must be a number or range within 1-{MOST}, but is {fewest}-{most}")
        for name in ("train", "test"):
            if not 1 <= getattr(self, name) < 2**32:
                raise ValueError(f"{NAME}: {name} must be in 1 .. 2**32 - 1, but is {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"{NAME}: seed must be in 0 .. 2**63 - 1, but is {self.seed}")

    @property
    def name(self) -> str:
        """The shortest name of the set."""
        usual = ShapesOptions()
        told = [f"{key}={self._text(key)}" for key in _KNOWN if getattr(self, key) != getattr(usual, key)]
        return _PREFIX + ",".join(told) if told else NAME

    def _text(self, key: str) -> str:
        fewest, most = self.objects
        return f"{fewest}-{most}" if key == "objects" else str(getattr(self, key))


def is_shapes(path: str) -> bool:
    """Tell whether the path of a data set names a set of shapes."""
    return path == NAME or path.startswith(_PREFIX)


def read_options(path: str) -> ShapesOptions:
    """Return the options that a name holds.

    Args:
        path: ``shapes``, or ``shapes:`` followed by ``option=value`` with commas between; ``objects`` is a number or a
            range such as ``1-2``, the others are whole numbers.

    Raises:
        ValueError: if an option is unknown, repeated or out of its range.
    """
    values: dict[str, tuple[int, int] | int] = {}
    for item in path[len(_PREFIX) :].split(",") if path != NAME else []:
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path!r}: {key!r} is no option of {NAME}, which are {', '.join(_KNOWN)}{meant}")
        if key in values:
            raise ValueError(f"{path!r} gives {key} twice")
        found = re.fullmatch(r"(\d+)-(\d+)|(\d+)" if key == "objects" else r"()()(\d+)", text)
        if found is None:
            example = "such as 2 or 1-3" if key == "objects" else "such as 1000"
            raise ValueError(f"{path!r}: {key} must be a whole number {example}, but is {text!r}")
        low, high, single = found.groups()
        number = int(single) if single else 0
        values[key] = number if key != "objects" else (int(low), int(high)) if low else (number, number)
    return ShapesOptions(**values)  # type: ignore[arg-type]
