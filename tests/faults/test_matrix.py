"""The fault matrix: what can go wrong in a run, and what is promised when it does.

======================================  ===========================================================================
what goes wrong                         what is promised
======================================  ===========================================================================
a loss or gradient that is not finite   nothing moves, for any player; step, examples, noise levels and module are
                                        told in the step, the log and ``failures/``; the third in a row ends the run
a checkpoint's file is missing, empty,  it is named, and the previous checkpoint is used; the run ends with the same
cut short, torn, changed or longer      bits; where no other is left, it is an error and never a fresh start
a snapshot's file likewise              it is named, never averaged
no room on the disk                     the file and the room that is left are told; no draft stays; the previous
                                        checkpoint and what is in memory are whole; resuming ends with the same bits
a kill while saving                     ``test_kills.py``
a run is made longer or shorter         the rate is that of the longer run; a shorter one is refused
a checkpoint of somebody else           nothing in it is run; what does not fit is listed and refused, and nothing is
                                        changed
two trainers in a folder                the second is refused and told who the first is
a changed setting on resuming           it is refused, naming it
======================================  ===========================================================================
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from unfog.checkpoint import (
    DamagedCheckpointError,
    DamagedCheckpointWarning,
    RunState,
    SaveError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from unfog.data.batch import Batch
from unfog.diffusion.random import Purpose, Rng
from unfog.recipe.errors import RecipeError
from unfog.recipe.load import load
from unfog.tasks.task import Loss, Task
from unfog.training.config import TrainConfig
from unfog.training.failures import Cause
from unfog.training.lock import RunInUseError
from unfog.training.log import TIMING, read_log
from unfog.training.optim import Constant, Cosine, Decay, InverseSqrt, LinearToZero, OptimizerConfig, learning_rate
from unfog.training.run import run_training
from unfog.training.snapshots import read_snapshots
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError, Trainer

SETTINGS = {"schedule": {"kind": "cosine", "shift": 1.0}, "train": {"batch_size": 8}}


def train(trainer: Trainer, folder: Path, *, steps: int = 99, settings: Any = SETTINGS) -> list[TrainStep]:
    """Train or go on in a folder, and leave after some steps as a process does that is ended between two of them."""
    found: list[TrainStep] = []
    with closing(run_training(trainer, folder, checkpoint_every=3, resume=True, settings=settings)) as taken:  # type: ignore[type-var]
        for step in taken:
            found.append(step)
            if len(found) == steps:
                break
    return found


def bits(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """Return the bytes of each tensor: bad numbers, which equal nothing, are compared too."""
    return {
        f"{group}/{name}": tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for group, part in tensors.items()
        for name, tensor in part.items()
    }


def files(folder: Path) -> dict[str, bytes]:
    """Return what a run keeps, timing apart; locks and drafts of nothing are no part of it."""
    kept = {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("checkpoints", "ema", "failures")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }
    log = [{k: v for k, v in line.items() if k not in TIMING} for line in read_log(folder / "log.jsonl")]
    return {**kept, "log.jsonl": json.dumps(log).encode()}


# --- A loss or gradient that is not finite -------------------------------------------------------------------------


class _BadBackward(torch.autograd.Function):
    """The identity, with a slope that is undefined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.nan


