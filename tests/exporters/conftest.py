"""Real plans, made by the planner from traced models, for a catalogue cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

import autopar
from autopar.graph import GraphProfile
from autopar.results import SearchResult

GPT = "zoo:gpt?layers=6&hidden=32&heads=2&seq=2048&vocab=64"
PLANS: dict[str, tuple[str, str, dict[str, object]]] = {
    "dp": ("gpt", "1x4:a100-80gb-sxm", {"fix": ["dp_replicate=4"]}),
    "fsdp": (
        "gpt",
        "1x4:a100-80gb-sxm",
        {"fix": ["dp_shard=4", "zero=3", "recompute=full"], "precision": "float16"},
    ),
    "hsdp": ("gpt", "2x2:a100-80gb-sxm", {"fix": ["dp_shard=2", "dp_replicate=2", "zero=2"]}),
    "tp-pp": ("gpt", "2x4:a100-80gb-sxm", {"fix": ["tp=2", "pp=4", "schedule=1f1b"]}),
    "interleaved": ("gpt", "1x2:a100-80gb-sxm", {"fix": ["pp=2", "schedule=interleaved"]}),
    "dp-tp": ("gpt", "2x2:a100-80gb-sxm", {"fix": ["tp=2", "dp_replicate=2"]}),
    "ps-stale": (
        "gpt",
        "1x4:a100-80gb-sxm",
        {"sync": "ps_stale:4", "objective": "time-to-target", "fix": ["dp_replicate=4"]},
    ),
    "cp": ("gpt", "1x2:a100-80gb-sxm", {"fix": ["cp=2"]}),
    "ep": ("moe", "1x4:a100-80gb-sxm", {"fix": ["ep=2"]}),
    "zbv": (
        "gpt",
        "1x2:a100-80gb-sxm",
        {"fix": ["pp=2", "schedule=zbv", "microbatches=8", "recompute=selective"]},
    ),
}
"""Name -> model, cluster, options of the search."""


@pytest.fixture(scope="session")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GraphProfile]:
    folder: Path = tmp_path_factory.mktemp("profiles")
    targets = {"gpt": GPT, "moe": "zoo:moe?size=small"}
    return {
        name: autopar.profile(target, device="a100-80gb-sxm", out=folder / f"{name}.json")
        for name, target in targets.items()
    }


@pytest.fixture(scope="session")
def searches(profiles: dict[str, GraphProfile]) -> dict[str, SearchResult]:
    return {
        name: autopar.plan(profiles[model], cluster, global_batch=16, top=3, **options)
        for name, (model, cluster, options) in PLANS.items()
    }
