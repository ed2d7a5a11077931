import os
import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, sys
from unfog.memory import keep_memory
told = keep_memory() if sys.argv[1] == "keep" else False
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    block = b"x" * (256 << 20)
    del block
before = faults()
for _ in range(4):
    block = b"x" * (256 << 20)
    del block
print(told, faults() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")


def child(mode: str, **variables: str) -> tuple[bool, int]:
    """Return what ``keep_memory`` answered in a process, and how many pages it was given for blocks that came again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, mode],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    told, pages = done.stdout.split()
    return told == "True", int(pages)


@glibc
def test_memory_that_is_kept_is_not_given_anew() -> None:
    _, given = child("plain")
    told, kept = child("keep")
    assert told
    assert given > 4 * 256  # at least a page for each MiB of four blocks, however large pages are
    assert kept < given / 10


@glibc
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")]
)
def test_what_the_environment_says_is_left(name: str, value: str) -> None:
    told, given = child("keep", **{name: value})
    assert not told
    assert given > 4 * 256
