import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from unfog.cli import fit, main
from unfog.evaluation.fit import FitEffort, fit_steps
from unfog.images import read_png_text
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings

Capture = pytest.CaptureFixture[str]
FIXED = [SampleSettings(DPMSolverPP2M(), grid, 2) for grid in (Trailing(), LogSNRUniform(0.1, 20.0))]
ACCURATE = SampleSettings(DPMSolverPP2M(), Trailing(), 8)


def little_effort(patch: pytest.MonkeyPatch) -> None:
    """Fit samplers with little effort."""
    patch.setattr(fit, "FitEffort", partial(FitEffort, choosing=4, held_out=4, evaluations=400, accurate=ACCURATE))
    patch.setattr(fit, "fixed_tables", lambda default, steps: FIXED)


@pytest.fixture
def own(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run to be written into; samplers are fitted to it with little effort."""
    shutil.copytree(run, here / "own")
    little_effort(monkeypatch)
    return "own"


@pytest.fixture(scope="module")
def fitted_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a sampler for two evaluations, to be read only."""
    folder = tmp_path_factory.mktemp("fitted") / "own"
    shutil.copytree(run, folder)
    with pytest.MonkeyPatch.context() as patch:
        little_effort(patch)
        assert main(["fit-sampler", str(folder), "--steps", "2", "--noises", "4"]) == 0
    return folder


@pytest.fixture
def fitted(fitted_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run with a sampler for two evaluations, to be written into."""
    shutil.copytree(fitted_run, here / "own")
    little_effort(monkeypatch)
    return "own"


def told(path: str) -> dict[str, object]:
    settings = json.loads(read_png_text(Path(path))["unfog"])
    assert isinstance(settings, dict)
    return settings


def test_a_sampler_is_fitted_and_stored_with_its_run(own: str, capsys: Capture) -> None:
    assert main(["fit-sampler", own, "--steps", "2", "--noises", "4", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "own/samplers/fitted-2.json"
    assert "of the distance of DPMSolverPP2M(eta=0) on" in printed.out
    assert "4 held-out noises" in printed.out
    assert "to use it: unfog sample own --sampler fitted --steps 2" in printed.err
    stored = json.loads(Path("own/samplers/fitted-2.json").read_text())
    assert (stored["weights"], stored["step"], stored["guidance"]) == ("ema-0.050", 4, 1.0)
    assert (stored["gain"]["seed"], stored["gain"]["noises"]) == (3, 4)
    assert stored["gain"]["distance"] < stored["gain"]["fixed_distance"]


def test_samples_are_drawn_with_it_and_made_again_from_their_file(fitted: str, capsys: Capture) -> None:
    assert main(["sample", fitted, "-n", "2", "--sampler", "fitted", "--steps", "2", "--out", "first"]) == 0
    assert "(2 evaluations each)" in capsys.readouterr().err
    settings = told("first/000001.png")["settings"]
    assert isinstance(settings, dict)
    assert settings["sampler"]["kind"] == "fitted"
    assert settings["grid"]["kind"] == "given"
    # The file holds the numbers: it needs no stored sampler.
    shutil.rmtree("own/samplers")
    assert main(["sample", fitted, "--from", "first/000001.png", "--out", "again"]) == 0
    with Image.open("first/000001.png") as a, Image.open("again/000001.png") as b:
        # A pixel may be rounded the other way where sums are formed in another order.
        assert all(abs(x - y) <= 1 for x, y in zip(a.tobytes(), b.tobytes(), strict=True))


def test_a_run_that_trained_on_has_to_be_fitted_again(fitted: str, capsys: Capture) -> None:
    assert main(["train", "digits", "--resume", "train.steps=5", "--out", fitted, "--no-report"]) == 0
    assert main(["sample", fitted, "-n", "1", "--sampler", "fitted", "--steps", "2"]) == 2
    words = (
        "fitted to other weights, ema-0.050 of step 4; these are ema-0.050 of step 5: 'unfog fit-sampler own --steps 2'"
    )
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--steps", "3"],
            "own has no sampler fitted for 3 steps at guidance 1, only fitted-2.json; 'unfog fit-sampler",
        ),
        (["--steps", "2", "--guidance", "2"], "no sampler fitted for 2 steps at guidance 2"),
        (["--steps", "2", "--average", "last"], "these are model of step 4"),
        (["--steps", "2", "--grid", "karras"], "--grid=karras means nothing to a fitted sampler"),
        (["--steps", "2", "--eta", "0.5"], "--eta=0.5 means nothing to a fitted sampler"),
        (["--steps", "2", "--bounds", "clip"], "fitted with the bounds None"),
        (["--steps", "2", "--interval", "0.1,5"], "classifier-free guidance alone to sample with a fitted sampler"),
        (["--steps", "2", "--weak-scale", "2"], "got also weak 2.0"),
    ],
)
def test_what_it_was_not_fitted_for_is_refused(fitted: str, arguments: list[str], words: str, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["sample", fitted, "-n", "1", "--sampler", "fitted", *arguments, "--out", "out"]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_scale_of_guidance_has_a_fit_of_its_own(own: str, capsys: Capture) -> None:
    assert main(["fit-sampler", own, "--steps", "2", "--noises", "4", "--guidance", "2"]) == 0
    assert "--sampler fitted --steps 2 --guidance 2" in capsys.readouterr().err
    arguments = ["--sampler", "fitted", "--steps", "2", "--guidance", "2"]
    assert main(["sample", own, "-n", "1", *arguments, "--out", "out"]) == 0
    settings = told("out/000000.png")["settings"]
    assert isinstance(settings, dict)
    assert settings["guidance"] == 2.0


def test_what_is_no_better_is_not_stored(own: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight steps of the accurate sampler itself are among the fixed ones.
    monkeypatch.setattr(fit, "fixed_tables", lambda default, steps: [ACCURATE])
    assert main(["fit-sampler", own, "--steps", "8", "--noises", "4"]) == 0
    printed = capsys.readouterr()
    assert "nothing is stored" in printed.err
    assert "sample with DPMSolverPP2M(eta=0) on Trailing, 8 steps" in printed.err
    assert not Path("own/samplers").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--steps", "2"], "there is no folder nowhere"),
        (["own", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["own", "--steps", "2", "--noises", "0"], "noises of at least 1, got 0"),
        (["own", "--steps", "2", "--average", "0.2"], "one of the averages"),
        (["own", "--steps", "7", "--noises", "4"], "a fixed table of 7 evaluations to begin from, got none"),
        (["own"], "--steps"),
    ],
)
def test_what_cannot_be_fitted_is_refused(own: str, arguments: list[str], words: str, capsys: Capture) -> None:
    assert main(["fit-sampler", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_run_is_measured_with_it(
    fitted: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, little_measure: Callable[..., object]
) -> None:
    monkeypatch.setattr("unfog.cli.evaluate.measure", little_measure)
    assert main(["evaluate", fitted, "--samples", "20", "--sampler", "fitted", "--steps", "2"]) == 0
    numbers = json.loads(Path("own/evaluation.json").read_text())
    assert numbers["evaluations"] == 2
    assert numbers["settings"].startswith("Fitted(schedule=Cosine, stages=(2 values")


@pytest.fixture
def little_measure() -> Callable[..., object]:
    from unfog.evaluation.classifier import Budget
    from unfog.evaluation.features import FeatureConfig
    from unfog.evaluation.measure import Effort, measure

    budget = Budget(steps=2, epochs=1, batch_size=8, width=2)
    return partial(measure, effort=Effort(FeatureConfig(budget=budget), budget, resamples=20, loss_examples=8))


def test_the_python_call_stores_and_finds_it(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import unfog
    from unfog import api

    effort = FitEffort(4, 4, 4, evaluations=400, accurate=ACCURATE)
    monkeypatch.setattr(api, "fit_steps", partial(fit_steps, effort=effort))
    monkeypatch.setattr(api, "fixed_tables", lambda default, steps: FIXED)
    found = unfog.fit_sampler(own, steps=2)
    assert found.kept
    assert unfog.fitted(own, steps=2) == found.settings
    request = unfog.SampleRequest(2, [1, 2], settings=unfog.fitted(own, steps=2))
    assert unfog.load(own).sample(request).x.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="no sampler fitted for 3 steps"):
        unfog.fitted(own, steps=3)
