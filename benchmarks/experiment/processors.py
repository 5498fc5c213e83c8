"""Number of processors that this process may use."""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, by version 2 of control groups: microseconds of processor time in each period, or "max"."""


def available_processors(quota: Path = _QUOTA) -> int:
    """Processors that the affinity of this process and its container's quota leave to it, at least one.

    Args:
        quota: file of the container's limit.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        limit = affinity if allowed == "max" else math.floor(int(allowed) / int(period))
    except (OSError, ValueError):  # no container, or an older kind of control groups
        limit = affinity
    return max(1, min(affinity, limit))
