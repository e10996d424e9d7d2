"""Shared-out weights must train as whole ones do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.tasks import Task
from autopar.trace import TracedTask

TASKS: dict[str, Callable[[], Task]] = {
    "mlp": models.mlp,
    "knotted": models.knotted,
    "unet": models.unet,
}


@pytest.fixture(scope="module")
def traces() -> dict[str, TracedTask]:
    return {name: helpers.traced_of(make()) for name, make in TASKS.items()}


SHAPES: dict[str, dict[str, Any]] = {
    "zero1": {"zero": 1, "microbatches": 3, "units": 3},
    "zero2": {"zero": 2, "microbatches": 3, "units": 3},
    "zero3": {"zero": 3, "microbatches": 3, "units": 3, "clip_norm": 0.05},
    "zero3 one unit": {"zero": 3},
    "zero2 replicas": {"zero": 2, "dp": 2, "microbatches": 2, "units": 2},
    "zero1 pp2": {"zero": 1, "pp": 2, "units": 2, "clip_norm": 0.05},
    "zero3 pp2": {"zero": 3, "pp": 2, "units": 2, "clip_norm": 0.05},
    "zero2 interleaved": {
        "zero": 2,
        "pp": 2,
        "stages": 4,
        "schedule": "interleaved",
        "units": 2,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["knotted", "unet"])
def test_sharded_plan_equals_one_process(
    name: str, shape: str, traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    task = TASKS[name]()
    plan = helpers.make_plan(task, traced=traces[name], shard=2, **SHAPES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
