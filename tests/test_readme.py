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


def test_every_recipe_and_file_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_exact_example_shows_errors_that_fall(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "exact_denoiser.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines:
        errors = [float(word) for word in line.split()[1:]]
        assert errors == sorted(errors, reverse=True)
