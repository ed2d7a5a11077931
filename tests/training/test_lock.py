import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unfog.training.lock import HOLDER, LOCK, RunInUseError, RunLock

HOLD = """
import sys, time
from pathlib import Path
from unfog.training.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RunInUseError) as caught:
        RunLock(tmp_path)
    assert f"{tmp_path} is being trained in already, by process {os.getpid()} on {socket.gethostname()}: wait" in str(
        caught.value
    )


def test_the_lock_is_free_again_after_its_context(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        pass
    assert not (tmp_path / HOLDER).exists()
    with RunLock(tmp_path):
        pass


def test_folders_do_not_lock_each_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with RunLock(tmp_path), RunLock(tmp_path / "other"):
        pass


def test_a_holder_that_cannot_be_read_still_keeps_others_out(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / HOLDER).write_text("{")
        with pytest.raises(RunInUseError, match="by another process: wait"):
            RunLock(tmp_path)


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunInUseError, match=f"by process {process.pid} on "):
        RunLock(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / HOLDER).exists()  # nobody cleaned up
    with RunLock(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_a_lock_that_cannot_say_who_holds_it_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / HOLDER).mkdir()  # which no file can replace
    with pytest.raises(OSError, match=HOLDER):
        RunLock(tmp_path)
    (tmp_path / HOLDER).rmdir()
    with RunLock(tmp_path):
        pass
