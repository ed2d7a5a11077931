from pathlib import Path

import pytest
from benchmarks.pages import END, start

from benchmarks import shapes


def test_the_table_has_a_row_for_each_disturbance_and_a_column_for_each_size() -> None:
    head, _, columns, _, *rows = shapes.table([32, 64], 10)
    assert "10 test examples" in head
    assert columns == "| pictures | 32 px | 64 px |"
    assert len(rows) == len(shapes.MORE_DISTURBANCES)
    assert all(row.count("%") >= 2 for row in rows)
    # Ten of ten read rightly: Wilson's interval reaches to z^2 / (n + z^2) = 0.2775.
    assert rows[0] == "| clean | 0.00 % (0.00 to 27.75) | 0.00 % (0.00 to 27.75) |"


def test_the_page_has_room_for_what_is_made() -> None:
    text = shapes.PAGE.read_text()
    assert text.count(start(shapes.COMMAND)) == text.count(END) == 1


def test_examples_are_drawn_and_told_of_in_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "PICTURE", tmp_path / "shapes.png")
    told = [line for line in shapes.examples() if line.startswith("- ")]
    assert (tmp_path / "shapes.png").stat().st_size > 1000
    assert len(told) == 6
    assert all("<br>" in line for line in told)
