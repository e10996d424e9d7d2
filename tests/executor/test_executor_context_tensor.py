"""Sequences and columns divided at once: the same loss, gradients and weights as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest

from autopar.plans import Mesh
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target


def small(name: str) -> Task:
    pytest.importorskip("transformers")
    target = small_target(name).replace("layers=4", "layers=2").replace("layers=2", "layers=1", 1)
    return resolve(target)


def verified(task: Task, out: Path, mesh: Mesh, **changes: Any) -> None:
    plan = helpers.make_plan(task, mesh=mesh, clip_norm=0.05, **changes)
    record = helpers.run(plan, task, out, verify=True, steps=1, warmup=0, timeout_s=120.0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert not [text for text in record.warnings if text.startswith(("tp:", "cp:"))]


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["plain", "sp"])
@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "transformer"])
def test_over_four_ranks(name: str, sequence_parallel: bool, tmp_path: Path) -> None:
    changes = {"microbatches": 1 if sequence_parallel else 2}
    mesh = Mesh(cp=2, tp=2)
    verified(small(name), tmp_path, mesh, sequence_parallel=sequence_parallel, **changes)


EIGHT: dict[str, dict[str, Any]] = {
    "dp2 cp2 tp2": {"mesh": Mesh(dp_replicate=2, cp=2, tp=2)},
    "zero3 cp2 tp2": {"mesh": Mesh(dp_shard=2, cp=2, tp=2), "zero": 3, "units": 2},
    "cp2 tp2 pp2": {"mesh": Mesh(cp=2, tp=2, pp=2), "microbatches": 2, "sequence_parallel": True},
    "cp4 tp2": {"mesh": Mesh(cp=4, tp=2)},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", EIGHT)
def test_over_eight_ranks(shape: str, tmp_path: Path) -> None:
    verified(small("gpt"), tmp_path, **EIGHT[shape])
