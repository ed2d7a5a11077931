"""The gate that every picture passes before training: what cannot be read is skipped, counted and named.

Training (``cache.materialize``) and ``unfog data check`` send their pictures through the same ``passed``, and judge
what came out by the same ``require_readable`` and ``require_few_bad``: what one of them refuses, the other does.

Pictures are decoded in threads: Pillow lets other threads run while it decodes and resamples, which is nine tenths of
the time that a photograph takes (512x384 JPEG to 64x64), and no pixels have to be sent from one process to another. Of
pictures as small as MNIST's it is a fifth, but these take less than a tenth of a millisecond each.
"""

import math
import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unfog.data.dataset import Report, Skipped, printable
from unfog.data.image import EXTENSIONS, FORMATS, Look, Size
from unfog.data.source import Encoded, Source

MAX_BAD = 0.01
"""Share of the pictures that may be bad unless it is declared otherwise."""

_WORKERS = min(16, os.cpu_count() or 1)
_TASK = 16  # pictures handed to a thread at a time: small ones decode in less than it takes to hand them over
_LISTED = 20

T = TypeVar("T")


class Passed(NamedTuple, Generic[T]):
    """What became of one picture: its number in the source, its name, and what was made of it or why not."""

    number: int
    name: str
    result: T | Skipped


def passed(source: Source, ids: NDArray[np.int64], work: Callable[[Encoded], T]) -> Iterator[Passed[T]]:
    """Do something with pictures of a source, in parallel, and yield the results in order.

    Args:
        source: where they come from.
        ids: ascending numbers of the pictures.
        work: what to do with each. What it raises, save for want of memory, makes the picture a skipped one.
    """
    items = _items(source, ids)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="decode") as pool, _strict_pillow():
        ahead: deque[Future[list[Passed[T]]]] = deque()
        try:
            while True:
                while len(ahead) < 2 * _WORKERS and (task := list(islice(items, _TASK))):
                    ahead.append(pool.submit(_worked, task, work))
                if not ahead:
                    return
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _items(source: Source, ids: NDArray[np.int64]) -> Iterator[tuple[int, Encoded | Skipped]]:
    numbers = [int(i) for i in ids]
    stream = source.stream(np.array([i for i in numbers if i not in source.refused], dtype=np.int64))
    for number in numbers:
        item = source.refused.get(number) or next(stream, None)
        if item is None:
            raise ValueError(f"{source.name} ended before its picture {number}: has it changed meanwhile?")
        yield number, item


def _worked(task: list[tuple[int, Encoded | Skipped]], work: Callable[[Encoded], T]) -> list[Passed[T]]:
    return [
        Passed(number, item.name, item if isinstance(item, Skipped) else _tried(item, work)) for number, item in task
    ]


def _tried(item: Encoded, work: Callable[[Encoded], T]) -> T | Skipped:
    try:
        return work(item)
    except MemoryError:
        raise
    # On a broken file Pillow raises OSError, SyntaxError, ValueError, struct.error, and what else its readers meet.
    except Exception as error:
        return Skipped(item.name, _reason(error, item))


def _reason(error: Exception, item: Encoded) -> str:
    """Say why a picture could not be read, in the same words on every run and machine."""
    match error:
        case UnidentifiedImageError():
            return f"it is none of {', '.join(FORMATS)}, whatever its name says"
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return f"it is too large ({error}): resize it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        case FileNotFoundError() if isinstance(item.content, Path):
            link = item.content.is_symlink()
            return f"it is a link to nothing ({item.content.readlink()})" if link else "there is no such file"
        case PermissionError():
            return "its permissions do not let it be read"
        case ValueError():
            return str(error)
    return f"{type(error).__name__}: {error}"


