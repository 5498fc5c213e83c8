"""Number of processors that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_processors(root: Path = Path("/")) -> int:
    """Processors that the affinity of this process and the quotas of its control groups leave to it, at least
    one.

    Args:
        root: of the file system where the kernel tells them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(math.floor, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Processors that each control group of this process, or above it, may use, where it is limited.

    In a container the mounted folder may begin at the container's own group, so that the path that is told
    has no folder there; that group is then the mounted folder itself.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no control groups
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        folder = mounted / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(mounted) and (quota := _quota(place)) is not None:
                yield quota


def _quota(group: Path) -> float | None:
    """Processors that one control group may use; None if it has no limit.

    Version 2 has a file of the microseconds in each period, or "max", and of the period; version 1 has a file
    for each, and -1 for no limit.
    """
    try:
        if (group / "cpu.max").exists():
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            allowed, period = ((group / f"cpu.cfs_{of}_us").read_text() for of in ("quota", "period"))
        return int(allowed) / int(period) if int(allowed) > 0 else None
    except (OSError, ValueError):
        return None
