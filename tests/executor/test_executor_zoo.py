"""Every zoo model, small: data parallel, pipeline and both, verified against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest

from autopar.tasks.resolve import resolve
from autopar.tasks.zoo import zoo_names
from autopar.tasks.zoo.small import small_target

pytestmark = pytest.mark.slow
SHAPES: list[dict[str, Any]] = [
    {"dp": 2, "microbatches": 2},
    {"pp": 2, "microbatches": 4},
    {"dp": 2, "pp": 2, "microbatches": 2},
]


@pytest.mark.parametrize("name", zoo_names())
def test_zoo_model_verifies(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task = resolve(small_target(name))
    traced = helpers.traced_of(task)
    for i, shape in enumerate(SHAPES):
        plan = helpers.make_plan(task, traced=traced, **shape)
        record = helpers.run(
            plan, task, tmp_path / str(i), verify=True, steps=1, warmup=0, timeout_s=120.0
        )
        assert record.verify is not None
        assert record.verify.passed, (plan.name, record.verify)
