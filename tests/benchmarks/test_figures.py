"""The figures of docs/mathematics are drawn in a tiny form, and the pages hold what is written into them."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks.figures import choosing, information
from benchmarks.figures.__main__ import COMMAND, PAGES, render
from benchmarks.figures.detail import Detail
from benchmarks.pages import END, start

from unfog.diffusion.schedule import VarianceExploding
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import Point
from unfog.metrics.interval import Score

ROOT = Path(__file__).parents[2]
TINY = Detail(points=24, paths=3, steps=12, counts=(8, 16))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """The pages, without their figures."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    return tmp_path / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_figures_that_its_command_draws(page: str, docs: Path) -> None:
    assert render(docs, TINY, page) == [page]
    text = (docs / "mathematics" / page).read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(figures/([^)]+)\)", text))
    drawn = {path.name for path in (docs / "mathematics" / "figures").iterdir()}
    assert shown == drawn


def test_figures_are_the_same_each_time(docs: Path) -> None:
    figure = docs / "mathematics" / "figures" / "predictions.png"
    drawn = []
    for _ in range(2):
        render(docs, TINY, "parameterizations.md")
        drawn.append(figure.read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("name", "entropy"), [("two points", math.log(2)), ("three points", 1.0822)])
def test_the_area_under_the_bound_is_the_entropy_of_points(name: str, entropy: float) -> None:
    log_snr = torch.linspace(-information.REACH, information.REACH, 120, dtype=torch.float64)
    denoiser = information.sources(VarianceExploding(4000.0))[name]
    rate = 0.5 * log_snr.exp() * information.least_error(denoiser, log_snr, 400)
    # What lies below the lowest log-SNR is e^-14 / 2, and the trapezoidal rule on smooth bumps is far better than that.
    assert float(torch.trapezoid(rate, log_snr)) == pytest.approx(entropy, abs=1e-4)


def point(sampler: str, steps: int, distance: float | None, frechet: float | None) -> Point:
    none = Missing("not measured")
    score = none if frechet is None else Score(frechet, 0.9 * frechet, 1.1 * frechet, 9, "")
    far = none if distance is None else Score(distance, 0.9 * distance, 1.1 * distance, 9, "")
    quality = Comparison(score, score, score, score, score)
    draws = () if frechet is None else tuple(frechet + 0.01 * (k * steps % 7) for k in range(20))
    evaluations = 2 * steps - 1 if sampler == "heun" else steps
    return Point(sampler, "trailing", steps, 1.0, evaluations, 0.1, far, quality, draws)


def write_records(folder: Path, points: list[Point], samples: int) -> None:
    error = {"value": 0.001, "low": 0.001, "high": 0.001, "count": 9, "note": ""}
    part = {
        "origin": {"run": "toy", "recipe": "digits", "step": 5, "weights": "model", "sha256": "0"},
        "amount": {"samples": samples, "noises": 9, "seed": 0, "resamples": 20},
        "accurate_by": {"steps": 200},
        "machine": {"processor": "one of these", "date": "2026-01-01"},
        "accurate": {"1": {"error": error, "seconds": 1.0}},
        "floor": None,
        "features": "a network",
        "settings": [{"setting": {}, "found": found.to_dict()} for found in points],
    }
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "sweeps": {"abc": part}}))


def test_distances_are_rendered_with_the_nearest_setting_of_each_cost_in_bold(tmp_path: Path, docs: Path) -> None:
    found = [point("ddim", 4, 0.4, None), point("heun", 4, 0.3, None), point("dpmpp", 4, 0.2, None)]
    write_records(tmp_path / "records" / "toy", found, 0)
    choosing.render(docs, COMMAND, tmp_path / "records")
    text = (docs / choosing.PAGE).read_text(encoding="utf-8")
    measured = text[text.index(start(COMMAND)) : text.index(END)]
    assert "| `ddim` | `trailing` | 0.400 ± 0.040 |" in measured
    assert "| `heun` | `trailing` | 0.300 ± 0.030 (7) |" in measured
    assert "| `dpmpp` | `trailing` | **0.200 ± 0.020** |" in measured
    assert (docs / "images" / "sweep-toy-distance.png").exists()


def test_metrics_are_rendered_with_the_recommendation(tmp_path: Path, docs: Path) -> None:
    write_records(tmp_path / "records" / "toy", [point("ddim", 4, None, 1.001), point("ddim", 9, None, 1.0)], 100)
    choosing.render(docs, COMMAND, tmp_path / "records")
    text = (docs / choosing.PAGE).read_text(encoding="utf-8")
    assert "Recommended: `ddim`, 4 steps, guidance 1, 4 evaluations: the fewest evaluations" in text
    assert (docs / "images" / "sweep-toy-metrics.png").exists()


def test_records_that_are_missing_are_said(tmp_path: Path, docs: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a sweep\.json"):
        choosing.render(docs, COMMAND, tmp_path)
