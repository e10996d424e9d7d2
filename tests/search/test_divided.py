"""Axes that divide ops, in the space of what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopar.profiler import profile_task
from autopar.search import SearchOptions
from autopar.search.space.build import build_space
from autopar.tasks.resolve import resolve

from .builders import a100_cluster


def test_sequences_and_columns_are_divided_at_once(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task = resolve("zoo:gpt?layers=1&hidden=64&heads=4&vocab=256&seq=1024")
    profile = profile_task(
        task, batch=1, device="a100-80gb-sxm", measure=False, cache_dir=tmp_path
    ).profile
    options = SearchOptions(global_batch=8, space="runnable")
    space = build_space(profile, a100_cluster(1), options)
    both = [group for group in space.groups if group.cp > 1 and group.tp > 1]
    assert {(group.cp, group.tp) for group in both} == {(2, 2), (2, 4), (4, 2)}
    assert any(group.sequence_parallel for group in both)
