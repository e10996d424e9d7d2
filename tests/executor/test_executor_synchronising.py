"""Every sync mode and compression on real ranks: bytes, agreement, algebra, resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.executor.synchronising.averaging import Averager
from autopar.executor.synchronising.reducers.base import ErrorFeedback
from autopar.executor.synchronising.reducers.int8 import decode
from autopar.plans import Mesh
from autopar.sync import SyncGroup, parse_sync
from autopar.tasks import Task
from autopar.trace import TracedTask

COMPRESSIONS = ("fp16", "bf16", "int8", "powersgd:2", "topk:0.05")
PERIODIC = ("local_sgd:2", "post_local_sgd:2:0.5", "diloco:2", "hierarchical:2")
WIDTH, DEPTH = 64, 2
PARAMETERS = DEPTH * (WIDTH * WIDTH + WIDTH)


@pytest.fixture(scope="module")
def task() -> Task:
    return models.mlp(width=WIDTH, depth=DEPTH)


@pytest.fixture(scope="module")
def traced(task: Task) -> TracedTask:
    return helpers.traced_of(task)


def nodes_of(sync: str, ranks: int) -> int | None:
    return ranks // 2 if sync.startswith("hierarchical") else None


CASES = [
    (sync, ranks)
    for ranks in (2, 4)
    for sync in (
        *(f"all_reduce+{c}" for c in COMPRESSIONS),
        *PERIODIC,
        "local_sgd:2+int8",
        "local_sgd:2+topk:0.05",
        "diloco:2+powersgd:2",
        "hierarchical:2+fp16",
    )
    if ranks == 4 or not sync.startswith("hierarchical")
]


@pytest.mark.parametrize(("sync", "ranks"), CASES)
def test_bytes_are_those_declared(
    sync: str, ranks: int, task: Task, traced: TracedTask, tmp_path: Path
) -> None:
    node_size = nodes_of(sync, ranks)
    plan = helpers.make_plan(task, traced=traced, dp=ranks, sync=sync)
    record = helpers.run(plan, task, tmp_path, steps=8, warmup=0, verify=True, node_size=node_size)
    group = SyncGroup(ranks=ranks, nodes=2 if node_size else 1)
    declared = parse_sync(sync).work(4.0 * PARAMETERS, group).sent_bytes
    assert max(record.bytes_sent) == pytest.approx(declared, rel=0.02)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert record.verify.note


MESHES: dict[str, dict[str, Any]] = {
    "pipeline": {"pp": 2, "microbatches": 2},
    "recompute": {"recompute": {0: ((0, 6),)}, "microbatches": 2},
    "buckets clip": {"bucket_bytes": 256, "clip_norm": 0.05},
}


@pytest.fixture(scope="module")
def knotted_trace() -> TracedTask:
    return helpers.traced_of(models.knotted())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "sync",
    [
        "all_reduce+fp16",
        "all_reduce+int8",
        "all_reduce+powersgd:1",
        "all_reduce+topk:0.1",
        "local_sgd:2",
        "local_sgd:2+topk:0.1",
        "local_sgd:2+int8",
        "diloco:2",
        "diloco:2+powersgd:1",
        "post_local_sgd:2:0",
    ],
)
def test_tied_weights_buffers_and_other_paths(
    sync: str, mesh: str, knotted_trace: TracedTask, tmp_path: Path
) -> None:
    task = models.knotted()
    changes = dict(MESHES[mesh])
    if "recompute" in changes:
        changes["recompute"] = {0: (helpers.even_cuts(knotted_trace, 3),)}
    plan = helpers.make_plan(task, traced=knotted_trace, dp=2, sync=sync, **changes)
    record = helpers.run(plan, task, tmp_path, steps=4, warmup=0, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize(
    ("sync", "shape"),
    [
        ("all_reduce+fp16", {}),
        ("all_reduce+int8", {"sequence_parallel": True}),
        ("all_reduce+powersgd:1", {}),
        ("all_reduce+topk:0.1", {"pp": 2, "microbatches": 2}),
        ("local_sgd:2", {"sequence_parallel": True}),
        ("local_sgd:2+topk:0.1", {}),
        ("diloco:2+int8", {"pp": 2, "microbatches": 2}),
    ],
)
def test_tensor_parallel_replicas(sync: str, shape: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task = helpers.shallow("gpt")
    changes = {"microbatches": 1, **shape}
    mesh = Mesh(dp_replicate=2, tp=2, pp=changes.pop("pp", 1))
    plan = helpers.make_plan(task, mesh=mesh, sync=sync, clip_norm=0.5, **changes)
    record = helpers.run(plan, task, tmp_path, steps=4, warmup=0, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify


def test_hierarchical_pipelines(knotted_trace: TracedTask, tmp_path: Path) -> None:
    """Four replicas of two stages: a node holds two ranks of each stage."""
    task = models.knotted()
    plan = helpers.make_plan(
        task, traced=knotted_trace, dp=4, pp=2, microbatches=2, sync="hierarchical:2"
    )
    record = helpers.run(plan, task, tmp_path, steps=2, warmup=0, verify=True, node_size=2)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize("sync", ["all_reduce+int8", "all_reduce+topk:0.2", "local_sgd:2"])
def test_a_model_whose_ranks_take_different_branches(sync: str, tmp_path: Path) -> None:
    task = models.branching()
    stand_in = helpers.traced_of(models.mlp())
    plan = helpers.make_plan(task, traced=stand_in, dp=2, microbatches=1, sync=sync)
    record = helpers.run(plan, task, tmp_path, steps=6, warmup=0, verify=True, checkpoint_every=3)
    assert record.verify is not None
    assert record.verify.passed, record.verify


def wrong_decode(rows: Any, count: int) -> Any:
    return decode(rows, count) * 1.3


def forgets(feedback: ErrorFeedback, error: Any, layout: Any) -> None:
    for name, piece in layout.split(error).items():
        feedback.errors[name] = piece.clone().mul_(0.5)


def own_weights(averager: Averager, tensors: Any) -> Any:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("sync", "place", "broken"),
    [
        ("all_reduce+int8", "synchronising.reducers.int8.decode", wrong_decode),
        ("all_reduce+topk:0.1", "synchronising.reducers.base.ErrorFeedback.keep", forgets),
        ("local_sgd:2+topk:0.1", "synchronising.reducers.base.ErrorFeedback.keep", forgets),
        ("local_sgd:2", "synchronising.averaging.Averager.mean", own_weights),
        ("diloco:2", "synchronising.diloco.MOMENTUM", 0.5),
    ],
)
def test_verify_notices_a_broken_mode(
    sync: str,
    place: str,
    broken: Any,
    task: Task,
    traced: TracedTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"autopar.executor.{place}", broken)
    plan = helpers.make_plan(task, traced=traced, dp=2, sync=sync)
    record = helpers.run(plan, task, tmp_path, steps=1, warmup=0, verify=True)
    assert record.verify is not None
    assert not record.verify.passed, record.verify