class Middle(nn.Module):
    """Where some faults are planted, in a step of their own."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "backward":
            return _BadBackward.apply(x)  # type: ignore[no-any-return,no-untyped-call]
        return x * 3e38 * 3e38 if self.fault == "forward" else x


class Pair(Task):
    """Two players that learn alike, each with running statistics and dropout; faults are planted in one of them."""

    def __init__(self, fault: str = "", player: str = "model", when: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.fault, self.player, self.when = fault, player, when
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.model, self.critic = (
                nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), Middle(), nn.Dropout(0.2), nn.Linear(6, 8))
                for _ in range(2)
            )
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.model, "critic": self.critic}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        errors = self._errors(batch, player, rng)
        return Loss(errors.mean(), {"first": errors.detach()[0]})

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        return {"t": rng.uniform((), Purpose.TIME), "loss": self._errors(batch, player, rng)}

    def _errors(self, batch: Batch, player: str, rng: Rng) -> Tensor:
        self.seen += len(batch.ids)
        x0, network = batch.values["x0"], self.players()[player]
        # Planted by position alone, as everything is that a task does: the same again whenever it is asked again.
        hit = player == self.player and any(8 * step - 4 in batch.positions for step in self.when)
        rows = torch.isin(batch.positions, torch.tensor([8 * step - 4 for step in self.when]))
        network[2].fault = self.fault if hit else ""
        if hit and self.fault == "weights":
            with torch.no_grad():
                network[0].weight[0, 0] = torch.nan
        noise = rng.normal((8,), Purpose.NOISE)
        errors = (network(x0 + noise) - x0).square().mean(1)  # (B,)
        return torch.where(rows, errors * torch.inf, errors) if hit and self.fault == "loss" else errors


class Planted(NamedTuple):
    """A fault, and how it is to be diagnosed."""

    fault: str
    cause: Cause
    module: str | None
    words: str
    examples: int | None  # None: all of the micro-batch


PLANTED = [
    Planted("data", Cause.DATA, "{player}.0", "the data hold values in 'x0' that are not finite", 1),
    Planted("weights", Cause.WEIGHTS, "{player}.0", "'weight' of {player}.0 holds values", None),
    Planted("forward", Cause.FORWARD, "{player}.2", "the output of {player}.2 is not finite", None),
    Planted("loss", Cause.LOSS, None, "every module answered with finite numbers, the last one {player}.4", 1),
    Planted("backward", Cause.BACKWARD, "{player}.2", "the gradient that {player}.2 hands back to its inputs", None),
]

each_fault = pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.fault)
each_player = pytest.mark.parametrize("player", ["model", "critic"])
each_cut = pytest.mark.parametrize("micro", [None, 3], ids=["at once", "accumulated"])


def faulty(tiny: ModuleType, planted: Planted, player: str, when: tuple[int, ...], **changes: object) -> Trainer:
    """Return a trainer in some of whose steps the fourth but last example brings out something bad."""
    batches = tiny.TinyBatches()
    batches.data = Rng.of(5, 96).normal((8,), Purpose.SCRATCH)  # each comes once in twelve steps
    if planted.fault == "data":
        for step in when:
            batches.data[batches.take(8 * step - 4, 1).ids] = torch.inf
    task = Pair(planted.fault, player, when)
    return Trainer(task, batches, tiny.tiny_config(12, ema=(0.05,), **changes))


@each_cut
@each_player
@each_fault
def test_a_bad_step_moves_nothing(tiny: ModuleType, planted: Planted, player: str, micro: int | None) -> None:
    trainer = faulty(tiny, planted, player, (3,), micro_batch=micro)
    for _ in range(2):
        trainer.advance()
    before = trainer.state()
    step = trainer.advance()
    after = trainer.state()
    changed = {name for name, value in bits(before.tensors).items() if bits(after.tensors)[name] != value}
    hit = ["model", "critic"] if planted.fault == "data" else [player]
    parts = {"model": ("model/", "ema-", "state/optimizer/"), "critic": ("critic", "state/critic-")}
    own = {name for name in changed if any(name.startswith(parts[each]) for each in hit)}
    assert own - ({f"{player}/0.weight"} if planted.fault == "weights" else set()) == set()
    assert [name for name, told in step.players.items() if not told.applied] == hit
    # Each player's move counts what it saw; a move that was not made did not.
    moved = bits(after.tensors)["task/seen"] != bits(before.tensors)["task/seen"]
    assert moved == (len(hit) < 2)


@each_cut
@each_player
@each_fault
def test_a_bad_step_is_traced(tiny: ModuleType, planted: Planted, player: str, micro: int | None) -> None:
    trainer = faulty(tiny, planted, player, (3,), micro_batch=micro)
    for _ in range(2):
        trainer.advance()
    found = trainer.advance().players[player].failure
    assert found is not None
    assert (found.step, found.player, found.cause) == (3, player, planted.cause)
    assert found.module == (planted.module and planted.module.format(player=player))
    assert planted.words.format(player=player) in str(found)
    batch = trainer.batches.take(16, 8)
    bad = int(batch.ids[4])
    # The weight is spoilt in the second of three micro-batches, and bad in the third too.
    whole = {None: 8, 3: {"weights": 8}.get(planted.fault, 3)}[micro]
    assert len(found.examples) == (whole if planted.examples is None else planted.examples)
    assert bad in [example.id for example in found.examples]
    t = Rng.of(7, batch.ids, step=batch.epochs, position=batch.positions).uniform((), Purpose.TIME)
    levels = dict(zip(batch.ids.tolist(), t.tolist(), strict=True))
    assert all(example.told["t"] == levels[example.id] for example in found.examples)


@each_fault
def test_a_bad_step_is_told_on_disk(tiny: ModuleType, planted: Planted, tmp_path: Path) -> None:
    trainer = faulty(tiny, planted, "model", (5,))
    steps = train(trainer, tmp_path, steps=5)
    failure = steps[-1].players["model"].failure
    assert failure is not None
    record = json.loads((tmp_path / "failures" / "step-00000005.json").read_text())
    assert record["step"] == 5
    assert record["failures"][0] == failure.record()
    assert read_log(tmp_path / "log.jsonl")[-1]["players"]["model"]["failure"] == failure.record()  # type: ignore[index,call-overload]


@each_fault
def test_the_third_bad_step_in_a_row_ends_the_run(tiny: ModuleType, planted: Planted, tmp_path: Path) -> None:
    trainer = faulty(tiny, planted, "model", (4, 5, 6))
    with pytest.raises(NonFiniteError, match=r"(?s)3 steps in a row, up to step 6,.*The last: .*in step 6: ") as caught:
        train(trainer, tmp_path)
    assert planted.words.format(player="model") in str(caught.value)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "failures").iterdir())) == 3
    healthy = faulty(tiny, Planted("", Cause.DATA, None, "", None), "model", ())
    for _ in range(3):
        healthy.advance()
    assert bits(read_checkpoint(tmp_path).tensors) == bits(healthy.state().tensors)  # the last good checkpoint


# --- A checkpoint's files ------------------------------------------------------------------------------------------


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def one_bit_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [missing, empty, cut_short, torn, one_bit_changed, longer, a_folder]
FILES = [
    "manifest.json",
    "state.json",
    "model.safetensors",
    "ema-0.050.safetensors",
    "task.safetensors",
    "state/optimizer.safetensors",
]

each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.replace("_", " "))


@pytest.fixture(scope="module")
def saved(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left after step 8 of 12, saved at 3 and 6. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    train(tiny.tiny_trainer(config_of(tiny)), folder, steps=8)
    return folder


@pytest.fixture(scope="module")
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the same run when nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny.tiny_trainer(config_of(tiny)), folder)
    return files(folder)


def config_of(tiny: ModuleType, **changes: object) -> TrainConfig:
    config: TrainConfig = tiny.tiny_config(**{"steps": 12, "snapshot_every": 2, "ema": (0.05,), **changes})
    return config


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_files_of_the_matrix_are_those_of_a_checkpoint(saved: Path) -> None:
    newest = list_checkpoints(saved)[0]
    assert sorted(str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file()) == sorted(FILES)


@pytest.mark.parametrize("file", FILES)
@each_damage
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(
    folder: Path, file: str, damage: Callable[[Path], None]
) -> None:
    newest, previous = list_checkpoints(folder)
    damage(newest / file)
    # A changed bit of the manifest may also stand in what it says of another file, which is named then.
    named = r"[a-z.-]+" if (damage, file) == (one_bit_changed, "manifest.json") else file
    with pytest.warns(
        DamagedCheckpointWarning, match=rf"(?s)using the checkpoint {previous.name}.*{newest.name}/{named}"
    ):
        found = read_checkpoint(folder)
    expected = load_checkpoint(previous)
    assert (found.step, found.numbers) == (expected.step, expected.numbers)
    assert bits(found.tensors) == bits(expected.tensors)


@each_damage
def test_a_run_whose_checkpoint_is_damaged_ends_with_the_same_bits(
    tiny: ModuleType, folder: Path, whole: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    damage(list_checkpoints(folder)[0] / "model.safetensors")
    with pytest.warns(DamagedCheckpointWarning):
        train(tiny.tiny_trainer(config_of(tiny)), folder)
    assert files(folder) == whole


@each_damage
def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(
    tiny: ModuleType, folder: Path, damage: Callable[[Path], None]
) -> None:
    for path in list_checkpoints(folder):
        damage(path / "model.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"no whole checkpoint in .*\n.*step-00000006.*\n.*step-00000003"):
        train(tiny.tiny_trainer(config_of(tiny)), folder)


@each_damage
def test_a_damaged_snapshot_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    name = "step-00000004-ema-0.050.safetensors"
    damage(folder / "ema" / name)
    if damage is missing:  # one less to choose from
        assert {snapshot.time for snapshot in read_snapshots(folder)} == {16, 48, 64}
        return
    with pytest.raises(DamagedCheckpointError, match=name):
        _ = [dict(snapshot.tensors) for snapshot in read_snapshots(folder)]


# --- No room on the disk -------------------------------------------------------------------------------------------


@contextmanager
def no_room_for(ending: str) -> Iterator[None]:
    """Let forcing a file to the disk fail as it does on a full one, for files whose path ends like that."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if str(Path(f"/proc/self/fd/{handle}").readlink()).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="paths of handles are looked up in /proc")
