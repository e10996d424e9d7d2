"""Where results go when the user names no file."""

from __future__ import annotations

import re
from pathlib import Path

from autopar.core.io import content_hash

PROFILES = Path("profiles")
REPORTS = Path("reports")


def slug(text: str) -> str:
    """A safe file-name part: letters, digits, dot and dash, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "unnamed"


def profile_path(name: str, target: str | None, batch: int, device: str) -> Path:
    """Default place of a profile: name, a hash of the target's options, batch and device."""
    mark = content_hash(target)[:6]
    return PROFILES / f"{slug(name)}-{mark}-b{batch}-{slug(device)}.json"


def cluster_path(name: str) -> Path:
    """Default place of a measured cluster."""
    return PROFILES / f"cluster-{slug(name)}.json"


def convergence_path(name: str, key: str, ranks: int) -> Path:
    """Default place of the steps multipliers measured on a task with a number of ranks."""
    return PROFILES / f"convergence-{slug(name)}-{key}-r{ranks}.json"


def convergence_paths(key: str) -> list[Path]:
    """The files of all numbers of ranks that a task was probed with."""
    return sorted(PROFILES.glob(f"convergence-*-{key}-r*.json"))


def run_folder(task: str, plan_name: str, plan_hash: str) -> Path:
    """A fresh run folder under ``reports/``; numbered when the plan ran before."""
    return _fresh(REPORTS / f"run-{slug(task)}-{slug(plan_name)}-{plan_hash[:6]}")


def bench_folder(task: str, plan_hashes: list[str], parent: Path = REPORTS) -> Path:
    """A fresh folder for the runs of a bench; numbered when the same plans were benched before."""
    return _fresh(parent / f"bench-{slug(task)}-{content_hash(plan_hashes)[:6]}")


def _fresh(base: Path) -> Path:
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
