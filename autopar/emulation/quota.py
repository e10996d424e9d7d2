"""CPU time of an emulated host: a control group with a quota, of either version."""

from __future__ import annotations

import os
import time
from pathlib import Path

from autopar.core.errors import EnvironmentUnableError

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000
"""Long enough for a twentieth of a core: the kernel ignores quotas below 1 ms."""
LEAST_QUOTA_US = 1_000


def _first_version() -> bool:
    return (ROOT / "cpu" / "cpu.cfs_quota_us").is_file() or (ROOT / "cpu").is_dir()


def group_folder(host: str) -> Path:
    """The control group of a host."""
    return (ROOT / "cpu" if _first_version() else ROOT) / f"autopar-{host}"


def make_group(host: str, cores: float) -> None:
    """Make the group of a host.

    Raises:
        EnvironmentUnableError: Control groups are not there or cannot be written.
    """
    quota = max(LEAST_QUOTA_US, round(cores * PERIOD_US))
    folder = group_folder(host)
    try:
        if not _first_version():
            (ROOT / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir(exist_ok=True)
        if _first_version():
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    except OSError as error:
        raise EnvironmentUnableError(
            f"cannot limit the CPU time of host {host}: {error}",
            hint="leave --quota out, or run where control groups can be written",
        ) from error


def enter_group(host: str) -> None:
    """Put this process into the group of a host, if it has one."""
    members = group_folder(host) / "cgroup.procs"
    if members.is_file():
        members.write_text(str(os.getpid()))


def remove_group(host: str) -> None:
    """Remove the group of a host; its last processes may take a moment to leave."""
    folder = group_folder(host)
    for _ in range(20):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
