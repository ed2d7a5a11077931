"""Several processes that train together; parallel_runner.py starts them, these tests look at what they brought out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from filelock import FileLock

from unfog.checkpoint import DamagedCheckpointError, DamagedCheckpointWarning, list_checkpoints, read_checkpoint
from unfog.training.log import TIMING, read_log
from unfog.training.parallel import World, joined

RUNNER = Path(__file__).with_name("parallel_runner.py")
SCENARIOS = ("reference", "equal-2", "equal-4", "together", "failing", "failing-one", "drawing", "checkpoints")
SCENARIOS += ("copies", "continued-1", "continued-2", "damaged", "networks-1", "networks-2", "command-2", "command-1")
SCENARIOS += ("undisturbed", "beside-1", "beside-2")
MODES = ("replicate", "shard")

Ran = tuple[Path, dict[str, Any]]


def run(folder: Path, *scenarios: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RUNNER), str(folder), *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The folder of all scenarios and what their processes returned, made once, by whichever worker comes first."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, answers = root / "parallel", root / "parallel.json"
    with FileLock(root / "parallel.lock"):
        if not answers.exists():
            folder.mkdir()
            answers.write_text(json.dumps(run(folder, *SCENARIOS)))
    return folder, json.loads(answers.read_text())


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [(10, 4, [(0, 3), (3, 6), (6, 8), (8, 10)]), (2, 3, [(0, 1), (1, 2), (2, 2)]), (5, 1, [(0, 5)])],
)
def test_parts_are_contiguous_and_as_equal_as_can_be(count: int, size: int, parts: list[tuple[int, int]]) -> None:
    assert [World(torch.device("cpu"), rank, size).part(count) for rank in range(size)] == parts


def test_without_torchrun_a_process_is_alone() -> None:
    world = World.of_environment({})
    assert (world.rank, world.size, world.backend, world.leads) == (0, 1, None, True)


def test_a_world_is_made_of_what_torchrun_says() -> None:
    numbers = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}
    world = World.of_environment({**numbers, "MASTER_ADDR": "here", "MASTER_PORT": "1"})
    assert (world.rank, world.size, world.local_rank, world.leads, world.restarts) == (5, 8, 1, False, True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LOCAL_RANK": None, "MASTER_PORT": None}, "missing LOCAL_RANK, MASTER_PORT"),
        ({"RANK": "first"}, "a whole number in RANK, got 'first'"),
        ({"RANK": "2"}, "rank < size of the world, got 0, 2 and 2"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(changed: dict[str, str | None], words: str) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1", **changed}
    with pytest.raises(ValueError, match=words):
        World.of_environment({name: value for name, value in whole.items() if value is not None})


def test_a_world_of_one_communicates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined() as world, world.in_turn():
        assert not torch.distributed.is_initialized()
        tensor = torch.ones(2)
        world.follow_(tensor)
        assert world.gathered(world.sum_(tensor), 2) is tensor
        assert (world.led(lambda: 3), world.everyone(4), world.largest(5)) == (3, [4], 5)


def test_what_processes_do_together(ran: Ran) -> None:
    answers = ran[1]["together"]
    assert [answer["everyone"] for answer in answers] == [[0, 1, 2, 3]] * 4
    assert {(answer["led"], answer["largest"], answer["sum"]) for answer in answers} == {(0, 3, 4.0)}
    assert [answer["followed"] for answer in answers] == [[[0.0, 0.0], 0, [[0.0, 0.0]]]] * 4


def test_parts_are_gathered_in_order_by_process_0_alone(ran: Ran) -> None:
    gathered = [answer["gathered"] for answer in ran[1]["together"]]
    assert gathered == [[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], None, None, None]


def test_the_first_process_of_each_machine_goes_ahead(ran: Ran) -> None:
    assert ran[1]["together"][0]["order"] == ["0", "0", "1", "1"]


def test_what_process_0_fails_at_ends_all(ran: Ran) -> None:
    first, *others = [answer["failure"] for answer in ran[1]["together"]]
    assert first == "FileExistsError: it is there"
    assert set(others) == {"LeaderError: process 0 failed for all: FileExistsError: it is there"}


def test_fewer_examples_than_processes_are_refused(ran: Ran) -> None:
    for answer in ran[1]["together"]:
        words = "expected a batch_size of at least 4, one example for each process, got 3"
        assert answer["refused"][0].startswith(words)


def test_compiling_what_is_sharded_is_refused(ran: Ran) -> None:
    for answer in ran[1]["together"]:
        assert answer["refused"][1].startswith("expected compile=False with parallel=shard")


def distance(folder: Path, one: str, two: str) -> dict[str, float]:
    """Return the largest difference between two states, by part; the task's counter is left out, for it counts what
    process 0 has seen."""
    first, second = (read_checkpoint(folder / name) for name in (one, two))
    assert (first.step, first.numbers) == (second.step, second.numbers)
    assert first.tensors.keys() == second.tensors.keys()
    found = {}
    for group in first.tensors.keys() - {"task"}:
        assert first.tensors[group].keys() == second.tensors[group].keys()
        pairs = [(tensor, second.tensors[group][name]) for name, tensor in first.tensors[group].items()]
        found[group] = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return found


STATE = {"model", "ema-0.050", "ema-0.100", "ema-decay-0.5", "state/optimizer"}


@pytest.mark.parametrize("micro", ["None", "2"])
@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_train_what_one_trains(ran: Ran, size: int, how: str, micro: str) -> None:
    # 10 examples over 4 processes are 3, 3, 2 and 2, in micro-batches of 2 that is 2, 2, 1 and 1 of them. In float64
    # what is left are sums in another order.
    found = distance(ran[0], "one-None", f"{size}-{how}-{micro}")
    assert found.keys() == STATE
    assert max(found.values()) < 1e-10


def test_micro_batches_in_one_process_change_nothing_either(ran: Ran) -> None:
    assert max(distance(ran[0], "one-None", "one-6").values()) < 1e-10


@pytest.mark.parametrize("name", [f"{size}-{how}-{micro}" for size in (2, 4) for how in MODES for micro in (None, 2)])
def test_all_processes_tell_the_loss_and_norm_of_the_whole_batch(ran: Ran, name: str) -> None:
    told = [answer[name] for answer in ran[1][f"equal-{name[0]}"]]
    assert all(answer == told[0] for answer in told)  # to the last bit, for decisions hang on them
    assert told[0]["loss"] == pytest.approx(ran[1]["reference"][0]["None"]["loss"], rel=1e-10)
    assert told[0]["norm"] == pytest.approx(ran[1]["reference"][0]["None"]["norm"], rel=1e-10)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_real_networks_have_the_gradients_of_one_process_in_float32(ran: Ran, kind: str) -> None:
    one, two = ran[1]["networks-1"][0][f"{kind}-replicate"], ran[1]["networks-2"][0][f"{kind}-shard"]
    assert one["gradients"].keys() == two["gradients"].keys()
    largest = max(abs(value) for values in one["gradients"].values() for value in values)
    for name, values in one["gradients"].items():
        # A few roundings (6e-8 each) of sums over 6 examples of 64 pixels, relative to the largest gradient: some
        # single ones are differences that all but vanish.
        assert two["gradients"][name] == pytest.approx(values, rel=0, abs=2e-6 * largest)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_real_networks_have_the_loss_curve_of_one_process_in_float32(ran: Ran, kind: str) -> None:
    one, two = ran[1]["networks-1"][0][f"{kind}-replicate"], ran[1]["networks-2"][0][f"{kind}-shard"]
    # Adam divides gradients by their own size, so where they all but vanish their rounding moves weights by up to the
    # rate, 1e-3; measured over 8 steps: 1.3e-7.
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["losses"][-1] != one["losses"][0]


@pytest.mark.parametrize("how", MODES)
def test_what_is_learned_beside_a_network_is_that_of_one_process(ran: Ran, how: str) -> None:
    one = ran[1]["beside-1"][0]["replicate"]
    answers = [answer[how] for answer in ran[1]["beside-2"]]
    # Both processes keep the same history to the last bit, or they would draw other times.
    assert answers[0]["history"] == answers[1]["history"]
    assert answers[0]["counts"] == answers[1]["counts"] == one["counts"]
    assert sum(one["counts"]) == 72
    for name in ("losses", "uncertainty"):
        # float32 sums in another order, over eight steps.
        assert answers[0][name] == pytest.approx(one[name], rel=1e-3, abs=1e-4)
    for level, expected in zip(answers[0]["history"], one["history"], strict=True):
        assert level == pytest.approx(expected, rel=1e-3)


def test_the_blocks_of_networks_are_found(ran: Ran) -> None:
    blocks = {name: answer["blocks"] for name, answer in ran[1]["networks-2"][0].items()}
    # Down and up one and two residual blocks a level of two, two in the middle; a transformer's two.
    assert blocks == {"unet-shard": 2 + 4 + 2, "dit-shard": 2}


@pytest.mark.parametrize("how", MODES)
def test_a_loss_that_is_not_finite_in_one_process_is_applied_in_none(ran: Ran, how: str) -> None:
    answers = [answer[how] for answer in ran[1]["failing"]]
    assert [answer["applied"] for answer in answers] == [[True, False, True, True]] * 2
    alone = ran[1]["failing-one"][0]["losses"]
    assert [answer["losses"] for answer in answers] == [pytest.approx(alone, rel=1e-10)] * 2


@pytest.mark.parametrize("how", MODES)
def test_all_processes_tell_the_failure_that_one_of_them_found(ran: Ran, how: str) -> None:
    expected = ran[1]["failing-one"][0]["failure"]
    assert len(expected["examples"]) == 1
    assert [answer[how]["failures"] for answer in ran[1]["failing"]] == [[expected]] * 2


@pytest.mark.parametrize("how", MODES)
def test_a_signal_to_one_process_stops_all_after_the_same_step_saved(ran: Ran, how: str) -> None:
    answers = [answer[how] for answer in ran[1]["failing"]]
    assert [(answer["index"], answer["signal"]) for answer in answers] == [(4, 15), (4, 15)]
    assert list_checkpoints(ran[0] / f"failing-{how}")[0].name == "step-00000004"


@pytest.mark.parametrize("how", MODES)
def test_a_stopped_run_holds_what_one_process_would_hold(ran: Ran, how: str) -> None:
    assert max(distance(ran[0], "failing-one", f"failing-{how}").values()) < 1e-10


def test_dropout_repeats_itself_and_differs_between_processes(ran: Ran) -> None:
    one, two = (answer["masks"] for answer in ran[1]["drawing"])
    assert one[0] == one[1]
    assert two[0] == two[1]
    drawn = [str(mask[0]) for masks in (one, two) for mask in masks[0]]
    assert len(set(drawn)) == len(drawn) == 8  # two steps of two micro-batches in each process


def test_buffers_are_those_of_process_0(ran: Ran) -> None:
    one, two = (answer["buffers"] for answer in ran[1]["drawing"])
    assert one == two
    assert one["seen"] == 8  # its half of two batches of 8


def test_a_sharded_checkpoint_is_read_by_one_process_bit_for_bit(ran: Ran) -> None:
    told = ran[1]["checkpoints"][0]
    assert told == {"equal": [], "numbers": True}


def test_each_process_writes_its_share_and_nothing_is_pickled(ran: Ran) -> None:
    files = {path.name for path in list_checkpoints(ran[0] / "sharded")[0].rglob("*") if path.is_file()}
    shards = {f"{part}.shard-0000{rank}.safetensors" for part in ("model", "optimizer") for rank in range(4)}
    assert shards <= files
    assert {name.rpartition(".")[2] for name in files} == {"safetensors", "json"}


def test_snapshots_of_sharded_averages_are_whole(ran: Ran) -> None:
    paths = sorted((ran[0] / "sharded" / "ema").iterdir())
    assert [path.name for path in paths] == [
        f"step-{step:08d}-ema-{length}.safetensors" for step in (5, 10) for length in ("0.050", "0.100")
    ]


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("size", [1, 2])
def test_a_sharded_run_goes_on_with_another_number_of_processes_and_mode(ran: Ran, size: int, how: str) -> None:
    assert max(distance(ran[0], "one-None", f"continued-{size}-{how}").values()) < 1e-10


def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used_by_all(ran: Ran) -> None:
    for answer in ran[1]["damaged"]:
        assert answer["index"] == 5
        assert len(answer["told"]) == 1
        assert "step-00000010/model.shard-00001.safetensors does not have the SHA-256" in answer["told"][0]


def test_another_seed_is_refused_by_all_processes(ran: Ran) -> None:
    for answer in ran[1]["damaged"]:
        assert answer["refused"].startswith("expected the seed 7 of the saved run, got 8")


def test_one_process_too_falls_back_from_a_damaged_shard(ran: Ran) -> None:
    with pytest.warns(DamagedCheckpointWarning, match=r"model\.shard-00001"):
        assert read_checkpoint(ran[0] / "broken", ["model"]).step == 5


def test_a_shard_that_no_manifest_lists_any_more_is_missed(ran: Ran, tmp_path: Path) -> None:
    source = list_checkpoints(ran[0] / "sharded")[0]
    target = tmp_path / "checkpoints" / source.name
    target.mkdir(parents=True)
    manifest = json.loads((source / "manifest.json").read_text())
    del manifest["files"]["model.shard-00002.safetensors"]
    for name in ("state.json", *(name for name in manifest["files"] if name.startswith("model"))):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match=r"lacks pieces of model: .*conv\.weight"):
        read_checkpoint(tmp_path, ["model"])


def test_commands_of_several_processes_end_alike_and_one_of_them_speaks(ran: Ran) -> None:
    first, second = ran[1]["command-2"]
    assert first["ends"] == [0, 2, 0]
    assert second["ends"] == [0, 1, 0]
    assert "step 6/6" in first["told"]
    assert "digits holds a run already: continue a run with --resume" in first["told"]
    assert second["told"] == ""


def test_samples_are_the_same_files_however_many_processes_draw_them(ran: Ran, tiny: ModuleType) -> None:
    one, two = (tiny.read_folder(ran[0] / f"samples-{size}") for size in (1, 2))
    assert sorted(one) == ["000000.png", "000001.png", "000002.png", "000003.png", "000004.png", "grid.png"]
    assert one == two


def same_run(tiny: ModuleType, one: Path, two: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        found, expected = (tiny.read_folder(folder / part) for folder in (one, two))
        assert expected
        assert found.keys() == expected.keys()
        assert [path for path in found if found[path] != expected[path]] == []
    logs = [
        [{k: v for k, v in line.items() if k not in TIMING} for line in read_log(folder / "log.jsonl")]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]


def test_torchrun_restarts_a_run_after_a_killed_process_and_it_ends_with_the_same_bits(
    ran: Ran, tmp_path: Path, tiny: ModuleType
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(RUNNER), "--worker", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "exitcode: -9" in done.stderr  # it was killed, and did not just run through
    same_run(tiny, tmp_path / "elastic", ran[0] / "plain", ("checkpoints",))


@pytest.mark.slow
@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize(("size", "kills"), [(2, 10), (4, 3)])
def test_runs_that_are_killed_at_random_end_with_the_same_bits(
    tmp_path: Path, tiny: ModuleType, how: str, size: int, kills: int
) -> None:
    name = f"killed-{how}-{size}-{kills}"
    assert run(tmp_path, name)[name]["kills"] == kills
    same_run(tiny, tmp_path / f"killed-{how}", tmp_path / f"plain-{how}", ("checkpoints", "ema"))


@pytest.mark.slow
def test_an_evaluation_has_the_same_scores_however_many_processes_draw(tmp_path: Path) -> None:
    answers = run(tmp_path, "command-2", "evaluation-2", "evaluation-1")
    assert [answer["end"] for answer in answers["evaluation-2"]] == [0, 0]
    assert answers["evaluation-2"][0]["scores"] == answers["evaluation-1"][0]["scores"]
