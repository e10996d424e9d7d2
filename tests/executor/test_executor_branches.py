"""Stages are a DAG: two towers run on two ranks at the same time, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.plans import Plan
from autopar.results import RunRecord
from autopar.tasks import Task
from autopar.trace import TracedTask


def borders(traced: TracedTask) -> tuple[int, int]:
    """Where the second tower starts and where both have ended."""
    ends = [
        traced.index[node]
        for node in traced.nodes
        if node.target.__name__ == "div.Tensor"  # type: ignore[union-attr]
    ]
    return ends[0] + 1, ends[1] + 1


def towers_plan(task: Task, **changes: Any) -> Plan:
    """One tower on each of two ranks; the product, then the loss, as stages of their own."""
    traced = helpers.traced_of(task)
    second, product = borders(traced)
    cuts = (second, product, len(traced.nodes) - 1)
    return helpers.make_plan(task, traced=traced, cuts=cuts, pp=2, **changes)


def spans(record: RunRecord, kind: str, stage: int) -> list[tuple[float, float]]:
    return [
        (e.start_s, e.end_s) for e in record.timeline.events if e.kind == kind and e.stage == stage
    ]


def overlap_s(record: RunRecord, kind: str) -> float:
    """Seconds during which both towers are at work."""
    return sum(
        max(0.0, min(stop, other_stop) - max(start, other_start))
        for start, stop in spans(record, kind, 0)
        for other_start, other_stop in spans(record, kind, 1)
    )


@pytest.mark.parametrize(
    ("schedule", "microbatches"),
    [("looped_bfs", 1), ("interleaved", 2), ("zbv", 4)],
)
def test_towers_equal_one_process(schedule: str, microbatches: int, tmp_path: Path) -> None:
    task = models.towers()
    plan = towers_plan(task, schedule=schedule, microbatches=microbatches, clip_norm=0.1)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify


def test_towers_run_at_the_same_time(tmp_path: Path) -> None:
    """With one microbatch nothing but the towers can overlap."""
    task = models.towers(width=256, depth=8)
    plan = towers_plan(task, schedule="looped_bfs", microbatches=1, microbatch_size=64)
    record = helpers.run(plan, task, tmp_path / "0", verify=True, steps=5)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert {e.rank for e in record.timeline.events if e.stage == 0} == {0}
    assert {e.rank for e in record.timeline.events if e.stage == 1} == {1}
    waited = [e for e in record.timeline.events if e.rank == 1 and e.kind == "wait"]
    first = spans(record, "forward", 1)[0][0]
    assert all(event.start_s > first for event in waited), "the second tower waits for nothing"
    for again in range(1, 4):  # on a busy host the ranks may have had the core in turn
        if overlap_s(record, "forward") > 0 and overlap_s(record, "backward") > 0:
            break
        record = helpers.run(plan, task, tmp_path / str(again), steps=5)
    assert overlap_s(record, "forward") > 0
    assert overlap_s(record, "backward") > 0


def test_three_ranks_with_the_product_on_the_last(tmp_path: Path) -> None:
    task = models.towers()
    traced = helpers.traced_of(task)
    plan = helpers.make_plan(task, traced=traced, cuts=borders(traced), pp=3, microbatches=3)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
