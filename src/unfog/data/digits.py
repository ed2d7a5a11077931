"""The 1,797 handwritten digits that come with scikit-learn: 8x8, grey, ten classes; a first set without a download.

Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, doi:10.24432/C50P49.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unfog.data.missing import needs_extra
from unfog.data.source import Encoded, Source, Splits
from unfog.data.split import held_out

NAME = "digits"
TEST_SHARE = 0.2


def splits_of() -> Splits:
    """Return the two splits: of each class the 20 % whose numbers hash lowest are the test part, always the same."""
    return {"train": partial(_source, False), "test": partial(_source, True)}


def _source(test: bool) -> Source:
    with needs_extra("scikit-learn", f"the data set {NAME!r}"):
        from sklearn.datasets import load_digits
    found = load_digits()
    labels = found.target.astype(np.int64)
    chosen = np.flatnonzero(held_out(len(labels), labels, TEST_SHARE) == test)
    levels = np.rint(found.images[chosen] * 255 / 16).astype(np.uint8)  # 0 .. 16 to 0 .. 255
    return Source(
        name=NAME,
        count=len(chosen),
        stream=partial(_stream, levels),
        files=None,
        labels=labels[chosen],
        classes=tuple(str(name) for name in found.target_names),
    )


def _stream(levels: NDArray[np.uint8], ids: NDArray[np.int64]) -> Iterator[Encoded]:
    for i in ids:
        yield Encoded(f"digit {i}", levels[i])
