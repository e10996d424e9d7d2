"""A run sends the bytes that the strategies declare and the planner prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest

from autopar.plans import Mesh, Plan
from autopar.profiler import profile_task
from autopar.strategies import Split, Strategies
from autopar.tasks import Task

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt cp2": ("gpt", {"mesh": Mesh(cp=2), "microbatches": 3}),
    "gpt cp4": ("gpt", {"mesh": Mesh(cp=4)}),
    "llama dp2 cp2": ("llama", {"mesh": Mesh(dp_replicate=2, cp=2)}),
    "transformer cp2": ("transformer", {"mesh": Mesh(cp=2)}),
    "moe cp2": ("moe", {"mesh": Mesh(cp=2), "microbatches": 2}),
    "gpt cp2 tp2": ("gpt", {"mesh": Mesh(cp=2, tp=2), "microbatches": 3}),
    "llama cp2 tp2 sp": ("llama", {"mesh": Mesh(cp=2, tp=2), "sequence_parallel": True}),
    "moe dp2 ep2": ("moe", {"mesh": Mesh(dp_replicate=2, ep=2), "microbatches": 3}),
    "moe dp4 ep2": ("moe", {"mesh": Mesh(dp_replicate=4, ep=2)}),
}


def declared_bytes(plan: Plan, task: Task, folder: Path) -> float:
    """Bytes one rank of a plan without a pipeline sends in a step."""
    profile = profile_task(
        task, batch=2, device="a100-80gb-sxm", measure=False, cache_dir=folder
    ).profile
    strategies, mesh = Strategies(profile), plan.mesh
    split = Split(tp=mesh.tp, sequence_parallel=plan.sequence_parallel, cp=mesh.cp, ep=mesh.ep)
    assert strategies.why_not(split) is None
    data = mesh.replicas * mesh.cp
    sent = 0.0
    for work in strategies.works(split):
        for item in work.collectives:
            n = {"tp": mesh.tp, "cp": mesh.cp, "ep": mesh.ep}[item.axis]
            passes = 2 if item.kind == "all_reduce" else 1
            size = item.size_bytes.at(plan.microbatch_size)
            sent += plan.microbatches * passes * size * (n - 1) / n
    for name, (count, size) in profile.parameters.items():
        ranks = data // mesh.ep if name in strategies.expert.parameters else data
        own = strategies.elements(split, name) * size / count
        sent += 2 * (ranks - 1) / ranks * own
    return sent


@pytest.mark.parametrize("name", RUNS)
def test_sent_as_declared(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, shape = RUNS[name]
    task = helpers.shallow(model)
    plan = helpers.make_plan(task, **shape)
    record = helpers.run(plan, task, tmp_path, steps=1, warmup=1)
    wanted = declared_bytes(plan, task, tmp_path)
    assert record.bytes_sent == pytest.approx([wanted] * plan.world_size, rel=0.02)
