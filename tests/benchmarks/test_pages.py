from pathlib import Path

import pytest
from benchmarks.pages import END, insert, start

BEGIN = start("make it")


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, ["new"], "make it")
    insert(page, ["newer"], "make it")
    assert page.read_text() == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{start('other')}{END}"])
def test_a_page_without_its_markers_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="expected in"):
        insert(page, ["figures"], "make it")
    assert page.read_text() == text
