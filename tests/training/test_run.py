import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from unfog.checkpoint import DamagedCheckpointError, DamagedCheckpointWarning, list_checkpoints, read_checkpoint
from unfog.data.batch import Batch
from unfog.diffusion.random import Rng
from unfog.tasks.task import Loss, Task
from unfog.training.ema import reconstruct
from unfog.training.log import TIMING, read_log
from unfog.training.optim import OptimizerConfig
from unfog.training.run import run_training
from unfog.training.signals import Stop, stop_on_signals
from unfog.training.snapshots import read_snapshots


def steps_of(folder: Path) -> list[object]:
    return [record["step"] for record in read_log(folder / "log.jsonl")]


def untimed(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMING} for record in read_log(folder / "log.jsonl")]


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def train(tiny: ModuleType, folder: Path, steps: int, **options: object) -> list[int]:
    trainer = tiny.tiny_trainer(tiny.tiny_config(12, snapshot_every=2))
    found = []
    for step in run_training(trainer, folder, **{"checkpoint_every": 3, "resume": True, **options}):
        found.append(step.index)
        if len(found) == steps:
            break
    return found


def test_a_run_is_logged_and_saved_to_its_end(tiny: ModuleType, tmp_path: Path) -> None:
    assert train(tiny, tmp_path, 99, resume=False) == list(range(1, 13))
    assert (steps_of(tmp_path), saved_steps(tmp_path)) == (list(range(1, 13)), [12, 9])


def test_the_last_step_is_saved_whatever_the_cadence(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 99, checkpoint_every=5)
    assert saved_steps(tmp_path) == [12, 10]


def test_a_step_is_saved_before_it_is_told(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 3)
    assert (saved_steps(tmp_path), steps_of(tmp_path)) == ([3], [1, 2, 3])


def test_an_abandoned_run_that_is_resumed_leaves_the_files_of_one_that_was_not(
    tiny: ModuleType, tmp_path: Path
) -> None:
    train(tiny, tmp_path / "plain", 99)
    found = [train(tiny, tmp_path / "resumed", count) for count in (2, 5, 4, 99)]
    # from the start, as nothing was saved; from the start again; from 3; from 6
    assert found == [[1, 2], [1, 2, 3, 4, 5], [4, 5, 6, 7], list(range(7, 13))]
    for part in ("checkpoints", "ema"):
        assert tiny.read_folder(tmp_path / "resumed" / part) == tiny.read_folder(tmp_path / "plain" / part)
    assert untimed(tmp_path / "resumed") == untimed(tmp_path / "plain")


def test_resuming_a_finished_run_does_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 99)
    before = tiny.read_folder(tmp_path)
    assert train(tiny, tmp_path, 99) == []
    assert tiny.read_folder(tmp_path) == before


def test_resuming_from_the_checkpoint_before_a_damaged_one_says_so(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path / "plain", 99)
    train(tiny, tmp_path / "damaged", 8)  # saved at 3 and 6
    (tmp_path / "damaged/checkpoints/step-00000006/model.safetensors").write_bytes(b"")
    with pytest.warns(DamagedCheckpointWarning, match="step-00000006/model.safetensors has 0 bytes"):
        assert train(tiny, tmp_path / "damaged", 99)[0] == 4
    assert untimed(tmp_path / "damaged") == untimed(tmp_path / "plain")
    assert saved_steps(tmp_path / "damaged") == [12, 9]


def test_resuming_removes_what_came_after_the_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 8)  # saved at 3 and 6, snapshots at 2, 4, 6 and 8
    (tmp_path / "checkpoints/step-00000006/model.safetensors").write_bytes(b"")
    trainer = tiny.tiny_trainer(tiny.tiny_config(12, snapshot_every=2))
    with pytest.warns(DamagedCheckpointWarning):
        run_training(trainer, tmp_path, checkpoint_every=3, resume=True)
    assert (trainer.index, saved_steps(tmp_path), steps_of(tmp_path)) == (3, [3], [1, 2, 3])
    assert {snapshot.time for snapshot in read_snapshots(tmp_path)} == {16}


def test_a_run_with_damaged_checkpoints_only_is_not_begun_anew(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 3)
    (tmp_path / "checkpoints/step-00000003/state.json").unlink()
    with pytest.raises(DamagedCheckpointError):
        train(tiny, tmp_path, 99)


