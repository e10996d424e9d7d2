"""Tensor parallel plans compute what one process computes, and send what the planner prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest

from autopar.plans import Mesh
from autopar.tasks import Task

ZOO = ["mlp", "gpt", "bert", "llama", "transformer", "vit", "moe", "resnet50"]


def small(name: str) -> Task:
    pytest.importorskip("transformers")
    return helpers.shallow(name)


def verified(task: Task, out: Path, mesh: Mesh, **changes: Any) -> Any:
    plan = helpers.make_plan(task, mesh=mesh, **changes)
    record = helpers.run(plan, task, out, verify=True, steps=1, warmup=0, timeout_s=120.0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    return record


@pytest.mark.parametrize("name", ZOO)
def test_zoo_model_over_two_ranks(name: str, tmp_path: Path) -> None:
    record = verified(small(name), tmp_path, Mesh(tp=2), microbatches=2)
    assert not [text for text in record.warnings if text.startswith("tp:")], record.warnings


SHAPES: dict[str, tuple[Mesh, dict[str, Any]]] = {
    "dp2 tp2": (Mesh(dp_replicate=2, tp=2), {"clip_norm": 0.05, "microbatches": 2}),
    "tp2 pp2": (Mesh(tp=2, pp=2), {"clip_norm": 0.05}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["gpt", "resnet50"])
def test_with_replicas_and_stages(name: str, shape: str, tmp_path: Path) -> None:
    mesh, changes = SHAPES[shape]
    verified(small(name), tmp_path, mesh, **changes)
