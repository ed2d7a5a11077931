"""Each check finds nothing on what is sound, and the fault that is planted for it."""

import importlib.metadata
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from unfog.cli import environment
from unfog.recipe.soundness import Finding, Outcome

Patch = pytest.MonkeyPatch


def outcomes(findings: list[Finding]) -> dict[str, Outcome]:
    return {finding.name: finding.outcome for finding in findings}


def test_this_environment_has_what_is_needed() -> None:
    assert outcomes(environment.check_versions())["versions"] is Outcome.PASS


@pytest.mark.parametrize("requirement", ["torch>=99", "no-such-package>=1"])
def test_a_package_that_is_too_old_or_missing_is_found(monkeypatch: Patch, requirement: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [requirement])
    finding = environment.check_versions()[0]
    assert finding.outcome is Outcome.FAIL
    assert requirement.split(">")[0] in finding.measured


def test_an_optional_package_that_is_missing_is_no_fault_but_told_of(monkeypatch: Patch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["no-such-package>=1; extra == 'data'"])
    versions, optional = environment.check_versions()
    assert versions.outcome is Outcome.PASS
    assert optional.measured == "no-such-package missing: pip install 'unfog[data]'"


def test_torch_without_its_library_is_found(monkeypatch: Patch) -> None:
    assert outcomes(environment.check_processor()) == {"processor": Outcome.PASS}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert outcomes(environment.check_processor()) == {"processor": Outcome.FAIL}


def test_a_driver_that_torch_does_not_see_is_found(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert outcomes(environment.check_accelerator()) == {"accelerator": Outcome.SKIP}
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert outcomes(environment.check_accelerator()) == {"accelerator": Outcome.FAIL}


def test_too_little_memory_is_found(monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda: 1000)
    assert outcomes(environment.check_memory(1000)) == {"memory": Outcome.PASS}
    assert outcomes(environment.check_memory(1001)) == {"memory": Outcome.FAIL}


def test_a_disk_is_tried_in_the_nearest_folder_that_is_there(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "WRITTEN", 1 << 16)
    monkeypatch.setattr(environment, "SLOWEST_DISK", 0.0)
    (finding,) = environment.check_disk(tmp_path / "runs" / "first", 1)
    assert finding.outcome is Outcome.PASS
    assert finding.measured.startswith(f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_full_a_slow_and_a_failing_disk_are_found(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "WRITTEN", 1 << 16)
    assert outcomes(environment.check_disk(tmp_path, 1 << 60)) == {"disk": Outcome.FAIL}
    clock = iter([0.0, 0.0, 10.0])
    with monkeypatch.context() as slow:
        slow.setattr(environment.time, "perf_counter", lambda: next(clock))
        assert outcomes(environment.check_disk(tmp_path, 1)) == {"disk": Outcome.FAIL}

    class Failing(io.BytesIO):
        def fileno(self) -> int:
            return 0

        def read(self, size: int | None = -1) -> bytes:
            return b"something else"

    monkeypatch.setattr(environment.tempfile, "TemporaryFile", lambda dir: Failing())  # noqa: A006
    monkeypatch.setattr(os, "fsync", lambda number: None)
    (finding,) = environment.check_disk(tmp_path, 1)
    assert (finding.outcome, finding.advice) == (Outcome.FAIL, "this disk is failing")


def test_folders_that_are_not_there_are_found(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.setenv("UNFOG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    assert set(outcomes(environment.check_folders("mine")).values()) == {Outcome.PASS}
    assert outcomes(environment.check_folders("other"))["data"] is Outcome.FAIL
    monkeypatch.setenv("UNFOG_DATA", os.pathsep.join([str(tmp_path / "data"), str(tmp_path / "gone")]))
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "file"))
    found = environment.check_folders()
    assert outcomes(found) == {"UNFOG_DATA": Outcome.FAIL, "cache": Outcome.FAIL}
    assert f"missing: {tmp_path / 'gone'}" in found[0].measured


def test_threads_need_cores_and_must_not_be_slower_than_one() -> None:
    judged = environment.judge_threads
    assert judged(4, 2, (), ()).outcome is Outcome.FAIL
    assert judged(1, 2, (), ()).outcome is Outcome.PASS
    assert judged(2, 2, [1.0, 1.0, 9.0], [0.6, 0.6, 0.6]).outcome is Outcome.PASS
    contended = judged(2, 2, [1.0, 1.0, 1.0], [0.5, 1.2, 1.3])
    assert contended.outcome is Outcome.FAIL
    assert "1.20 times as long" in contended.measured


def test_threads_are_left_as_they_were(monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (finding,) = environment.check_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "with 2 threads as with one" in finding.measured


def test_processes_must_agree_with_one() -> None:
    whole = environment._gradient(slice(None)).tolist()
    assert outcomes(environment.check_processes(lambda folder: whole)) == {"two processes": Outcome.PASS}
    half = environment._gradient(slice(4)).tolist()
    assert outcomes(environment.check_processes(lambda folder: half)) == {"two processes": Outcome.FAIL}


@pytest.mark.slow  # each starts two interpreters
def test_two_real_processes_agree_and_are_told_of_where_they_cannot_meet(monkeypatch: Patch) -> None:
    assert outcomes(environment.check_processes()) == {"two processes": Outcome.PASS}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface")
    with pytest.raises(RuntimeError, match="did not find each other"):
        environment.check_processes()