@pytest.mark.parametrize("done", [1, 3])  # before and after the first checkpoint
def test_a_run_is_not_begun_over_another(tiny: ModuleType, tmp_path: Path, done: int) -> None:
    train(tiny, tmp_path, done)
    with pytest.raises(FileExistsError, match="holds a run already; resume it"):
        train(tiny, tmp_path, 99, resume=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_after_the_step(tiny: ModuleType, tmp_path: Path, number: signal.Signals) -> None:
    class Signalled(tiny.TinyTask):
        def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
            if int(batch.positions[0]) == 35:  # the second piece of the fifth step
                os.kill(os.getpid(), number)
            return super().loss(batch, player, rng=rng)

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        task = Signalled()
    trainer = tiny.tiny_trainer(tiny.tiny_config(12, snapshot_every=2), task)
    with stop_on_signals() as stop:
        found = [s.index for s in run_training(trainer, tmp_path / "a", checkpoint_every=3, stop=stop)]
    assert (found, stop.signal) == ([1, 2, 3, 4, 5], number)
    assert (saved_steps(tmp_path / "a"), steps_of(tmp_path / "a")) == ([5, 3], [1, 2, 3, 4, 5])
    assert train(tiny, tmp_path / "a", 99) == list(range(6, 13))
    train(tiny, tmp_path / "plain", 99)
    assert tiny.differences(*(read_checkpoint(tmp_path / name).tensors for name in ("a", "plain"))) == []


def test_a_stop_between_two_steps_saves_what_was_done(tiny: ModuleType, tmp_path: Path) -> None:
    stop = Stop()
    for step in run_training(tiny.tiny_trainer(), tmp_path, checkpoint_every=100, stop=stop):
        if step.index == 4:
            stop.request()
    assert saved_steps(tmp_path) == [4]


def test_the_log_can_be_thinned(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 99, log_every=5)
    assert steps_of(tmp_path) == [5, 10]


def test_a_line_of_the_log_tells_the_step(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer()
    step = next(iter(run_training(trainer, tmp_path, checkpoint_every=3)))
    assert read_log(tmp_path / "log.jsonl") == [
        {
            "step": 1,
            "examples": 8,
            "lr": step.lr,
            "loss": step.loss,
            "grad_norm": step.grad_norm,
            "applied": True,
            "parts": {"first": step.parts["first"]},
            "seconds": step.seconds,
            "waited": step.waited,
        }
    ]


class Duel(Task):
    def __init__(self, spoil: bool = False) -> None:
        super().__init__()
        self.model, self.critic, self.spoil = nn.Linear(8, 8), nn.Linear(8, 1), spoil

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.model, "critic": self.critic}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        told = self.critic(self.model(batch.values["x0"])).mean()
        return Loss(told * float("nan") if self.spoil and int(batch.positions[0]) == 8 else told, {})


def test_each_player_is_logged_apart(tiny: ModuleType, tmp_path: Path) -> None:
    list(run_training(tiny.tiny_trainer(tiny.tiny_config(2), Duel()), tmp_path, checkpoint_every=2))
    players = read_log(tmp_path / "log.jsonl")[0]["players"]
    assert isinstance(players, dict)
    assert list(players) == ["model", "critic"]


def test_a_skipped_step_is_logged_even_off_the_cadence(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tiny.tiny_config(4), Duel(spoil=True))
    list(run_training(trainer, tmp_path, checkpoint_every=4, log_every=4))
    assert steps_of(tmp_path) == [2, 4]


@pytest.mark.parametrize("name", ["checkpoint_every", "log_every", "keep"])
def test_cadences_below_one_are_refused_before_anything_is_written(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        train(tiny, tmp_path / "run", 1, **{name: 0})
    assert not (tmp_path / "run").exists()


def test_snapshots_tell_what_they_are(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 99)
    snapshots = read_snapshots(tmp_path)
    assert [(s.time, s.sigma_rel) for s in snapshots] == [
        (8 * step, length) for step in range(2, 13, 2) for length in (0.05, 0.10)
    ]
    assert not list((tmp_path / "ema").glob("*decay*"))  # nothing could be formed from it
    assert {"4.running_mean", "4.running_var", "4.num_batches_tracked"} == set(snapshots[0].copied)


def test_a_length_can_be_formed_after_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    settings = {"steps": 40, "optimizer": OptimizerConfig(lr=1e-2)}
    trainer = tiny.tiny_trainer(tiny.tiny_config(**settings, snapshot_every=2))
    list(run_training(trainer, tmp_path, checkpoint_every=40))
    direct = tiny.tiny_trainer(tiny.tiny_config(**settings, ema=(0.075,)))
    list(direct)
    found, expected = reconstruct(read_snapshots(tmp_path), 0.075), direct.averages["model"].weights(0.075)
    nearest = trainer.averages["model"].weights(0.05)["0.weight"]
    # 20 snapshots come within 0.2 % of the wanted profile.
    error, choice = ((w - expected["0.weight"]).norm() for w in (found["0.weight"], nearest))
    assert float(error) < 0.01 * float(choice)
    tiny.TinyTask().network.load_state_dict(found, strict=True)


def test_a_run_without_snapshots_says_how_to_have_some(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train with snapshot_every"):
        read_snapshots(tmp_path)


def test_a_snapshot_that_was_cut_short_is_named(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 4)
    path = tmp_path / "ema" / "step-00000002-ema-0.050.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"step-00000002-ema-0.050.safetensors is not a whole"):
        read_snapshots(tmp_path)
