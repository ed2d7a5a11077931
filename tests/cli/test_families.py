import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli import families, main
from unfog.evaluation.features import feature_extractor
from unfog.recipe.data import open_data
from unfog.recipe.schema import DataConfig
from unfog.recipes import RECIPES

Capture = pytest.CaptureFixture[str]
TINY = [
    *("network.widths=[32]", "network.blocks=[0]", "network.attention=[]", "network.middle_attention=false"),
    *("train.batch_size=8", "data.limit=60"),
]


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small classifiers, and a clock that is done after few steps."""
    from dataclasses import replace
    from functools import partial

    from unfog.evaluation.classifier import Budget
    from unfog.evaluation.features import FeatureConfig
    from unfog.evaluation.race import RaceEffort, race

    budget = Budget(steps=4, batch_size=12, width=1)
    features = partial(feature_extractor, config=FeatureConfig(budget=budget))
    monkeypatch.setattr(families, "feature_extractor", features)

    def short(contender, train, test, extractor, effort: RaceEffort, **rest):
        ticks = iter(range(1000))
        less = replace(effort, resamples=20, budget=budget, marks=(0.5, 1.0))
        return race(contender, train, test, extractor, less, clock=lambda: float(next(ticks)), **rest)

    monkeypatch.setattr(families, "race", short)


def test_four_families_are_compared(cheap: None, here: Path, capsys: Capture) -> None:
    arguments = ["families", "digits", *TINY, "--minutes", "0.08", "--samples", "20", "--likelihood", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    folder = here / "runs" / "families-digits"
    records = json.loads((folder / "families.json").read_text())["records"]
    assert [record["family"] for record in records] == ["diffusion", "gan", "vae", "flow"]
    assert [record["steps"] for record in records] == [4, 4, 4, 4]
    sizes = [record["parameters"] for record in records]
    assert max(sizes) < 1.3 * min(sizes)  # of so small networks a step of the width is a large one
    assert len({record["data"]["fingerprint"] for record in records}) == 1
    assert ["reason" in record["bits"] for record in records] == [False, True, False, False]
    assert {path.name for path in folder.iterdir()} == {
        *("families.json", "families.png"),
        *(f"{name}-seed-0.png" for name in ("diffusion", "gan", "vae", "flow")),
    }
    for told in ("diffusion", "gan", "vae", "flow", "real images", "bits per dimension", "Equal for all: 4.8 s"):
        assert told in printed


def test_models_without_classes_are_compared_without(cheap: None, here: Path) -> None:
    arguments = ["families", "digits", *TINY, "condition.classes=false", "--minutes", "0.05", "--samples", "20"]
    assert main([*arguments, "--families", "vae", "--likelihood", "0", "--seeds", "3,4", "--out", "out"]) == 0
    records = json.loads(Path("out/families.json").read_text())["records"]
    assert [record["seed"] for record in records] == [3, 4]
    assert "without" in records[0]["accuracy"]["reason"]
    assert records[0]["bits"]["reason"] == "none was asked for"


@pytest.mark.parametrize(("data", "recipe"), [("mnist", "mnist-small"), ("cifar10", "cifar10-small")])
def test_the_recipe_that_suits_the_time_takes_part(
    data: str, recipe: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The data's name is also that of a larger recipe, for accelerators.
    monkeypatch.setattr(
        families, "open_data", lambda config, labelled: open_data(DataConfig("digits"), labelled=labelled)
    )
    assert data in RECIPES
    assert families.Race.of(data, ()).recipe.name == recipe


def test_of_pictures_that_no_recipe_names_the_size_can_be_told(here: Path) -> None:
    (here / "pictures").mkdir()
    for k in range(20):
        Image.fromarray(np.full((12, 12), 10 * k, np.uint8)).save(here / "pictures" / f"{k}.png")
    course = families.Race.of("pictures", ["data.size=8", "data.channels=1", "condition.classes=false"])
    assert course.card.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["digits", "--families", "gan,rnn"], "expected some of diffusion, gan, vae, flow, got rnn"),
        (["digits", "--seeds", "x"], "--seeds: expected whole numbers"),
        (["digits", "--minutes", "0"], "--minutes: expected above 0, got 0"),
        (["digits", "--samples", "0"], "--samples: expected at least 1, got 0"),
        (["digits", "--likelihood", "1"], "--likelihood: expected 0, or at least 2, got 1"),
        (["digits", "data.size=9"], "can be halved"),
        (["digits", "train.steps=9"], "train.steps would be ignored: a training is as long as its time, --minutes"),
        (["digits", "save.keep=2"], "save.keep would be ignored: a race keeps no checkpoints"),
        (["digits", "sample.guidance=2"], "sample.guidance would be ignored"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    arguments: list[str], told: str, capsys: Capture
) -> None:
    assert main(["families", *arguments]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert len(printed.err.splitlines()) == 1