class _Strictness:
    """How many passes are under way, and what restores the filters after the last."""

    lock = threading.Lock()
    passes = 0
    filters: "warnings.catch_warnings[None] | None" = None


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Make Pillow refuse what may be a decompression bomb, and keep quiet of what it can read all the same.

    Otherwise it would depend on the program's own warning filters which pictures are read. The filters are those of
    the whole process, so that passes in several threads share one change to them.
    """
    with _Strictness.lock:
        if not _Strictness.passes:
            _Strictness.filters = warnings.catch_warnings()
            _Strictness.filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _Strictness.passes += 1
    try:
        yield
    finally:
        with _Strictness.lock:
            _Strictness.passes -= 1
            if not _Strictness.passes and _Strictness.filters is not None:
                _Strictness.filters.__exit__(None, None, None)


@dataclass
class Extents:
    """The sizes and channels that pictures have, gathered one by one, to settle those of the set."""

    sizes: dict[Size, tuple[int, str]] = field(default_factory=dict)
    channels: set[int] = field(default_factory=set)

    def add(self, name: str, look: Look) -> None:
        """Count a picture."""
        count, example = self.sizes.get(look.size, (0, name))
        self.sizes[look.size] = (count + 1, example)
        self.channels.add(look.channels)

    def settle(self, name: str, size: Size | None, channels: int | None) -> tuple[Size, int]:
        """Return the size and channels of a set: those given, or those of its pictures.

        Raises:
            ValueError: if the sizes differ and none is given.
        """
        if size is None and len(self.sizes) > 1:
            raise ValueError(self._differing(name))
        # Without one readable header, anything will do: decoding finds out, picture by picture, what is wrong.
        return size or next(iter(self.sizes), (1, 1)), channels or max(self.channels, default=1)

    def _differing(self, name: str) -> str:
        common = sorted(self.sizes.items(), key=lambda entry: -entry[1][0])
        found = ", ".join(f"{h}x{w} ({count}, such as {printable(like)})" for (h, w), (count, like) in common[:4])
        more = f", and {len(common) - 4} more" if len(common) > 4 else ""
        return (
            f"the pictures of {name} differ in size, height x width: {found}{more}. "
            "Give a size, such as size=64: the largest centred square of each is then resized to 64x64"
        )


def require_readable(name: str, report: Report) -> None:
    """Refuse a set of which nothing can be read.

    Raises:
        ValueError: lists what was found and what is accepted.
    """
    if len(report.skipped) < report.found:
        return
    kinds = counted(Path(skipped.name).suffix.lower() or "without extension" for skipped in report.skipped)
    raise ValueError(f"no picture of {name} could be read; found: {kinds}:\n{_listing(report.skipped)}\n{accepted()}")


def require_few_bad(name: str, report: Report, max_bad: float, path: str) -> None:
    """Refuse a set of which too many pictures cannot be read.

    Args:
        name: of the set, for people.
        report: what became of its pictures.
        max_bad: share of the pictures that may be bad, 0 to 1.
        path: where the set is, to say how to see all that is bad.

    Raises:
        ValueError: lists the first bad pictures and says how to go on.
    """
    if report.share <= max_bad:
        return
    enough = math.ceil(report.share * 100) / 100
    raise ValueError(
        f"{len(report.skipped)} of the {report.found} pictures of {name} could not be read, a share of "
        f"{report.share:.3g}, where max_bad allows {max_bad:g}:\n{_listing(report.skipped)}\n"
        f"repair or remove them, or leave them out by max_bad={enough:g} (data.max_bad={enough:g} in a recipe); "
        f"to see them all: unfog data check {printable(path)}"
    )


def _listing(skipped: Sequence[Skipped]) -> str:
    more = [f"  and {len(skipped) - _LISTED} more"] if len(skipped) > _LISTED else []
    return "\n".join([*(f"  {one}" for one in skipped[:_LISTED]), *more])


def accepted() -> str:
    """Say what data sets may be made of."""
    pictures = " ".join(sorted(EXTENSIONS))
    return f"accepted are pictures ({pictures}), tables (.parquet), arrays (.npy .npz) and WebDataset shards (.tar)"


def counted(kinds: Iterable[str]) -> str:
    """Return how many there are of each kind, the most frequent first."""
    counts = sorted(Counter(kinds).items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count} {printable(kind)}" for kind, count in counts) or "nothing"


FACTS = np.dtype(
    [("height", "<i4"), ("width", "<i4"), ("channels", "<i4"), ("several", "?"), ("profile", "?"), ("floats", "?")]
)
"""What is kept of a ``Look`` beside the pixels."""


def facts(look: Look) -> tuple[int, int, int, bool, bool, bool]:
    """Return a row of ``FACTS``."""
    return (*look.size, look.channels, look.several, look.profile, look.mode == "F")


def notices(found: NDArray[np.void], size: Size, ranged: bool) -> tuple[str, ...]:
    """Say what decoding did to pictures that their owner may not expect.

    Args:
        found: ``(N,)`` of dtype ``FACTS``, the pictures that were read.
        size: height and width that they were brought to.
        ranged: whether a range was declared for floats.
    """
    several, profiles = int(found["several"].sum()), int(found["profile"].sum())
    enlarged = int(((found["height"] < size[0]) | (found["width"] < size[1])).sum())
    of = f"of {len(found)} pictures"
    told = []
    if several:
        told.append(f"{several} {of} have several frames (animations, pages): the first of each is taken")
    if profiles:
        told.append(f"{profiles} {of} have a colour profile, which is ignored")
    if enlarged:
        told.append(f"{enlarged} {of} are smaller than {size[0]}x{size[1]} and are enlarged")
    if ranged and not found["floats"].any():
        told.append("value_range has no effect: no picture holds floats")
    return tuple(told)
