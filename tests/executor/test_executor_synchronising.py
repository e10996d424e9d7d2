"""Every sync mode and compression on real ranks: bytes, agreement, algebra, resumption."""

from __future__ import annotations

from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest

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


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "sync",
    [
        *(f"all_reduce+{c}" for c in COMPRESSIONS),
        *PERIODIC,
        "local_sgd:2+int8",
        "local_sgd:2+topk:0.05",
        "diloco:2+powersgd:2",
        "hierarchical:2+fp16",
    ],
)
def test_bytes_are_those_declared(
    sync: str, ranks: int, task: Task, traced: TracedTask, tmp_path: Path
) -> None:
    if sync.startswith("hierarchical") and ranks == 2:
        pytest.skip("needs two nodes of two ranks")
    node_size = nodes_of(sync, ranks)
    plan = helpers.make_plan(task, traced=traced, dp=ranks, sync=sync)
    record = helpers.run(plan, task, tmp_path, steps=8, warmup=0, verify=True, node_size=node_size)
    group = SyncGroup(ranks=ranks, nodes=2 if node_size else 1)
    declared = parse_sync(sync).work(4.0 * PARAMETERS, group).sent_bytes
    assert max(record.bytes_sent) == pytest.approx(declared, rel=0.02)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert record.verify.note
