import json
from functools import partial
from pathlib import Path

import pytest
from benchmarks.campaign import fitted
from benchmarks.campaign.fitted import run_fitted
from benchmarks.campaign.jobs import Effort, FitSampler
from benchmarks.campaign.record import Places, write_record

from unfog.cli import main as unfog
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig, feature_extractor
from unfog.evaluation.fit import FitEffort, fit_steps
from unfog.sampling.fitted import Fitted
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings

TINY = ["network.widths=[32]", "network.blocks=[0]", "network.attention=[]", "network.middle_attention=false"]
TINY += ["train.steps=4", "train.batch_size=8", "data.limit=40", "save.checkpoint_every=4", "save.log_every=1"]
FIXED = [SampleSettings(DPMSolverPP2M(), grid, 2) for grid in (Trailing(), LogSNRUniform(0.1, 20.0))]
ACCURATE = SampleSettings(DPMSolverPP2M(), Trailing(), 8)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A trained run that was adopted, and little effort for everything."""
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    job, places = FitSampler("digits", 2), Places(tmp_path / "records", tmp_path / "runs" / "campaign")
    folder = tmp_path / "runs" / "digits"
    assert unfog(["train", "digits", *TINY, "--out", str(folder), "--no-report"]) == 0
    created = json.loads((folder / "manifest.json").read_text())["created"]
    write_record(places.record(job.needs[0]), job.needs[0], "", {"measured": {"run_created": created}})
    effort = FitEffort(4, 4, 4, evaluations=400, accurate=ACCURATE)
    features = FeatureConfig(budget=Budget(steps=2, epochs=1, batch_size=8, width=1))
    monkeypatch.setattr(fitted, "ACCURATE", ACCURATE)
    monkeypatch.setattr(fitted, "FINE", SampleSettings(DPMSolverPP2M(), Trailing(), 16))
    monkeypatch.setattr(fitted, "fixed_tables", lambda default, steps: FIXED)
    monkeypatch.setattr(fitted, "fit_steps", partial(fit_steps, effort=effort))
    monkeypatch.setattr(fitted, "feature_extractor", partial(feature_extractor, config=features))
    return places


def test_a_fit_is_measured_beside_the_best_fixed_sampler(places: Places) -> None:
    measured = run_fitted(FitSampler("digits", 2), Effort(samples=24, resamples=20), places)
    row = measured["row"]
    assert row["evaluations"] == 2
    assert row["fixed"].startswith("DPMSolverPP2M(eta=0) on")
    assert row["distance"]["count"] == row["fixed_distance"]["count"] == row["ratio"]["count"] == 24
    assert row["ratio"]["value"] == pytest.approx(row["distance"]["value"] / row["fixed_distance"]["value"])
    assert min(row["frechet"], row["fixed_frechet"]) >= 0
    assert row["cpu_seconds"] > 0
    assert row["table"]["kind"] == "fitted"
    assert 0 < measured["accurate"]["error"]["value"] < row["distance"]["value"]
    assert measured["run"]["step"] == 4
    json.dumps(measured)


def test_the_table_that_is_recorded_is_the_one_that_was_measured(places: Places) -> None:
    from unfog.recipe.plain import decode
    from unfog.sampling.sampler import Sampler

    measured = run_fitted(FitSampler("digits", 2), Effort(samples=24, resamples=20), places)
    table = decode(Sampler, measured["row"]["table"])
    assert isinstance(table, Fitted)
    assert len(table.stages) == 2
