"""How many CPU cores this process may use, also inside a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's limit of processor time, with cgroup 2: microseconds of a period, and the period."""


def usable_cores(quota_file: Path = CPU_QUOTA) -> int:
    """CPU cores that this process may use: by its affinity, and by the limit of its container."""
    # Not on every system.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, math.ceil(int(quota) / int(period))))
