import functools
import re
import runpy
from pathlib import Path

import pytest

import unfog

ROOT = Path(__file__).parent.parent
TINY = ("train.steps=2", "train.batch_size=4", "network.widths=[32]", "network.blocks=[0]", "network.attention=[]")


def test_the_python_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    # Trained for two steps only; everything else is what the reader types.
    monkeypatch.setattr(unfog, "train", functools.partial(unfog.train, overrides=TINY), raising=False)
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 40
    assert capsys.readouterr().out.splitlines()[-1].startswith("100%")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    # Formulas and code have brackets of their own.
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


# The page of orders names other libraries' functions too.
DERIVED = [page for page in sorted((ROOT / "docs" / "mathematics").glob("*.md")) if page.name != "orders.md"]


@pytest.mark.parametrize("page", DERIVED, ids=lambda page: page.name)
def test_what_the_mathematics_names_is_in_the_source(page: Path) -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "unfog").rglob("*.py"))
    words = set(re.findall(r"\w+", source))
    prose = re.sub(
        r"^```.*?^```|<!-- figures: begin.*?figures: end -->",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    # Names of functions and classes, with their module or some of their arguments; no commands and no numbers.
    names = re.findall(r"`([A-Za-z_][\w.-]*)(?:\([^`]*\))?`", prose)
    missing = [name for name in names if not set(re.findall(r"\w+", name.replace("-", "_"))) <= words]
    assert missing == []


@pytest.mark.parametrize("page", DERIVED, ids=lambda page: page.name)
def test_formulas_in_a_line_are_such_that_markdown_leaves_them_alone(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    # A formula that goes over the end of a line, or has a backslash before punctuation, is shown as something else.
    assert [line for line in prose.splitlines() if line.count("$") % 2] == []
    assert [formula for formula in re.findall(r"\$([^$\n]+)\$", prose) if re.search(r"\\[,;:!{}|]", formula)] == []


def test_the_readme_and_the_mathematics_lead_to_other_pages() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "mathematics" / "README.md"):
        assert len(re.findall(r"\]\([^):]+\.md\)", page.read_text(encoding="utf-8"))) > 4, page


def test_the_exact_example_shows_errors_that_fall(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "exact_denoiser.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        errors = [float(word) for word in line.split()[1:]]
        assert errors == sorted(errors, reverse=True)