@pytest.mark.parametrize(
    "file",
    [
        *(f".unfinished-step-00000009/{file}" for file in FILES),
        ".unfinished-step-00000009/state",  # the folder itself
        ".unfinished-step-00000009",
        "log.jsonl",
        ".unfinished-step-00000008-ema-0.050.safetensors",
        ".unfinished-.lock.json",
    ],
)
def test_a_full_disk_costs_nothing_that_was_saved(
    tiny: ModuleType, folder: Path, whole: dict[str, bytes], file: str
) -> None:
    before = {path.name: load_checkpoint(path) for path in list_checkpoints(folder)}
    trainer = tiny.tiny_trainer(config_of(tiny))
    with no_room_for(file), pytest.raises(SaveError) as caught:
        train(trainer, folder)
    told = str(caught.value)
    assert f"could not be written: {os.strerror(errno.ENOSPC)} (" in told
    assert "MiB are free); make room there. What was saved before is whole." in told
    assert list(folder.rglob(".unfinished-*")) == []
    after = {path.name: load_checkpoint(path) for path in list_checkpoints(folder)}
    assert {name: bits(state.tensors) for name, state in after.items()} == {
        name: bits(state.tensors) for name, state in before.items()
    }
    straight = tiny.tiny_trainer(config_of(tiny))
    for _ in range(trainer.index):
        straight.advance()
    if trainer.index:  # what was learned up to there is in memory still
        assert bits(trainer.state().tensors) == bits(straight.state().tensors)
    train(tiny.tiny_trainer(config_of(tiny)), folder)  # room was made
    assert files(folder) == whole


