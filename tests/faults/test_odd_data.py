"""Data that are accepted are taken to the end: training, report, samples, the same samples again, and measuring anew.

Few pictures, few pixels, few or many channels, one class or none: what cannot be measured is left out with its reason,
and nothing ends in a traceback.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unfog.cli import evaluate, main
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig
from unfog.evaluation.measure import Effort, measure

WIDTH = 2  # of the feature network, whose features have four times as many dimensions
TINY = [
    "data.size=null",
    "train.steps=2",
    "train.batch_size=2",
    "network.widths=[32]",
    "network.blocks=[0]",
    "network.attention=[]",
    "network.middle_attention=false",
    "sample.steps=1",
    "evaluation.samples=12",
]
Capture = pytest.CaptureFixture[str]


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def arrays(path: Path, **entries: NDArray[np.generic]) -> Path:
    np.savez(path / "set.npz", **entries)  # type: ignore[arg-type]
    return path / "set.npz"


def pictures(path: Path, *images: NDArray[np.uint8], classes: tuple[str, ...] = (".",)) -> Path:
    for k, image in enumerate(images):
        folder = path / "set" / classes[k % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    return path / "set"


def alternating(count: int, classes: int = 2) -> NDArray[np.int64]:
    return np.arange(count) % classes


@dataclass(frozen=True)
class Odd:
    """A data set, and what is expected of a run on it.

    Attributes:
        make: writes it into a folder and returns its path.
        missing: words of the reasons for which scores are left out, by score.
        labelled: whether the model is told classes.
        channels: ``data.channels``.
        suffix: of the files of samples.
    """

    make: Callable[[Path], Path]
    missing: Mapping[str, str]
    labelled: bool = False
    channels: str = "null"
    suffix: str = ".png"


ACCURACY = "classification accuracy score"
UNLABELLED = {ACCURACY: "drawn without"}
ONE_CLASS = {ACCURACY: "two classes"}
OF_FEATURES = ("Fréchet distance", "precision", "recall", "density", "coverage", "copying")
ONE = dict.fromkeys(OF_FEATURES, "learns from 2 training examples")
SMALL = dict.fromkeys((*OF_FEATURES, ACCURACY), "8 x 8 pixels or more")


def few(count: int) -> dict[str, str]:
    """Return what so many test examples do not suffice for, with the network of ``little_effort``."""
    needed = {
        "Fréchet distance": 4 * WIDTH,
        "precision": 3,
        "recall": 3,
        "density": 5,
        "coverage": 5,
    }
    short = {name: f"more than {most} examples" for name, most in needed.items() if count <= most}
    return short if count > 1 else {**short, "copying": "2 or more"}


ODD = {
    "one picture": Odd(lambda path: pictures(path, noise(8, 8, 3)), ONE | UNLABELLED),
    "one picture of a class": Odd(
        lambda path: pictures(path, noise(8, 8), classes=("cat",)), ONE | ONE_CLASS, labelled=True
    ),
    "two pictures of two classes": Odd(
        lambda path: pictures(path, *noise(2, 8, 8), classes=("cat", "dog")), ONE, labelled=True
    ),
    "five pictures": Odd(lambda path: pictures(path, *noise(5, 8, 8, 3)), few(1) | UNLABELLED),
    "one class": Odd(
        lambda path: arrays(path, x=noise(40, 1, 8, 8), y=np.zeros(40, np.int64)), few(4) | ONE_CLASS, labelled=True
    ),
    "classes without examples": Odd(
        lambda path: arrays(path, x=noise(40, 1, 8, 8), y=np.where(np.arange(40) == 7, 4, 0)), few(4), labelled=True
    ),
    "two bands": Odd(
        lambda path: arrays(path, x=noise(90, 2, 8, 8), y=np.arange(90) % 2), few(10), labelled=True, suffix=".npy"
    ),
    "seven bands": Odd(lambda path: arrays(path, x=noise(60, 7, 8, 8)), few(6) | UNLABELLED, suffix=".npy"),
    "four bands": Odd(lambda path: arrays(path, x=noise(40, 4, 8, 8)), few(4) | UNLABELLED),
    "pictures with alpha": Odd(
        lambda path: pictures(path, *noise(20, 8, 8, 4), classes=("a", "b")), few(2), labelled=True, channels="4"
    ),
    "wide pictures without labels": Odd(lambda path: pictures(path, *noise(20, 8, 20)), few(2) | UNLABELLED),
    "tall pictures": Odd(lambda path: pictures(path, *noise(20, 20, 8), classes=("a", "b")), few(2), labelled=True),
    "single pixels": Odd(lambda path: pictures(path, *noise(20, 1, 1), classes=("a", "b")), SMALL, labelled=True),
    "lines": Odd(lambda path: pictures(path, *noise(20, 1, 30)), SMALL | UNLABELLED),
    "equal pictures": Odd(lambda path: arrays(path, x=np.full((40, 1, 8, 8), 9, np.uint8)), few(4) | UNLABELLED),
    "a single test example": Odd(
        lambda path: arrays(path, x_train=noise(20, 1, 8, 8), x_test=noise(1, 1, 8, 8)), few(1) | UNLABELLED
    ),
}


ALIKE = ("two pictures of two classes", "tall pictures", "lines", "four bands", "a single test example")
"""Those that hardly differ from another one, for the long version of the tests."""


@pytest.fixture(autouse=True)
def little_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with the smallest of networks, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    budget = Budget(steps=2, epochs=1, batch_size=8, width=WIDTH)
    effort = Effort(FeatureConfig(budget=budget), budget, resamples=20, loss_examples=8)
    monkeypatch.setattr(evaluate, "measure", partial(measure, effort=effort))


class Page(HTMLParser):
    """The words and the pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.named: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.named.append(dict(attrs)["alt"] or "")

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def left_out(run: Path) -> dict[str, str]:
    """Return the reasons for which scores are left out, by score, as ``evaluation.json`` tells them."""
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    told = {**scores["samples"], "copying": scores["copying"], "accuracy": scores["accuracy"]}
    # What goes with the Fréchet distance, for the same reasons, and what only published networks have.
    told = {name: score for name, score in told.items() if name not in ("limit", "kernel", "inception")}
    names = {"frechet": "Fréchet distance", "accuracy": ACCURACY}
    return {names.get(name, name): score["reason"] for name, score in told.items() if "reason" in score}


