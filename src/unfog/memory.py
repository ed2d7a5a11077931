"""What a process does with memory that it frees."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The parameters' numbers in glibc's ``malloc.h``."""
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Variables by which a user sets the same."""


def keep_memory() -> bool:
    """Let this process keep the memory that it frees for what it needs next, as ``unfog`` on the command line does.

    The allocator of Linux (glibc) hands large blocks back to the system when they are freed, and a step of training on
    the CPU, which frees and needs the same gigabyte each time, gets every page of it anew and zeroed. Kept, they cost
    nothing: by the median three trainings took 3 to 13 % less processor time, though no gain is certain
    (docs/benchmarks.md), and the results are the same to the bit. In return the process stays as large as it ever was;
    its peak is no higher. Accelerators, whose memory is torch's own matter, gain nothing by it.

    Returns:
        Whether the allocator was told: not on other systems, under another allocator that has no ``mallopt``, or where
        the environment tells it something else (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, or either in
        ``GLIBC_TUNABLES``).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _OWN) or "trim_threshold" in tunables or "mmap_threshold" in tunables:
        return False
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks below 1 GiB come from the heap, and the heap never shrinks.
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, -1))
