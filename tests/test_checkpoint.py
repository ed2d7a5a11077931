import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from unfog.checkpoint import (
    DamagedCheckpointError,
    DamagedCheckpointWarning,
    RunState,
    StoredTensors,
    discard_checkpoints_after,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    require_same_tensors,
    write_checkpoint,
    write_tensors,
)

FILES = ["model.safetensors", "ema-0.050.safetensors", "state/optimizer.safetensors", "state.json", "manifest.json"]


def state(step: int) -> RunState:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    tensors = {
        "model": {"weight": weight, "count": torch.tensor(step), "half": weight.to(torch.bfloat16)},
        "ema-0.050": {"weight": weight / 2},
        "state/optimizer": {"weight/exp_avg": weight.T.contiguous()},
        "empty": {},
    }
    return RunState(step, tensors, {"examples": 8 * step, "seed": 2**63 - 1, "ema_time": {"model": step}})


def assert_equal(one: RunState, two: RunState) -> None:
    assert (one.step, one.numbers) == (two.step, two.numbers)
    assert one.tensors.keys() == two.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[group].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == two.tensors[group][name].dtype
            assert torch.equal(tensor, two.tensors[group][name])


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_last_byte(path: Path) -> None:
    flip_bit(path, -2)  # the very last byte of JSON is a brace; this one counts in every file


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(3))
    assert_equal(read_checkpoint(tmp_path), state(3))


def test_tensors_that_are_not_contiguous_are_written_by_value(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path, RunState(1, {"model": {"weight": weight}}, {}))
    assert torch.equal(read_checkpoint(tmp_path).tensors["model"]["weight"], weight)


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(3))
    assert {p.suffix for p in path.rglob("*") if p.is_file()} == {".safetensors", ".json"}


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100_000_000):
        write_checkpoint(tmp_path, state(step))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-100000000", "step-00000010"]


@pytest.mark.parametrize("damage", [truncate, flip_last_byte, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path: Path, file: str, damage) -> None:
    write_checkpoint(tmp_path, state(2))
    damage(write_checkpoint(tmp_path, state(4)) / file)
    with pytest.warns(DamagedCheckpointWarning, match=rf"(?s)step-00000002.*step-00000004/{file}"):
        found = read_checkpoint(tmp_path)
    assert_equal(found, state(2))


@pytest.mark.parametrize("file", FILES)
def test_no_flipped_bit_is_ever_read_as_something_else(tmp_path: Path, file: str) -> None:
    path = write_checkpoint(tmp_path, state(4))
    whole = (path / file).read_bytes()
    for position in range(len(whole)):
        flip_bit(path / file, position, position % 8)
        try:
            found = load_checkpoint(path)
        except DamagedCheckpointError:
            pass
        else:  # only white space of the manifest may change without harm
            assert_equal(found, state(4))
        (path / file).write_bytes(whole)


def test_damaged_checkpoints_alone_are_refused(tmp_path: Path) -> None:
    truncate(write_checkpoint(tmp_path, state(2)) / "model.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"no whole checkpoint.*\n.*model.safetensors has"):
        read_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        read_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state(2))
    count = 0

    def fail_at_third(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail_at_third)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(tmp_path, state(4))
    assert_equal(read_checkpoint(tmp_path), state(2))


def test_what_an_unfinished_write_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".unfinished-step-00000009"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    write_checkpoint(tmp_path, state(2))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_checkpoint_of_a_step_can_be_written_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(2))
    truncate(write_checkpoint(tmp_path, state(4)) / "model.safetensors")
    write_checkpoint(tmp_path, state(4))
    assert_equal(read_checkpoint(tmp_path), state(4))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000002"]


def test_a_checkpoint_that_was_being_replaced_is_still_found(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(4))
    path.rename(path.with_name(f"{path.name}-replaced"))
    assert_equal(read_checkpoint(tmp_path), state(4))


def test_later_checkpoints_can_be_discarded(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, state(step), keep=3)
    discard_checkpoints_after(tmp_path, 4)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000002"]


def test_one_part_can_be_read_without_the_others(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(4))
    truncate(path / "state/optimizer.safetensors")
    with warnings.catch_warnings(action="error"):
        found = read_checkpoint(tmp_path, ["ema-0.050"])
    assert list(found.tensors) == ["ema-0.050"]


def test_an_unknown_part_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(4))
    with pytest.raises(ValueError, match=r"ema-0.050, empty, model, state/optimizer; got 'ema-0.100'"):
        read_checkpoint(tmp_path, ["ema-0.100"])


def test_a_part_cannot_be_named_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="named like a file"):
        write_checkpoint(tmp_path, RunState(1, {"../model": {}}, {}))


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(4))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret.safetensors"] = {"bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match="which no checkpoint holds"):
        load_checkpoint(path)


def test_every_key_that_does_not_fit_is_listed() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1)}
    found = {"b": torch.zeros(4), "c": torch.zeros(1).double(), "d": torch.zeros(1), "e": torch.zeros(1)}
    with pytest.raises(ValueError, match="4 differences") as caught:
        require_same_tensors(expected, found, "model")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: a",
        "  unexpected: e",
        "  b: expected float32 (3,), got float32 (4,)",
        "  c: expected float32 (1,), got float64 (1,)",
    ]


def test_stored_tensors_are_read_by_name_with_their_metadata(tmp_path: Path) -> None:
    weight = torch.randn(3)
    write_tensors(tmp_path / "ema" / "a.safetensors", {"weight": weight}, {"time": "12"})
    stored = StoredTensors(tmp_path / "ema" / "a.safetensors")
    assert (list(stored), stored.metadata) == (["weight"], {"time": "12"})
    assert torch.equal(stored["weight"], weight)


def test_a_stored_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"weight": torch.randn(3)}, {})
    truncate(tmp_path / "a.safetensors")
    with pytest.raises(DamagedCheckpointError, match="not a whole safetensors file"):
        StoredTensors(tmp_path / "a.safetensors")