def pixels(path: Path) -> NDArray[np.uint8]:
    """Return a sample as ``(C, H, W)`` or ``(H, W)``, or ``(H, W, C)`` of a picture."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in ODD]
)
def test_what_is_trained_on_is_also_reported_sampled_and_measured(name: str, tmp_path: Path, capsys: Capture) -> None:
    odd = ODD[name]
    run = tmp_path / "run"
    data = [f"data.path={odd.make(tmp_path)}", f"data.channels={odd.channels}"]
    settings = [*TINY, *data, f"condition.classes={str(odd.labelled).lower()}"]
    assert main(["train", "digits", *settings, "--out", str(run), "--no-report"]) == 0
    assert main(["evaluate", str(run)]) == 0

    found = left_out(run)
    assert found.keys() == odd.missing.keys()
    for score, words in odd.missing.items():
        assert words in found[score]
    printed, page = capsys.readouterr().err, Page((run / "report.html").read_text())
    for reason in found.values():
        assert reason in printed
        assert reason in page.text
    assert any(alt.startswith("training example") for alt in page.named)

    assert main(["sample", str(run), "-n", "2", "--seed", "3", "--out", "out"]) == 0
    names = {f"00000{k}{suffix}" for k in range(2) for suffix in {odd.suffix, odd.suffix.replace("npy", "json")}}
    assert {path.name for path in Path("out").iterdir()} == {*names, "grid.png"}
    assert main(["sample", str(run), "--from", f"out/000001{odd.suffix}", "--out", "again"]) == 0
    first, again = (pixels(Path(f"{folder}/000001{odd.suffix}")) for folder in ("out", "again"))
    assert np.abs(first.astype(int) - again.astype(int)).max() <= 1  # sums of another batch are rounded otherwise


def test_a_run_on_one_picture_ends_with_a_report_and_one_sample_is_enough(tmp_path: Path, capsys: Capture) -> None:
    path = pictures(tmp_path, noise(8, 8, 3))
    others = [setting for setting in TINY if not setting.startswith("evaluation.")]
    data = [f"data.path={path}", "data.channels=null", "condition.classes=false"]
    settings = [*others, *data, "evaluation.samples=1"]
    assert main(["train", "digits", *settings, "--out", "run"]) == 0
    assert left_out(Path("run")).keys() == {*OF_FEATURES, ACCURACY}
    assert capsys.readouterr().out.splitlines()[-1] == "run/report.html"


def test_a_model_of_classes_is_refused_data_without_before_it_is_trained(tmp_path: Path, capsys: Capture) -> None:
    path = pictures(tmp_path, *noise(4, 8, 8))
    assert main(["train", "digits", *TINY, f"data.path={path}", "--out", "run"]) == 2
    assert "condition.classes=false" in capsys.readouterr().err
    assert not Path("run").exists()


def test_splits_that_do_not_go_together_are_refused_before_training(tmp_path: Path, capsys: Capture) -> None:
    x, y = noise(20, 1, 8, 8), np.arange(20) % 2
    for test, words in ((noise(5, 1, 9, 9), "test examples 1 x 9 x 9"), (noise(5, 1, 8, 8), "has no labels")):
        path = arrays(tmp_path, x_train=x, y_train=y, x_test=test)
        assert main(["train", "digits", *TINY, f"data.path={path}", "--out", "run"]) == 2
        assert words in capsys.readouterr().err
        assert not Path("run").exists()
