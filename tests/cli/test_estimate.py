import json
from pathlib import Path
from typing import Any

import pytest

from unfog.cli import main
from unfog.recipe.run import Run

Capture = pytest.CaptureFixture[str]


def estimate(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["estimate", *arguments, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_recipe_is_estimated_from_a_probe(here: Path, tiny: list[str], capsys: Capture) -> None:
    told = estimate(capsys, "digits", *tiny, "--probe", "1", "--batch", "1", "--batch", "1000")
    probe = told["probe"]
    # Four steps of eight examples, as long as the median one.
    assert probe["time"]["median"] == pytest.approx(4 * probe["step"]["median"] * 8 / probe["batch"])
    small, large = told["micro_batches"]["1"], told["micro_batches"]["1000"]
    line = probe["activations"]
    assert large - small == pytest.approx(
        line["fixed"] + 1000 * line["per_sample"] - max(line["floor"], line["fixed"] + line["per_sample"]), abs=2
    )
    assert probe["largest_micro_batch"] > 1000
    assert 0 < probe["share"] < 1.5
    assert set(told["measured"]) & set(told["computed"]) == set()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "0.2"])
def test_of_a_classifier_training_alone_is_estimated(seconds: str, tiny: list[str], capsys: Capture) -> None:
    arguments = ["mnist-classifier", *tiny, "data.path=digits", "data.size=8"]
    assert main(["estimate", *(s for s in arguments if "middle" not in s), "--probe", seconds]) == 0
    told = capsys.readouterr().out
    assert "sampling 64 pictures" not in told
    assert "nothing is sampled: a classifier of noisy data guides another model" in told
    assert ("4 such steps" in told) == (seconds != "0")


def test_without_a_probe_only_what_can_be_computed_is_told(tiny: list[str], capsys: Capture) -> None:
    told = estimate(capsys, "digits", *tiny, "--probe", "0")
    assert told["probe"] is None
    assert told["micro_batches"] == {}
    assert told["parameters"] == sum(part["parameters"] for part in told["parts"])


def test_a_run_is_estimated_by_its_own_recipe(run: Path, capsys: Capture) -> None:
    told = estimate(capsys, str(run), "--probe", "0")
    assert told["recipe"] == Run.open(run).recipe.name
    assert told["data"].endswith("examples of 1x8x8")
    weights = Run.open(run).weights().tensors
    assert told["parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_tables_say_what_is_measured_and_what_computed(tiny: list[str], capsys: Capture) -> None:
    assert main(["estimate", "digits", *tiny, "--probe", "0.5"]) == 0
    told = capsys.readouterr().out
    for words in ("weights", "gradients", "optimiser state", "ema-0.050", "computed", "measured", "extrapolated"):
        assert words in told
    for words in ("largest micro-batch", "checkpoint on disk", "sampling 64 pictures", "share of the matrix rate"):
        assert words in told


def test_noise_stands_in_for_data_that_are_not_there_and_this_is_told(
    here: Path, tiny: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNFOG_DATA", str(here))
    told = estimate(capsys, "mnist", *(s for s in tiny if not s.startswith("data")), "--probe", "0.2")
    assert told["data"] == "noise, 512 examples of 1x28x28"
    assert told["notes"][-1].startswith("the data cannot be opened, so noise of their shape stands in for them: ")
    assert told["probe"]["batch"] >= 4


def test_previews_take_time(tiny: list[str], capsys: Capture) -> None:
    told = estimate(capsys, "digits", *tiny, "save.preview_every=1", "--probe", "0.5")["probe"]
    pictures = 4 * 40 / 64  # four previews of forty samples
    expected = 4 * told["step"]["median"] * 8 / told["batch"] + pictures * told["sampling_seconds"]
    assert told["time"]["median"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "-1"], "--probe: expected seconds"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--probe", "0", "--batch", "4"], "--batch needs a measurement"),
        (["data.path=nowhere", "data.size=null", "--probe", "0"], "the recipe does not say their size"),
        (["network.dpth=3"], "network.dpth"),
    ],
)
def test_wrong_options_are_refused(capsys: Capture, arguments: list[str], message: str) -> None:
    assert main(["estimate", "digits", *arguments]) == 2
    assert message in capsys.readouterr().err
