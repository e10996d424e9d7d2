"""Profiles of small models, each made once a session and not timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autopar.graph import GraphProfile
from autopar.profiler import profile_task
from autopar.tasks import Task, resolve

BATCH = 4

Profiles = Callable[[str | Task], GraphProfile]


@pytest.fixture(scope="session")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Profiles:
    """``profiles(target)`` profiles a target string or a task on the catalogue's A100."""
    folder: Path = tmp_path_factory.mktemp("profiles")
    known: dict[str, GraphProfile] = {}

    def profile(task: str | Task) -> GraphProfile:
        key = task if isinstance(task, str) else task.name
        if key not in known:
            known[key] = profile_task(
                resolve(task) if isinstance(task, str) else task,
                batch=BATCH,
                device="a100-80gb-sxm",
                measure=False,
                cache_dir=folder,
            ).profile
        return known[key]

    return profile
