import json
from pathlib import Path

import pytest
from PIL import Image

from unfog.cli import main
from unfog.images import read_png_text

Capture = pytest.CaptureFixture[str]


def told(path: Path) -> dict[str, object]:
    settings = json.loads(read_png_text(path)["unfog"])
    assert isinstance(settings, dict)
    return settings


def test_samples_and_a_grid_are_written_with_their_settings(run: Path, here: Path, capsys: Capture) -> None:
    arguments = ["--steps", "2", "--sampler", "ddim", "--eta", "0.5", "--grid", "karras", "--guidance", "2"]
    assert main(["sample", str(run), "-n", "3", "--seed", "7", *arguments, "--out", "out"]) == 0
    assert capsys.readouterr().out == "out\n"
    assert sorted(path.name for path in Path("out").iterdir()) == ["000000.png", "000001.png", "000002.png", "grid.png"]
    one = told(Path("out/000002.png"))
    assert one["seed"] == 7
    assert one["index"] == 2
    assert one["label"] == 2
    assert one["class"] == "2"
    settings = one["settings"]
    assert isinstance(settings, dict)
    assert settings["sampler"] == {"kind": "ddim", "eta": 0.5}
    assert settings["guidance"] == 2.0
    origin = one["origin"]
    assert isinstance(origin, dict)
    assert origin["recipe"] == "digits"
    assert origin["weights"] == "ema-0.050"
    with Image.open("out/000002.png") as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_sample_is_the_same_whatever_the_batch(run: Path, here: Path, batch_size: int) -> None:
    common = ["sample", str(run), "--steps", "2", "--label", "3", "--seed", "1"]
    assert main([*common, "-n", "4", "--batch-size", str(batch_size), "--out", "many"]) == 0
    assert main([*common, "-n", "1", "--first", "3", "--out", "one"]) == 0
    with Image.open("many/000003.png") as many, Image.open("one/000003.png") as one:
        pairs = zip(many.tobytes(), one.tobytes(), strict=True)
    # A pixel may be rounded the other way where sums are formed in another order.
    assert all(abs(a - b) <= 1 for a, b in pairs)


def test_a_sample_is_made_again_from_its_own_file(run: Path, here: Path, capsys: Capture) -> None:
    assert main(["sample", str(run), "-n", "2", "--steps", "2", "--sampler", "sde-dpmpp", "--out", "first"]) == 0
    assert main(["sample", str(run), "--from", "first/000001.png", "--out", "again"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "again/000001.png"
    first, again = told(Path("first/000001.png")), told(Path("again/000001.png"))
    assert first == again
    with Image.open("first/000001.png") as a, Image.open("again/000001.png") as b:
        assert all(abs(x - y) <= 1 for x, y in zip(a.tobytes(), b.tobytes(), strict=True))


def test_labels_are_taken_in_turn_by_name_or_number(run: Path, here: Path) -> None:
    assert main(["sample", str(run), "-n", "3", "--steps", "1", "--label", "3", "--label", "7", "--out", "out"]) == 0
    assert [told(Path(f"out/00000{k}.png"))["label"] for k in range(3)] == [3, 7, 3]


def test_none_is_unconditional(run: Path, here: Path) -> None:
    assert main(["sample", str(run), "-n", "1", "--steps", "1", "--label", "none", "--out", "out"]) == 0
    assert told(Path("out/000000.png"))["label"] is None


def test_the_other_convention_of_guidance_is_converted(run: Path, here: Path) -> None:
    assert main(["sample", str(run), "-n", "1", "--steps", "1", "--guidance-w", "1.5", "--out", "out"]) == 0
    settings = told(Path("out/000000.png"))["settings"]
    assert isinstance(settings, dict)
    assert settings["guidance"] == 2.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clip", {"kind": "clip", "limit": 1.0}),
        ("dynamic-threshold", {"kind": "dynamic_threshold", "percentile": 0.995, "limit": 1.0}),
        ("{kind: clip, limit: 0.5}", {"kind": "clip", "limit": 0.5}),
        ("none", None),
    ],
)
def test_bounds_are_given_by_name_and_written_with_the_sample(
    run: Path, here: Path, name: str, kind: dict[str, object] | None
) -> None:
    assert main(["sample", str(run), "-n", "1", "--steps", "2", "--bounds", name, "--out", "out"]) == 0
    settings = told(Path("out/000000.png"))["settings"]
    assert isinstance(settings, dict)
    assert settings["bounds"] == kind
    assert main(["sample", str(run), "--from", "out/000000.png", "--out", "again"]) == 0
    assert told(Path("again/000000.png")) == told(Path("out/000000.png"))


