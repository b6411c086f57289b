"""How many threads pay."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Physical cores that this process may use: its CPU affinity without the second threads of a core, and no more
    than its control group's quota."""
    cpus: set[int] = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()
    if not cpus:
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(len(cores))))


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cores: int) -> int:
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return cores if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return cores