@pytest.fixture(scope="module")
def really_full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Runs that met a limit on the size of files, and a file system that was full; see full_disk_runner.py."""
    folder = tmp_path_factory.mktemp("full")
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
    own = shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    done = subprocess.run(
        [*(unshare if own else []), sys.executable, str(Path(__file__).with_name("full_disk_runner.py")), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it limits its children as Linux does")
@pytest.mark.parametrize(
    ("name", "number"), [("limit", errno.EFBIG), ("full", errno.ENOSPC)], ids=["limit on files", "file system"]
)
def test_a_disk_that_is_really_full(
    really_full: tuple[Path, dict[str, Any]], whole: dict[str, bytes], name: str, number: int
) -> None:
    folder, told = really_full
    if told[name] is None:
        pytest.skip("no file system can be mounted here")
    assert f"could not be written: {os.strerror(number)} (" in told[name]["error"]
    assert "make room there. What was saved before is whole." in told[name]["error"]
    assert told[name]["left"] == []
    assert files(folder / name) == whole  # resumed when there was room


# --- A run that is made longer or shorter --------------------------------------------------------------------------

DECAYS = [Constant(), Cosine(), Cosine(final=0.1), InverseSqrt(30), LinearToZero(), LinearToZero(begin=60)]


@pytest.mark.parametrize("done", [4, 10], ids=["from the middle", "from the end"])
@pytest.mark.parametrize("decay", DECAYS, ids=repr)
def test_a_longer_run_has_the_rates_of_its_length(tiny: ModuleType, tmp_path: Path, decay: Decay, done: int) -> None:
    optimizer = OptimizerConfig(lr=1e-2, warmup_examples=24, decay=decay)
    first = tiny.tiny_trainer(config_of(tiny, steps=10, optimizer=optimizer))
    if done == 10:
        train(first, tmp_path)
    else:
        for _ in range(done):
            first.advance()
        write_checkpoint(tmp_path, first.state())
    steps = train(tiny.tiny_trainer(config_of(tiny, steps=15, optimizer=optimizer)), tmp_path)
    assert [step.index for step in steps] == list(range(done + 1, 16))
    rates = [step.lr for step in steps]
    assert rates == [learning_rate(optimizer, step.examples - 4, 15 * 8) for step in steps]
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)  # it never rises again: no second warm-up
    assert all(step.applied for step in steps)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_is_not_made_shorter_than_it_is(tiny: ModuleType, folder: Path, steps: int) -> None:
    before = files(folder)
    with pytest.raises(
        ValueError, match=rf"expected at least the 6 steps that .* has done already, got {steps}; a run"
    ):
        train(tiny.tiny_trainer(config_of(tiny, steps=steps)), folder)
    assert files(folder) == before


def test_a_run_may_be_ended_where_it_is(tiny: ModuleType, folder: Path) -> None:
    assert train(tiny.tiny_trainer(config_of(tiny, steps=6)), folder) == []


# --- A checkpoint of somebody else ---------------------------------------------------------------------------------


class Bomb:
    """Leaves a mark on the disk when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def with_content(path: Path, content: bytes) -> None:
    """Replace a file of a checkpoint, and what its manifest says of it, as whoever wants to be believed would."""
    path.write_bytes(content)
    place = next(parent for parent in path.parents if (parent / "manifest.json").exists())
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][str(path.relative_to(place))] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("known", [False, True], ids=["manifest of before", "manifest that fits"])
@pytest.mark.parametrize("written", [torch.save, "pickle"], ids=["torch", "pickle"])
@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".safetensors")])
def test_a_pickle_bomb_is_named_and_does_not_go_off(
    tmp_path: Path, folder: Path, file: str, written: Any, known: bool
) -> None:
    mark, path = tmp_path / "mark", list_checkpoints(folder)[0] / file
    if written == "pickle":
        import pickle

        content = pickle.dumps(Bomb(mark))
        pickle.loads(content)
    else:
        written(Bomb(mark), tmp_path / "bomb")
        content = (tmp_path / "bomb").read_bytes()
        torch.load(tmp_path / "bomb", weights_only=False)
    assert mark.exists()  # it is live
    mark.unlink()
    with_content(path, content) if known else path.write_bytes(content)
    words = "is not a safetensors file" if known else "bytes; the manifest says"
    with pytest.warns(DamagedCheckpointWarning, match=rf"(?s){path.name}.* {words}"):
        assert read_checkpoint(folder).step == 3
    assert not mark.exists()


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["0.bias"]