def test_each_call_gets_a_folder_of_its_own(run: Path, capsys: Capture) -> None:
    for _ in range(2):
        assert main(["sample", str(run), "-n", "1", "--steps", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first != second


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddpm", {"kind": "ddpm", "variance": "posterior"}),
        ("ddpm-beta", {"kind": "ddpm", "variance": "beta"}),
        ("ddim", {"kind": "ddim", "eta": 0.0}),
        ("euler", {"kind": "ddim", "eta": 0.0}),
        ("heun", {"kind": "heun", "variable": "sigma"}),
        ("dpmpp", {"kind": "dpmpp", "eta": 0.0}),
        ("sde-dpmpp", {"kind": "dpmpp", "eta": 1.0}),
    ],
)
def test_every_sampler_goes_by_its_name(run: Path, here: Path, name: str, kind: dict[str, object]) -> None:
    assert main(["sample", str(run), "-n", "1", "--steps", "2", "--sampler", name, "--out", "out"]) == 0
    settings = told(Path("out/000000.png"))["settings"]
    assert isinstance(settings, dict)
    assert settings["sampler"] == kind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampler", "dpmp"], "--sampler: expected one of ddpm, ddpm_learned, ddim, heun"),
        (["--sampler", "ddimm"], "did you mean ddim?"),
        (["--grid", "karas"], "did you mean karras?"),
        (["--eta", "2", "--sampler", "ddim"], "eta in [0, 1], not 2.0"),
        (["--bounds", "clop"], "--bounds: expected one of clip, dynamic_threshold, got 'clop'; did you mean clip?"),
        (["--bounds", "{kind: clip, limit: -1.0}"], "limit above 0, not -1.0"),
        (["--eta", "1", "--sampler", "heun"], "--eta=1.0 means nothing to Heun"),
        (["--guidance", "2", "--guidance-w", "1"], "give one of them"),
        (["--label", "x"], "--label: expected a number from 0 to 9"),
        (["--label", "10"], "--label: expected a number from 0 to 9"),
        (["-n", "1", "--label", "1", "--label", "2"], "--label: 2 classes are given for 1 sample: ask"),
        (["--label", "none", "--guidance", "2"], "a guidance scale of 2.0 does nothing without"),
        (["--average", "first"], "--average: expected 'last', or as in train.ema: expected a number, or one of power"),
        (["--average", "{kind: exponential, decay: 2}"], "an EMA decay in (0, 1), got 2.0"),
        (["--average", "exponential"], "one of the averages"),
        (["--average", "0.2"], "one of the averages"),
        (["--count", "0"], "a count of at least 1, got 0"),
        (["--steps", "0"], "steps of at least 1, got 0"),
        (["--batch-size", "0"], "a batch_size of at least 1, got 0"),
        (["--seed", "-1"], "a seed in [0, 2**63), got -1"),
        (["--grid", "leading", "--steps", "2000"], "at most 1000 steps"),
        (["--from", "no.png"], "no.png"),
        (["--from", "no.png", "--seed", "3"], "--from takes every setting from the file"),
    ],
)
def test_what_cannot_be_done_is_refused(
    run: Path, here: Path, arguments: list[str], words: str, capsys: Capture
) -> None:
    assert main(["sample", str(run), *arguments, "--out", "out"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert not Path("out").exists()


def test_a_folder_that_is_no_run_is_refused(here: Path, capsys: Capture) -> None:
    assert main(["sample", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_an_average_of_constant_decay_is_sampled_from_and_found_again(
    here: Path, tiny: list[str], capsys: Capture
) -> None:
    settings = ["train.ema=[0.05, {kind: exponential, decay: 0.9}]", "average={kind: exponential, decay: 0.9}"]
    assert main(["train", "digits", *tiny, *settings, "--out", "run", "--no-report"]) == 0
    common = ["sample", "run", "-n", "1", "--steps", "2", "--seed", "1"]
    assert main([*common, "--out", "own"]) == 0
    assert main([*common, "--average", "{kind: exponential, decay: 0.9}", "--out", "named"]) == 0
    assert main([*common, "--average", "0.05", "--out", "power"]) == 0
    own, named, power = (told(Path(f"{name}/000000.png"))["origin"] for name in ("own", "named", "power"))
    assert isinstance(own, dict)
    assert isinstance(power, dict)
    assert own == named
    assert (own["weights"], power["weights"]) == ("ema-decay-0.9", "ema-0.050")
    assert own["sha256"] != power["sha256"]
    assert main(["sample", "run", "--from", "own/000000.png", "--out", "again"]) == 0
    assert told(Path("again/000000.png")) == told(Path("own/000000.png"))
    capsys.readouterr()
    assert main(["inspect", "run", "run"]) == 0
    assert "ema-0.050 (" in capsys.readouterr().out


def test_files_are_not_replaced(run: Path, here: Path, capsys: Capture) -> None:
    arguments = ["sample", str(run), "-n", "1", "--steps", "1", "--out", "out"]
    assert main(arguments) == 0
    before = Path("out/000000.png").read_bytes()
    assert main([*arguments, "--seed", "3"]) == 2
    assert "exists already: give another folder with --out" in capsys.readouterr().err
    assert Path("out/000000.png").read_bytes() == before


def test_a_file_of_other_weights_is_not_made_again(run: Path, here: Path, tiny: list[str], capsys: Capture) -> None:
    assert main(["sample", str(run), "-n", "1", "--steps", "1", "--out", "out"]) == 0
    assert main(["train", "digits", *tiny, "train.seed=1", "--out", "other", "--no-report"]) == 0
    assert main(["sample", "other", "--from", "out/000000.png"]) == 2
    assert "was made with other weights: ema-0.050 of step 4 of the run 'tiny'" in capsys.readouterr().err
