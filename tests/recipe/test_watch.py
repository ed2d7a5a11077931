import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unfog.checkpoint import list_checkpoints
from unfog.data.loader import ShuffledBatches
from unfog.images import read_png_text
from unfog.recipe.build import build_task, fit_to_data
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.export import origin_of, save_grid
from unfog.recipe.load import override
from unfog.recipe.run import Run, initial_network
from unfog.recipe.schema import Recipe, SaveConfig
from unfog.recipe.trackers import TensorBoard
from unfog.recipe.train import train
from unfog.recipe.watch import preview_count, preview_request, watched
from unfog.recipes import named
from unfog.training.parallel import World
from unfog.training.signals import Stop
from unfog.training.trainer import Trainer


def start(folder: Path, recipe: Recipe, trained: Run, settings: Sequence[str]) -> Run:
    return Run.create(folder, override(recipe, settings), trained.data().train.info)


def finish(run: Run) -> Run:
    for _ in train(run, run.data().train):
        pass
    return run


def stopped(run: Run, step: int) -> Run:
    """Train up to a step, and save there."""
    stop = Stop()
    for taken in train(run, run.data().train, stop=stop):
        if taken.index == step:
            stop.request()
    return run


def killed(run: Run, step: int) -> Run:
    """Train up to a step, and leave without another save, as a kill does."""
    steps = train(run, run.data().train)
    for taken in steps:
        if taken.index == step:
            break
    steps.close()  # type: ignore[attr-defined]
    return run


def weights(run: Run) -> dict[str, bytes]:
    newest = list_checkpoints(run.folder)[0]
    return {str(path.relative_to(newest)): path.read_bytes() for path in newest.rglob("*") if path.is_file()}


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Read the event files as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def pictures(run: Run) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), {"images": 0}).Reload()
    return [event.step for event in events.Images("samples")] if "samples" in events.Tags()["images"] else []


def logged(run: Run, name: str) -> list[tuple[int, Any]]:
    # Event files hold float32, a line of the log all digits.
    return [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in run.log()]  # type: ignore[misc]


