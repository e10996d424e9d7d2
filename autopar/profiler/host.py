"""What this host has: processor, cores and memory, as far as this process may use them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from autopar.cluster.parse import usable_processors

_CGROUP = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """The processor's model name, e.g. ``Intel(R) Xeon(R) Platinum 8481C CPU``."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model", "cpu model"} and value.strip():
                return value.strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def usable_cores() -> int:
    """Cores this process may keep busy: its affinity, cut by a cgroup quota (rounded down)."""
    cores = usable_processors()
    quota = _cpu_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def memory_bytes() -> int:
    """Memory this process may use: the host's, cut by a cgroup limit."""
    total = int(psutil.virtual_memory().total)
    limits = _read_all("memory.max", "memory/memory.limit_in_bytes")
    return min([total, *(int(text) for text in limits if text.isdigit() and int(text) > 0)])


def _cpu_quota() -> float | None:
    quotas = []
    for text in _read_all("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    for quota, period in zip(
        _read_all("cpu/cpu.cfs_quota_us"), _read_all("cpu/cpu.cfs_period_us"), strict=False
    ):
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _read_all(*names: str) -> list[str]:
    """Contents of control files of this process's cgroup and its parents, innermost first."""
    found = []
    for name in names:
        controller, _, file = name.rpartition("/")
        folder = _CGROUP / controller
        inner = folder / _own_group(controller)
        for place in (inner, *inner.parents):
            path = place / file
            if place.is_relative_to(folder) and path.is_file():
                found.append(path.read_text(encoding="ascii").strip())
    return found


def _own_group(controller: str) -> str:
    """Path of this process's cgroup below the mount (v2, or a v1 controller)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or (not controller and not controllers):
            return os.path.normpath(path).lstrip("/")
    return ""
