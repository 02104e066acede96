"""How many processors this process may use, and settings of threads for a machine that others use too."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/cpu.max")
"""Quota of the group that the process is in: microseconds of a period, or max, and the period."""
THREADS, WAITING = "OMP_NUM_THREADS", {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Variables that OpenMP reads as it starts: most threads; and to sleep, not to spin, until all have come."""


def usable(quota: Path = CGROUP) -> int:
    """Processors that the system lets this process run on, as far as its quota lets it use them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
        return allowed if limit == "max" else max(1, min(allowed, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return allowed


def set_threads() -> None:
    """Set what OpenMP reads, for this process and those that it starts. Settings of the user win."""
    if THREADS not in os.environ and usable() < (os.cpu_count() or 1):
        os.environ[THREADS] = str(usable())
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
