import json
from pathlib import Path

import pytest
from benchmarks.campaign.__main__ import main
from benchmarks.campaign.jobs import Bits, Classifier, Effort, Measure, Trained
from benchmarks.campaign.record import Places, Start, circumstances, read_record, write_record
from benchmarks.campaign.run import adopt, run_job, train_recipe, trained_run

from unfog.cli import main as unfog
from unfog.recipe.run import Run

TINY = ["network.widths=[32]", "network.blocks=[0]", "network.attention=[]", "network.middle_attention=false"]
TINY += ["train.steps=4", "train.batch_size=8", "data.limit=40", "save.checkpoint_every=2", "save.log_every=1"]
EVALUATION = {"machine": {"processor": "abacus", "date": "2026-01-02"}, "samples": 8}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "records", tmp_path / "work")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of digits with seed 1; its evaluation is written by hand, since making one takes long."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert unfog(["train", "digits", "train.seed=1", *TINY, "--out", str(folder), "--no-report"]) == 0
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


def test_a_record_is_read_as_it_was_written(places: Places) -> None:
    path = places.record("equal/unfog/seed-0")
    content = {**circumstances(Start.now()), "measured": {"steps": 3, "curve": [[0.5, 1, 2.25]]}}
    write_record(path, "equal/unfog/seed-0", "make campaign", content)
    assert read_record(path) == {"format": 1, "id": "equal/unfog/seed-0", "command": "make campaign", **content}


def test_a_record_says_when_on_what_and_with_what_it_was_made() -> None:
    told = circumstances(Start("2026-01-02T03:04:05+00:00", (1.234, 0.5, 0.25)))
    assert told["started"] == "2026-01-02T03:04:05+00:00"
    assert told["machine"]["load_at_start"] == [1.23, 0.5, 0.25]
    assert told["machine"]["threads"] >= 1
    assert told["machine"]["pinned_to"]
    assert "torch" in told["versions"]
    assert len(told["source"]) == 64


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="no record of format 1"):
        read_record(tmp_path / "old.json")


def test_an_adopted_run_is_recorded_with_what_it_knew_of_itself(run: Path, places: Places) -> None:
    job = Trained("digits", 1)
    adopt(run, job, places)
    record = read_record(places.record(job.id))
    assert (record["id"], record["seed"], record["adopted"]) == (job.id, 1, True)
    assert record["command"].startswith("unfog train digits train.seed=1")
    # That of the training, whatever it was measured on.
    assert record["machine"] == Run.open(run).manifest.machine != EVALUATION["machine"]
    measured = record["measured"]
    assert measured["evaluation"] == EVALUATION
    assert (measured["steps"], measured["batch_size"], measured["data"]["count"]) == (4, 8, 40)
    assert [step for step, _ in measured["loss_curve"]["points"]] == [1, 2, 3, 4]
    assert measured["training_seconds"] > 0
    # It ran at another time and from other sources than those that are here now.
    assert not {"commit", "source"} & set(record)


@pytest.mark.parametrize("job", [Trained("digits", 0), Trained("mnist-small", 1)])
def test_a_run_of_another_recipe_or_seed_is_not_adopted(run: Path, places: Places, job: Trained) -> None:
    with pytest.raises(ValueError, match="expected a run of"):
        adopt(run, job, places)
    assert not places.record(job.id).exists()


def test_bits_are_measured_of_the_run_that_was_adopted(run: Path, places: Places) -> None:
    adopt(run, Trained("digits", 1), places)
    job = Bits("digits", Measure.BOUND, 1)
    with pytest.raises(FileNotFoundError, match=r"the run of recipe/digits/seed-1, begun .* is neither"):
        trained_run(job, places)
    (places.work.parent / "digits").symlink_to(run)
    run_job(job, Effort(likelihood_examples=4, likelihood_draws=2), places)
    record = read_record(places.record(job.id))
    measured = record["measured"]
    assert (measured["count"], measured["draws"], measured["dimensions"]) == (4, 2, 64)
    assert measured["origin"]["recipe"] == "digits"
    assert {bound["steps"] for bound in measured["bounds"]} == {None, 1000}
    assert len(record["source"]) == 64


def test_a_run_that_was_not_evaluated_is_not_adopted(run: Path, places: Places, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("manifest.json", "recipe.yaml", "log.jsonl"):
        (bare / file).write_bytes((run / file).read_bytes())
    with pytest.raises(ValueError, match="unfog evaluate"):
        adopt(bare, Trained("digits", 1), places)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the command line of unfog is asked for, instead of doing it; it ends with status 0."""
    asked: list[list[str]] = []
    monkeypatch.setattr("benchmarks.campaign.run.unfog", lambda arguments: asked.append(arguments) or 0)
    return asked


def test_a_recipe_is_trained_and_evaluated_with_its_seed(tmp_path: Path, calls: list[list[str]]) -> None:
    train_recipe(Trained("digits", 2), tmp_path / "run")
    assert calls == [["train", "digits", "train.seed=2", "evaluation.seed=2", "--out", str(tmp_path / "run")]]


def test_a_classifier_is_recorded_with_what_it_knows_at_each_level(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["network.widths=[8,8]", "network.groups=4", "network.head_dim=4", *TINY[4:], "data.path=digits"]
    tiny += ["data.size=8"]
    monkeypatch.setattr("benchmarks.campaign.run.unfog", lambda arguments: unfog([*arguments, *tiny]))
    job = Classifier("mnist-classifier", 2)
    run_job(job, Effort(), places)
    record = read_record(places.record(job.id))
    levels = record["measured"]["evaluation"]["levels"]
    assert record["seed"] == 2
    assert (record["measured"]["steps"], len(levels)) == (4, 8)
    assert all(0 <= level["accuracy"]["value"] <= 1 for level in levels)
    assert "train.seed=2" in record["measured"]["run_command"]


def test_a_recipe_that_was_stopped_goes_on(run: Path, calls: list[list[str]]) -> None:
    train_recipe(Trained("digits", 1), run)
    assert calls == [["train", "digits", "--out", str(run), "--resume"]]


def test_a_recipe_that_was_killed_before_it_was_a_run_begins_anew(tmp_path: Path, calls: list[list[str]]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("half")
    train_recipe(Trained("digits", 1), tmp_path / "run")
    assert "--resume" not in calls[0]
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_does_not_come_to_its_end_leaves_no_record(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.campaign.run.unfog", lambda arguments: 143)
    with pytest.raises(RuntimeError, match="status 143"):
        run_job(Trained("digits", 0), Effort(), places)
    assert not places.record("recipe/digits/seed-0").exists()


def test_the_command_adopts_a_run_once(run: Path, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--records", str(places.records), "--work", str(places.work)]
    assert main(["--adopt", str(run), "recipe/digits/seed-1", *there]) == 0
    assert main(["--adopt", str(run), "recipe/digits/seed-1", *there]) == 2
    assert "has a record already" in capsys.readouterr().err


def test_the_command_lists_what_is_missing(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(places.record("floor/mnist"), "floor/mnist", "", {})
    assert main(["--list", "--only", "floor", "--records", str(places.records)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("done     floor/mnist")
    assert "0 of 1 jobs missing" in told


def test_the_command_refuses_names_that_are_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "equally"]) == 2
    assert "no job matches 'equally'" in capsys.readouterr().err