FOREIGN: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "missing key": (drop, "missing: 0.bias"),
    "unexpected key": (lambda tensors: tensors.update(more=torch.zeros(1)), "unexpected: more"),
    "another shape": (lambda tensors: tensors.update({"0.bias": torch.zeros(3)}), r"expected float32 \(12,\), got"),
    "another dtype": (lambda tensors: tensors.update({"0.bias": torch.zeros(12).double()}), "got float64"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("group", ["model", "ema-0.050", "state/optimizer"])
def test_a_checkpoint_that_does_not_fit_is_listed_and_refused(
    tiny: ModuleType, folder: Path, group: str, kind: str
) -> None:
    change, words = FOREIGN[kind]
    state = read_checkpoint(folder)
    tensors = {name: dict(part) for name, part in state.tensors.items()}
    if group == "state/optimizer":
        tensors[group] = {name.replace("/exp_avg", ""): t for name, t in tensors[group].items()}
        words = "missing: 0.weight/exp_avg"
    else:
        change(tensors[group])
    write_checkpoint(folder, RunState(state.step, tensors, state.numbers))
    trainer = tiny.tiny_trainer(config_of(tiny))
    before, there = bits(trainer.state().tensors), files(folder)
    with pytest.raises(ValueError, match=rf"(?s)the saved {group} does not fit this network .*{words}"):
        train(trainer, folder)
    assert bits(trainer.state().tensors) == before
    assert files(folder) == there


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({**SETTINGS, "schedule": {"kind": "cosine", "shift": 3.0}}, "schedule.shift: 1.0 there, 3.0 here"),
        ({**SETTINGS, "schedule": {"kind": "vp"}}, "schedule.kind: 'cosine' there, 'vp' here"),
        ({**SETTINGS, "train": {"batch_size": 4}}, "train.batch_size: 8 there, 4 here"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_though_it_fits(
    tiny: ModuleType, folder: Path, settings: dict[str, object], told: str
) -> None:
    there = files(folder)
    with pytest.raises(ValueError, match=rf"(?s)is of a run with other settings.*\n  {told}$"):
        train(tiny.tiny_trainer(config_of(tiny)), folder, settings=settings)
    assert files(folder) == there


def test_settings_that_a_later_version_adds_are_no_difference(tiny: ModuleType, folder: Path) -> None:
    assert train(tiny.tiny_trainer(config_of(tiny)), folder, steps=1, settings={**SETTINGS, "new": {"flag": True}})


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch mark']",
        "!!python/object/new:pathlib.Path [mark]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_recipe_with_python_in_it_is_refused(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load(f"name: {tag}\n")
    assert list(tmp_path.iterdir()) == []


# --- Two trainers, and changed settings ----------------------------------------------------------------------------


def test_a_second_trainer_is_refused_and_changes_nothing(tiny: ModuleType, folder: Path) -> None:
    running = run_training(tiny.tiny_trainer(config_of(tiny)), folder, checkpoint_every=3, resume=True)
    next(running)
    before = files(folder)
    with pytest.raises(RunInUseError, match=rf"{folder} is being trained in already, by process {os.getpid()} on "):
        train(tiny.tiny_trainer(config_of(tiny)), folder)
    assert files(folder) == before
    assert next(running).index == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 8}, "the seed 7 of the saved run, got 8"),
        ({"ema": (0.05, 0.10)}, r"differing: \['ema-0.100'\]"),
        ({"ema": (0.10,)}, r"differing: \['ema-0.050', 'ema-0.100'\]"),
    ],
    ids=["seed", "one average more", "another average"],
)
def test_a_changed_setting_is_refused_and_named(
    tiny: ModuleType, folder: Path, change: dict[str, object], told: str
) -> None:
    before = files(folder)
    with pytest.raises(ValueError, match=told):
        train(tiny.tiny_trainer(replace(config_of(tiny), **change)), folder)
    assert files(folder) == before
