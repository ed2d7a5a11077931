"""Figures in pages: what stands between two markers is written by a command, so that no figure is typed by hand."""

from collections.abc import Sequence
from pathlib import Path

END = "<!-- figures: end -->"


def start(command: str) -> str:
    """Return the marker after which a command writes."""
    return f"<!-- figures: begin ({command}) -->"


def insert(page: Path, lines: Sequence[str], command: str) -> None:
    """Replace what stands between the markers of a page; the rest of it stays.

    Args:
        page: the file.
        lines: of Markdown; of several empty ones in a row one is kept.
        command: that writes them, as the first marker names it.

    Raises:
        ValueError: if the page does not have each marker once.
    """
    begin, text = start(command), page.read_text()
    if text.count(begin) != 1 or text.count(END) != 1 or text.index(begin) > text.index(END):
        raise ValueError(f"expected in {page} once {begin} and after it once {END}")
    before, after = text[: text.index(begin)], text[text.index(END) :]
    kept = [line for k, line in enumerate(lines) if line or (k and lines[k - 1])]
    page.write_text("\n".join([before + begin, "", *kept, "", after]))