def test_previews_do_not_change_what_is_trained(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = finish(start(tmp_path / "run", tiny, trained, ["save.preview_every=1"]))
    assert weights(run) == weights(trained)


def test_a_preview_is_what_would_be_sampled_from_that_step(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = finish(start(tmp_path / "run", tiny, trained, ["save.preview_every=3"]))
    names = sorted(path.name for path in (run.folder / "samples").iterdir())
    assert names == ["preview-00000003.png", "preview-00000004.png"]
    stored = run.weights()
    pipeline = run.pipeline(stored)
    samples = pipeline.sample(preview_request(pipeline, run.data().train))
    assert samples.request.count == 40
    save_grid(samples, tmp_path / "grid.png", classes=run.manifest.data.classes, origin=origin_of(run, stored))
    assert (run.folder / "samples" / names[-1]).read_bytes() == (tmp_path / "grid.png").read_bytes()
    told = json.loads(read_png_text(run.folder / "samples" / names[-1])["unfog"])
    assert told["origin"]["step"] == 4


def test_a_preview_shows_the_last_weights_where_the_recipe_samples_from_them(
    tmp_path: Path, tiny: Recipe, trained: Run
) -> None:
    run = finish(start(tmp_path / "run", tiny, trained, ["save.preview_every=4", "average=null"]))
    told = json.loads(read_png_text(run.folder / "samples" / "preview-00000004.png")["unfog"])
    assert told["origin"]["weights"] == "model"
    assert told["origin"]["sha256"] == run.weights().sha256


def test_a_resumed_run_has_the_previews_of_one_that_was_not_stopped(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    every = ["save.preview_every=1"]
    whole = finish(start(tmp_path / "whole", tiny, trained, every))
    run = killed(start(tmp_path / "run", tiny, trained, every), 3)
    assert list_checkpoints(run.folder)[0].name == "step-00000002"
    # A kill between a checkpoint and its picture.
    (run.folder / "samples" / "preview-00000002.png").unlink()
    (whole.folder / "samples" / "preview-00000099.png").write_bytes(b"left by a longer run")
    finish(run)
    finish(whole)
    names = [f"preview-{step:08d}.png" for step in (1, 2, 3, 4)]
    assert sorted(path.name for path in (whole.folder / "samples").iterdir()) == names
    assert sorted(path.name for path in (run.folder / "samples").iterdir()) == names


def test_few_classes_are_shown_four_times_and_many_as_far_as_they_go() -> None:
    assert [preview_count(classes) for classes in (0, 1, 10, 20, 21, 300)] == [36, 4, 40, 80, 100, 100]


def test_a_preview_of_a_model_of_attributes_asks_for_those_of_examples(tmp_path: Path) -> None:
    told = ["data.limit=40", "network.dim=8", "network.heads=2", "network.depth=1", "train.steps=1"]
    recipe = override(named("shapes-small"), [*told, "sample.steps=1", "save.preview_every=1"])
    data = open_data(recipe.data)
    run = finish(Run.create(tmp_path / "run", fit_to_data(recipe, DataCard.of(data.train.info)), data.train.info))
    picture = json.loads(read_png_text(run.folder / "samples" / "preview-00000001.png")["unfog"])
    pipeline = run.pipeline()
    asked = preview_request(pipeline, data.train)
    assert asked.attributes == [tuple(row) for row in data.train.gather(torch.arange(36))["attributes"].tolist()]
    assert picture["attributes"] == [list(row) for row in asked.attributes]


def test_event_files_hold_the_log(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = finish(start(tmp_path / "run", tiny, trained, ["save.tensorboard=true", "save.preview_every=2"]))
    read = curves(run)
    for name in ("loss", "grad_norm", "lr", "examples", "seconds"):
        assert read[name] == logged(run, name)
    assert [step for step, _ in read["parts/error"]] == [1, 2, 3, 4]
    assert pictures(run) == [2, 4]
    assert weights(run) == weights(trained)


def test_a_resumed_run_neither_doubles_its_curves_nor_leaves_gaps(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    settings = ["save.tensorboard=true", "save.preview_every=1"]
    run = killed(start(tmp_path / "run", tiny, trained, settings), 3)
    finish(Run.open(run.folder))
    assert len(list((run.folder / "tensorboard").iterdir())) == 2
    assert curves(run)["loss"] == logged(run, "loss")
    assert pictures(run) == [1, 2, 3, 4]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_its_curves_again(
    tmp_path: Path, tiny: Recipe, trained: Run
) -> None:
    run = killed(start(tmp_path / "run", tiny, trained, ["save.tensorboard=true"]), 1)
    assert not list_checkpoints(run.folder)
    assert curves(finish(run))["loss"] == logged(run, "loss")


def test_a_step_that_a_kill_kept_from_the_event_files_comes_from_the_log(
    tmp_path: Path, tiny: Recipe, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path / "run", tiny, trained, ["save.tensorboard=true"])
    write = TensorBoard.write

    def interrupted(self: TensorBoard, step: int, values: Mapping[str, float]) -> None:
        if step < 2:
            write(self, step, values)

    monkeypatch.setattr(TensorBoard, "write", interrupted)
    killed(run, 2)
    monkeypatch.undo()
    assert [step for step, _ in curves(run)["loss"]] == [1]
    assert curves(finish(run))["loss"] == logged(run, "loss")


def test_event_files_that_are_asked_for_later_hold_the_whole_log(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = stopped(start(tmp_path / "run", tiny, trained, []), 2)
    assert curves(finish(run.changed(["save.tensorboard=true"])))["loss"] == logged(run, "loss")


def test_the_cadence_is_that_of_the_log(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = finish(start(tmp_path / "run", tiny, trained, ["save.tensorboard=true", "save.log_every=3"]))
    assert [step for step, _ in curves(run)["loss"]] == [3]


class Follower(World):
    """A process that does not lead: what the leader does is not done here."""

    def led(self, call: Callable[[], Any]) -> Any:
        return None


def test_a_process_that_does_not_lead_writes_nothing(tmp_path: Path, tiny: Recipe, trained: Run) -> None:
    run = start(tmp_path / "run", tiny, trained, ["save.tensorboard=true", "save.preview_every=1"])
    dataset = run.data().train
    task = build_task(run.recipe, initial_network(run.recipe))
    trainer = Trainer(task, ShuffledBatches(dataset, 0), run.recipe.train)
    trainer.world = Follower(torch.device("cpu"))
    assert len(list(watched(iter(trainer), trainer, run, dataset))) == 4
    assert not (run.folder / "tensorboard").exists()
    assert not (run.folder / "samples").exists()


@pytest.mark.parametrize(("setting", "library"), [("save.tensorboard=true", "tensorboard"), ("save.wandb=p", "wandb")])
def test_a_missing_library_is_refused_before_anything_is_written(
    tmp_path: Path, tiny: Recipe, trained: Run, monkeypatch: pytest.MonkeyPatch, setting: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("unfog.recipe.trackers.find_spec", lambda name: None if name == library else object())
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'unfog\[log\]'"):
        start(tmp_path / "run", tiny, trained, [setting])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ImportError, match="pip install"):
        trained.changed([setting])


@pytest.mark.parametrize(("name", "value"), [("preview_every", 0), ("wandb", "")])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(SaveConfig(), **{name: value})


class Offline:
    """What an offline session of Weights & Biases wrote: its number, and one row a step.

    The file is a log of LevelDB: after 7 bytes, records in blocks of 32 KiB, each with checksum, length and kind.
    """

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.wandb")
        self.number = path.stem.removeprefix("run-")
        self.rows = [dict(row) for row in self._rows(path.read_bytes())]

    @staticmethod
    def _rows(raw: bytes) -> Iterator[Iterator[tuple[str, Any]]]:
        from wandb.proto import wandb_internal_pb2

        place, whole, kinds_at_an_end = 7, b"", (1, 4)
        while place + 7 <= len(raw):
            if (left := 32768 - place % 32768) < 7:
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
            whole += raw[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in kinds_at_an_end:
                record = wandb_internal_pb2.Record.FromString(whole)
                whole = b""
                if record.WhichOneof("record_type") == "history":
                    items = record.history.item
                    yield ((item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in items)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in [
        name for name in os.environ if name.startswith("WANDB_") and name not in ("WANDB_MODE", "WANDB_SILENT")
    ]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_gets_the_log_and_a_resumed_run_goes_on_as_the_same_run(
    tmp_path: Path, tiny: Recipe, trained: Run
) -> None:
    import wandb

    settings = ["save.wandb=tests", "save.preview_every=4"]
    run = killed(start(tmp_path / "run", tiny, trained, settings), 3)
    number = json.loads((run.folder / "wandb-run.json").read_text())
    finish(Run.open(run.folder))
    assert json.loads((run.folder / "wandb-run.json").read_text()) == number
    wandb.teardown()  # ends the process that writes the files
    first, second = (Offline(path) for path in sorted((run.folder / "wandb").glob("offline-run-*")))
    assert first.number == second.number == number["id"]
    assert [row["_step"] for row in first.rows] == [1, 2, 3]
    assert [row["_step"] for row in second.rows] == [2, 3, 4]
    told = {row["_step"]: row["loss"] for row in (*first.rows, *second.rows)}
    assert sorted(told.items()) == [(record["step"], record["loss"]) for record in run.log()]
    assert any(key.split("/")[0] == "samples" for key in second.rows[-1])


def test_a_run_that_weights_and_biases_refuses_says_why(
    tmp_path: Path, tiny: Recipe, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", refuse)
    run = start(tmp_path / "run", tiny, trained, ["save.wandb=tests"])
    with pytest.raises(ValueError, match=r"refuses the run: No API key configured\.; or set WANDB_MODE=offline"):
        train(run, run.data().train)
    assert run.log() == []
