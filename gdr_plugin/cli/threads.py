"""How many threads our own programs compute with, and how these wait for each other. Host programs are left alone.

Torch starts a thread a core of the machine. In a container whose CPU quota is smaller, and wherever other work shares
the cores, OpenMP's threads then burn the time that they wait for each other: a minute's work takes an hour. OpenMP
reads its settings when it is loaded, so they are made before torch is.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

__all__ = ["cpu_quota", "settle_threads"]

_WAITING: Final = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
"""How long a thread that waits keeps its core before it sleeps, for GNU's and Intel's OpenMP: tens of microseconds and
a millisecond, where they would take milliseconds and 200. On two idle cores scoring took 27 s (25 s as they are, 29 s
without any), beside two busy loops 65 s (over 85 s as they are, 52 s without any)."""


def settle_threads(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set OpenMP's environment variables, unless the user has, or torch is loaded already.

    The number of threads is set only where the process may use less than the cores that it sees; elsewhere torch
    finds the best number itself. Threads that wait go to sleep soon.

    Args:
        environment: Where the variables are set.
        root: The file system in which quotas and cores are looked up.
    """
    if "torch" in sys.modules:
        return
    if "OMP_NUM_THREADS" not in environment:
        quota = cpu_quota(root)
        if quota is not None and quota < _cores(root):
            environment["OMP_NUM_THREADS"] = str(max(1, math.ceil(quota)))
    if not any(name in environment for name in ("OMP_WAIT_POLICY", *_WAITING)):
        environment.update(_WAITING)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many CPUs' time the process's control groups allow it; None without a limit.

    Args:
        root: The file system in which /proc and /sys are looked up.

    Source: the kernel's documentation of `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1).
    """
    found = []
    for folder in _groups(root):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            try:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            except OSError:
                continue
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the process's control groups and of all above them; in a container only the root is seen."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in ("0::/", "1:cpu:/", "1:cpu,cpuacct:/", *lines):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = base / controllers
        yield folder
        for part in Path(path).parts[1:]:
            folder = folder / part
            yield folder


def _cores(root: Path) -> int:
    """The physical cores among the CPUs that the process may run on: torch starts a thread for each."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)
