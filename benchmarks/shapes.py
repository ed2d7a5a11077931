"""Measures what the reading of the set ``shapes`` gets wrong, and shows examples; writes docs/guides/shapes.md.

``python -m benchmarks.shapes``: a few minutes on one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.pages import insert
from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.options import ShapesOptions
from unfog.evaluation.adherence import MORE_DISTURBANCES, reading_error
from unfog.images import png_bytes, tile
from unfog.metrics.interval import Score

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "shapes.md"
PICTURE = ROOT / "docs" / "images" / "shapes.png"
COMMAND = "python -m benchmarks.shapes"
SIDES = (32, 64, 128)
_OPTIONS = ShapesOptions(objects=(1, 4))
_SHOWN, _SHOWN_SIDE, _COLUMNS = 24, 64, 8
_TOLD = 6


def table(sides: Sequence[int], count: int) -> list[str]:
    """Return the error of the reading as Markdown: a row for each disturbance, a column for each size.

    Args:
        sides: of the pictures, in pixels.
        count: how many test examples are read for each.
    """
    columns = [
        reading_error(ShapesDataset(_OPTIONS, "test", side), count=count, seed=0, disturbances=MORE_DISTURBANCES)
        for side in sides
    ]
    rows = [f"| {what} | " + " | ".join(_told(column[what]) for column in columns) + " |" for what in columns[0]]
    return [
        f"Share of {count:,} test examples of `{_OPTIONS.name}` of which not all eleven attributes are read rightly, "
        "with 95 % Wilson intervals:",
        "",
        "| pictures | " + " | ".join(f"{side} px" for side in sides) + " |",
        "|---|" + "---:|" * len(sides),
        *rows,
    ]


def _told(score: Score) -> str:
    return f"{100 * score.value:.2f} % ({100 * score.low:.2f} to {100 * score.high:.2f})"


def examples() -> list[str]:
    """Draw the picture of the page, and return captions of its first examples as Markdown."""
    dataset = ShapesDataset(_OPTIONS, "test", _SHOWN_SIDE)
    ids = torch.arange(_SHOWN)
    PICTURE.write_bytes(png_bytes(tile(dataset.gather(ids)["x0"], _COLUMNS), optimize=True))
    first = [dataset.captions(ids[:_TOLD], paraphrase) for paraphrase in (0, 1)]
    return [
        f"![examples](../images/{PICTURE.name})",
        "",
        "Captions of the first of them, and the same in other words:",
        "",
        *(f"- {one}<br>*{other}*" for one, other in zip(*first, strict=True)),
    ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="test examples read for each number")
    insert(PAGE, [*examples(), "", *table(SIDES, parser.parse_args().count)], COMMAND)


if __name__ == "__main__":
    main()
