"""Draws the figures of docs/mathematics and renders what their pages and docs/choosing-a-sampler.md tell in numbers."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.figures import choosing, errors, estimates, flow, forward, information, predictions
from benchmarks.figures.detail import Detail, Lines
from benchmarks.pages import insert

ROOT = Path(__file__).parents[2]
COMMAND = "make figures"
PAGES: Mapping[str, Callable[[Path, Detail], Lines]] = {
    "forward.md": forward.draw,
    "parameterizations.md": predictions.draw,
    "bound.md": information.draw,
    "score.md": estimates.draw,
    "ode.md": flow.draw,
    "solvers.md": errors.draw,
}
"""What draws the figures of each page, and returns the lines between its markers: none for a page without."""


def render(docs: Path, detail: Detail, only: str | None = None) -> list[str]:
    """Draw the figures and render the pages.

    Args:
        docs: the folder of the documentation.
        detail: how finely.
        only: a page; all unless given.

    Returns:
        The pages that were rendered.
    """
    done = []
    for page, draw in PAGES.items():
        if only in (None, page):
            lines = draw(docs / "mathematics" / "figures", detail)
            if lines:
                insert(docs / "mathematics" / page, lines, COMMAND)
            done.append(page)
    if only in (None, choosing.PAGE):
        choosing.render(docs, COMMAND)
        done.append(choosing.PAGE)
    return done


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*PAGES, choosing.PAGE], help="one page; all unless given")
    for page in render(ROOT / "docs", Detail(), parser.parse_args().only):
        print(page)


if __name__ == "__main__":
    main()
