import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.campaign.jobs import FAMILIES, RACED_ON, SEEDS, Effort, FamilyRace, queue
from benchmarks.campaign.record import Places
from benchmarks.campaign.run import run_job, run_race
from benchmarks.campaign.show_families import overview

from unfog.cli import families
from unfog.evaluation.families import Family
from unfog.evaluation.race import Raced

Record = dict[str, Any]


class Course:
    """Stands for data and models: what was asked of it is told in the record."""

    @staticmethod
    def of(data: str, settings: tuple[str, ...]) -> "Course":
        course = Course()
        course.data = data
        return course

    def features(self) -> str:
        return f"features of {self.data}"

    def run(self, family: Family, seed: int, extractor: str, effort: Any) -> Raced:
        told = {"family": family.value, "seed": seed, "extractor": extractor, "seconds": effort.seconds}
        return Raced(told | {"samples": effort.samples, "curve_samples": effort.curve_samples}, None)


def test_every_family_is_raced_on_all_data_with_all_seeds() -> None:
    found = {job.id for job in queue() if isinstance(job, FamilyRace)}
    assert len(found) == len(FAMILIES) * len(RACED_ON) * len(SEEDS)
    assert "family/mnist/gan/seed-1" in found
    assert set(FAMILIES) == {family.value for family in Family}


def test_a_job_trains_what_its_name_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(families, "Race", Course)
    effort = Effort(family_seconds=7.0, samples=40)
    told = run_race(FamilyRace("mnist", "vae", 2), effort, tmp_path / "picture.png")
    assert told == {
        "family": "vae",
        "seed": 2,
        "extractor": "features of mnist",
        "seconds": 7.0,
        "samples": 40,
        "curve_samples": 40,
    }


def test_its_record_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(families, "Race", Course)
    job, places = FamilyRace("mnist", "gan", 0), Places(tmp_path / "records", tmp_path / "work")
    run_job(job, Effort(), places)
    record = json.loads(places.record(job.id).read_text())
    assert (record["id"], record["measured"]["family"], record["seed"]) == ("family/mnist/gan/seed-0", "gan", 0)


def score(value: float) -> Record:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 100}


def record(family: str, seed: int) -> Record:
    quality = {name: score(0.5) for name in ("frechet", "precision", "recall", "density", "coverage")}
    accuracy = {"score": score(0.9), "yardstick": score(0.95)}
    scores = {"features": {"name": "own"}, "count": 24, "samples": quality, "floor": quality, "accuracy": accuracy}
    measured = {
        "family": family,
        "seed": seed,
        "data": {"name": "mnist/train", "count": 60000, "fingerprint": "f"},
        "budget_seconds": 300.0,
        "steps": 100,
        "batch_size": 128,
        "parameters": 1000,
        "drawing_parameters": 600,
        "settings": {"model": "small"},
        "samples": 24,
        "stability": {"diverged": None, "skipped": 0, "explosions": {}},
        "curve": [{"seconds": s, "steps": s, **quality} for s in (30, 300)],
        "scores": scores,
        "accuracy": score(0.9),
        "spread": score(0.8),
        "bits": {"reason": "none"},
        "speed": {"seconds_per_image": 0.004, "batch_size": 100, "evaluations": 1, "settings": "one evaluation"},
    }
    machine = {"processor": "abacus", "cores": 2, "pinned_to": [0], "threads": 1, "accelerator": "none"}
    return {"measured": measured, "machine": machine, "versions": {"torch": "2.0"}, "started": "2026-01-02T03:04:05"}


def test_the_page_has_a_table_and_curves_of_the_data_that_were_raced_on(tmp_path: Path) -> None:
    records = {FamilyRace("mnist", family, seed).id: record(family, seed) for family in FAMILIES for seed in (0, 1)}
    page = "\n".join(overview(records, tmp_path, Path("images")))
    assert page.count("### ") == 1
    assert "### mnist" in page
    assert "| gan | 0, 1 | 1,000 (600 draw) |" in page
    assert "![Distance, precision and recall against training time on mnist](images/families-mnist.png)" in page
    assert (tmp_path / "families-mnist.png").is_file()
    assert "abacus, 1 of 2 cores" in page


def test_without_records_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert overview({}, tmp_path, Path("images")) == []
