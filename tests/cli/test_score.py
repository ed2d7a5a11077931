import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pictures(here: Path) -> None:
    """Two folders of noise, of the size of the digits."""
    for seed, name in enumerate(("dark", "light")):
        (here / name).mkdir()
        for k in range(45):
            pixels = np.random.default_rng(100 * seed + k).integers(60 * seed, 120 + 60 * seed, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(here / name / f"{k:03}.png")


def score(*arguments: str) -> int:
    return main(["score", *arguments])


def test_a_folder_is_scored_against_another_one(capsys: Capture) -> None:
    assert score("dark", "--against", "light", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    # Half of the reference trains the features, and a tenth of it is compared with: too few for distances.
    assert found["card"]["count"] == 45
    assert found["card"]["pictures"] == "1 x 8 x 8"
    assert "reason" in found["scores"]["frechet"]


def test_sets_of_different_counts_do_not_get_into_one_table(here: Path, capsys: Capture) -> None:
    for file in sorted((here / "light").iterdir())[:5]:
        file.rename(here / "light" / f"{file.name}.away")
    assert score("dark", "light", "--against", "dark") == 2
    told = capsys.readouterr().err
    assert "dark and light cannot stand in one table: they differ in the number of samples (45; 40)" in told
    assert score("dark", "light", "--against", "dark", "--count", "40") == 0
    printed = capsys.readouterr().out
    assert "metric card: feature network: unfog-features-dark" in printed


def test_samples_of_a_run_are_drawn_and_scored(run: Path, capsys: Capture) -> None:
    assert score(str(run), "--against", "dark", "--count", "6", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["card"]["count"] == 6


def test_the_grid_beside_samples_is_no_sample(here: Path, capsys: Capture) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(here / "dark" / "grid.png")
    assert score("dark", "--against", "light", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["card"]["count"] == 45


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dark", "--against", "light", "--features", "fid"], "expected one of own, inception"),
        (["dark", "--against", "nowhere"], "no data set 'nowhere'"),
        (["dark", "--against", "light", "--weights", "w.pth"], "weights for published features only"),
        (["dark", "--against", "light", "--features", "inception", "--weights", "w.pth"], "there is no file w.pth"),
        (["dark", "--against", "light", "--count", "0"], "a count of 1 to 45"),
        (["--against", "light"], "IMAGES requires an argument"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(arguments: list[str], words: str, capsys: Capture) -> None:
    assert score(*arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert words in told[-1]


def test_a_run_is_refused_published_features_without_weights(run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run), "--features", "clip", "--weights", "nowhere"]) == 2
    assert "config.json" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--weights", "nowhere"]) == 2
    assert "--weights goes with published features" in capsys.readouterr().err
