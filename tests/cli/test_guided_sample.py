"""What ``unfog sample`` is told of conditions and guidance, from the command line to the record in the file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unfog.cli import main
from unfog.images import read_png_text

Capture = pytest.CaptureFixture[str]
TINY = ["train.steps=2", "train.batch_size=8", "save.checkpoint_every=2", "save.log_every=1"]


def told(path: Path) -> dict[str, object]:
    settings = json.loads(read_png_text(path)["unfog"])
    assert isinstance(settings, dict)
    return settings


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows attributes."""
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    small = ["network.dim=16", "network.depth=1", "network.heads=2"]
    data = ["data.path=shapes:train=40,test=20"]
    assert main(["train", "shapes-small", *TINY, *small, *data, "--out", str(folder), "--no-report"]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of noisy digits."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    sizes = ["network.widths=[32]", "network.blocks=[0]", "network.attention=[]", "data.path=digits", "data.size=8"]
    like_digits = ["schedule=cosine", "parameterization=v", "times={kind: stratified, density: uniform}"]
    arguments = [*TINY, *sizes, *like_digits, "data.limit=40"]
    assert main(["train", "mnist-classifier", *arguments, "--out", str(folder), "--no-report"]) == 0
    return folder


def test_attributes_are_told_by_name_and_kept_in_the_file(shapes: Path, capsys: Capture) -> None:
    given = ["--attribute", "colour 1=red", "--attribute", "count=1", "--guidance", "2"]
    negative = ["--negative", "{attributes: {colour 1: blue}}"]
    also = ["--also", "{attributes: {shape 1: circle}, scale: 1.5, region: [0, 0, 0.5, 1]}"]
    assert main(["sample", str(shapes), "-n", "2", "--steps", "2", *given, *negative, *also, "--out", "first"]) == 0
    record = told(Path("first/000001.png"))
    assert record["attributes"] is not None
    assert record["negative"] is not None
    assert record["also"] == [{**record["also"][0], "scale": 1.5, "region": [0.0, 0.0, 0.5, 1.0]}]  # type: ignore[index]
    assert main(["sample", str(shapes), "--from", "first/000001.png", "--out", "again"]) == 0
    assert told(Path("again/000001.png")) == record
    first, again = pixels(Path("first/000001.png")), pixels(Path("again/000001.png"))
    # A pixel may be rounded the other way where sums are formed in another order.
    assert all(abs(a - b) <= 1 for a, b in zip(first, again, strict=True))


def test_a_wrong_attribute_is_one_line_and_status_2(shapes: Path, capsys: Capture) -> None:
    assert main(["sample", str(shapes), "--attribute", "colour 1=rad"]) == 2
    assert "did you mean red?" in capsys.readouterr().err


def test_attributes_are_refused_by_a_run_without(run: Path, capsys: Capture) -> None:
    assert main(["sample", str(run), "--attribute", "colour=red"]) == 2
    assert "trained without attributes" in capsys.readouterr().err


def test_a_classifier_guides_and_is_named_in_the_file(run: Path, classifier: Path, capsys: Capture) -> None:
    common = ["sample", str(run), "-n", "2", "--steps", "2", "--label", "3"]
    guided = ["--classifier", str(classifier), "--classifier-scale", "2"]
    assert main([*common, *guided, "--out", "guided"]) == 0
    origin = told(Path("guided/000000.png"))["origin"]
    assert isinstance(origin, dict)
    assert origin["classifier"]["run"] == "classifier"
    assert main(["sample", str(run), "--from", "guided/000001.png", "--out", "without"]) == 2
    assert "give that run as --classifier" in capsys.readouterr().err
    again = ["--classifier", str(classifier), "--out", "again"]
    assert main(["sample", str(run), "--from", "guided/000001.png", *again]) == 0
    assert told(Path("again/000001.png")) == told(Path("guided/000001.png"))


def test_a_scale_without_its_model_is_refused(run: Path, capsys: Capture) -> None:
    assert main(["sample", str(run), "--label", "3", "--classifier-scale", "2"]) == 2
    assert "a classifier of noisy data" in capsys.readouterr().err
    assert main(["sample", str(run), "--label", "3", "--weak-scale", "2"]) == 2
    assert "a weaker model" in capsys.readouterr().err


def test_a_model_to_guide_by_without_its_scale_is_refused(run: Path, classifier: Path, capsys: Capture) -> None:
    for option, folder in (("--classifier", classifier), ("--weak", run)):
        assert main(["sample", str(run), "-n", "1", "--steps", "1", option, str(folder), "--out", "out"]) == 2
        assert f"{option} does nothing without a scale: give {option}-scale" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_model_of_other_data_does_not_guide(shapes: Path, run: Path, classifier: Path, capsys: Capture) -> None:
    assert main(["sample", str(run), "-n", "1", "--weak", str(shapes), "--weak-scale", "2"]) == 2
    assert "has other examples or conditions" in capsys.readouterr().err
    guided = ["--classifier", str(classifier), "--classifier-scale", "2"]
    assert main(["sample", str(shapes), "-n", "1", "--attribute", "count=1", *guided]) == 2
    assert "has other examples or classes" in capsys.readouterr().err


def test_a_model_is_guided_away_from_a_weaker_one(run: Path) -> None:
    common = ["sample", str(run), "-n", "1", "--steps", "2", "--label", "3"]
    assert main([*common, "--weak", str(run), "--weak-scale", "2", "--out", "same"]) == 0
    assert main([*common, "--out", "alone"]) == 0
    # The weaker model is the model itself here, so nothing is to be got away from.
    same, alone = pixels(Path("same/000000.png")), pixels(Path("alone/000000.png"))
    assert all(abs(a - b) <= 1 for a, b in zip(same, alone, strict=True))


def test_a_classifier_is_measured_by_noise_level(classifier: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(classifier)]) == 0
    assert "right answers" in capsys.readouterr().out
    levels = json.loads((classifier / "classifier.json").read_text())["levels"]
    counts = {level["accuracy"]["count"] for level in levels}
    assert len(levels) == 8
    assert len(counts) == 1
    # What knows nothing yet pays about the logarithm of ten classes, at every level.
    assert all(1.5 < level["cross_entropy"]["value"] < 3.5 for level in levels)


@pytest.mark.parametrize("option", ["--samples", "--steps", "--guidance", "--features"])
def test_what_a_classifier_has_no_use_for_is_refused(option: str, classifier: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(classifier), option, "5"]) == 2
    told = capsys.readouterr().err
    assert f"is a classifier, of which no samples are drawn, so {option} means nothing to it" in told


def test_nothing_is_sampled_from_a_classifier(classifier: Path, capsys: Capture) -> None:
    assert main(["sample", str(classifier), "-n", "1"]) == 2
    assert "--classifier" in capsys.readouterr().err


def test_guidance_within_an_interval_and_rescaled_is_told_in_the_file(run: Path, capsys: Capture) -> None:
    guided = ["--guidance", "3", "--interval", "0.1,5", "--rescale", "0.7", "--label", "1"]
    assert main(["sample", str(run), "-n", "1", "--steps", "2", *guided, "--out", "out"]) == 0
    settings = told(Path("out/000000.png"))["settings"]
    assert isinstance(settings, dict)
    assert settings["interval"] == [0.1, 5.0]
    assert settings["rescale"] == 0.7
    assert main(["sample", str(run), "--interval", "0.1"]) == 2
    assert "expected lowest,highest" in capsys.readouterr().err
