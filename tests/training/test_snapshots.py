import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unfog.checkpoint import DamagedCheckpointError, StoredTensors, write_tensors
from unfog.training.ema import reconstruct
from unfog.training.snapshots import discard_snapshots_after, read_snapshots, write_snapshots

FILE = "ema/step-00000001-ema-0.050.safetensors"


@pytest.fixture
def folder(tiny: ModuleType, tmp_path: Path) -> Path:
    """A folder with the averages of two steps."""
    trainer = tiny.tiny_trainer()
    for _ in range(2):
        trainer.advance()
        write_snapshots(tmp_path, trainer)
    return tmp_path


def read_all(folder: Path) -> None:
    for snapshot in read_snapshots(folder):
        for name in snapshot.tensors:
            snapshot.tensors[name]


def test_what_is_read_equals_what_was_written(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer()
    trainer.advance()
    write_snapshots(tmp_path, trainer)
    snapshots = read_snapshots(tmp_path)
    assert [(snapshot.sigma_rel, snapshot.time) for snapshot in snapshots] == [(0.05, 8), (0.10, 8)]
    weights = trainer.averages["model"].weights(0.05)
    assert set(snapshots[0].tensors) == set(weights)
    assert len(snapshots[0].tensors) == len(weights)
    assert all(torch.equal(snapshots[0].tensors[name], weights[name]) for name in weights)


def test_later_snapshots_can_be_discarded(folder: Path) -> None:
    discard_snapshots_after(folder, 1)
    assert {snapshot.time for snapshot in read_snapshots(folder)} == {8}


def test_no_flipped_bit_is_ever_read_as_something_else(folder: Path) -> None:
    path = folder / FILE
    whole = path.read_bytes()
    before = {name: tensor.clone() for name, tensor in read_snapshots(folder)[0].tensors.items()}
    # Every fifth byte of the header, and then some of the values.
    for position in [*range(0, 2500, 5), *range(2500, len(whole), 61)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = read_snapshots(folder)[0]
            tensors = dict(found.tensors)
        except DamagedCheckpointError:
            continue
        # Only the white space of the header may change without harm.
        assert (found.sigma_rel, found.time) == (0.05, 8)
        assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_changed_value_is_named_when_it_is_read(folder: Path) -> None:
    content = bytearray((folder / FILE).read_bytes())
    content[-1] ^= 1
    (folder / FILE).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=rf"{FILE}: '.*' does not have the SHA-256"):
        reconstruct(read_snapshots(folder), 0.07)


def test_a_changed_description_is_named(folder: Path) -> None:
    stored = StoredTensors(folder / FILE)
    entry = json.loads(stored.metadata["unfog"])
    entry["about"]["time"] = 16
    write_tensors(folder / FILE, dict(stored), {"unfog": json.dumps(entry)})
    with pytest.raises(DamagedCheckpointError, match=rf"{FILE} does not hold what it says"):
        read_snapshots(folder)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    stored = StoredTensors(folder / FILE)
    write_tensors(folder / FILE, {**stored, "more": torch.zeros(1)}, stored.metadata)
    with pytest.raises(DamagedCheckpointError, match=rf"{FILE} does not hold what it says"):
        read_snapshots(folder)


@pytest.mark.parametrize("metadata", [{}, {"unfog": "{"}, {"unfog": "{}"}, {"unfog": "3"}])
def test_a_file_of_something_else_is_named(folder: Path, metadata: dict[str, str]) -> None:
    write_tensors(folder / FILE, {"weight": torch.zeros(1)}, metadata)
    with pytest.raises(DamagedCheckpointError, match=rf"{FILE} does not say what it is an average of"):
        read_snapshots(folder)


def test_a_file_that_is_cut_short_is_named(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=rf"{FILE} is not a whole safetensors file"):
        read_all(folder)
