"""Every schedule on awkward models: the numbers of one process, in the schedule's own order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.core.errors import InputError
from autopar.executor.graph_path import action_rows
from autopar.plans import Plan
from autopar.results import RunRecord
from autopar.schedules import SCHEDULES
from autopar.tasks import Task
from autopar.trace import TracedTask

SPLIT = ("zero_bubble", "interleaved_zb", "zbv", "dualpipev")
TASKS: dict[str, Callable[[], Task]] = {
    "knotted": models.knotted,
    "unet": models.unet,
}


@cache
def traced(name: str) -> TracedTask:
    return helpers.traced_of(TASKS[name]())


def stages_of(schedule: str, pp: int) -> int:
    return 2 * pp if SCHEDULES.load(schedule).interleaves else pp


def plan_of(name: str, schedule: str, pp: int, **changes: Any) -> Plan:
    changes.setdefault("microbatches", 2 * pp)
    return helpers.make_plan(
        TASKS[name](),
        traced=traced(name),
        pp=pp,
        stages=stages_of(schedule, pp),
        schedule=schedule,
        **changes,
    )


def verified(plan: Plan, task: Task, out: Path, **options: Any) -> RunRecord:
    record = helpers.run(plan, task, out, verify=True, **options)
    assert record.verify is not None
    assert record.verify.passed, (plan.name, record.verify)
    return record


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("schedule", SPLIT)
def test_split_schedules_equal_one_process(schedule: str, name: str, tmp_path: Path) -> None:
    verified(plan_of(name, schedule, 2), TASKS[name](), tmp_path, steps=1)


@pytest.mark.parametrize("schedule", SPLIT)
def test_with_replicas_and_clipping(schedule: str, tmp_path: Path) -> None:
    plan = plan_of("knotted", schedule, 2, dp=2, clip_norm=0.05, bucket_bytes=256)
    verified(plan, TASKS["knotted"](), tmp_path, steps=1)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "none"])
def test_four_ranks_run_the_schedules_own_order(schedule: str, tmp_path: Path) -> None:
    plan = plan_of("unet", schedule, 4)
    record = verified(plan, TASKS["unet"](), tmp_path, steps=1, warmup=0)
    for rank, row in enumerate(action_rows(plan)):
        ran = [
            (e.kind, e.stage, e.microbatch)
            for e in record.timeline.events
            if e.rank == rank and e.kind.startswith(("forward", "backward"))
        ]
        assert ran == [(a.kind, a.stage, a.microbatch) for a in row]
    parts = record.breakdown
    assert parts.backward_s > 0
    assert parts.total_s == pytest.approx(record.step_times_s[0], rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_random_cuts_and_recompute(seed: int, tmp_path: Path) -> None:
    chooser = random.Random(seed)
    name = chooser.choice(["knotted", "unet"])
    graph, schedule = traced(name), SPLIT[seed % 4]
    stages = stages_of(schedule, 2)
    cuts = tuple(sorted(chooser.sample(sorted(graph.cuts), stages - 1)))
    edges = [0, *cuts, len(graph.nodes)]
    recompute = {}
    for stage in range(stages):
        legal = sorted(c for c in {*graph.cuts, *edges} if edges[stage] <= c <= edges[stage + 1])
        first, stop = sorted(chooser.sample(legal, 2))
        recompute[stage] = ((first, stop),)
    plan = plan_of(name, schedule, 2, cuts=cuts, recompute=recompute)
    record = verified(plan, TASKS[name](), tmp_path, steps=1, warmup=0)
    assert record.breakdown.recompute_s > 0
    again = Counter(
        (e.stage, e.microbatch) for e in record.timeline.events if e.kind == "recompute"
    )
    assert set(again.values()) == {1}


def test_recomputation_draws_the_same_dropout(tmp_path: Path) -> None:
    """Training losses with dropout on, where a step's masks must come twice."""
    task = models.knotted(dropout=0.3)
    graph = helpers.traced_of(task)
    first, middle = helpers.even_cuts(graph, 4)[:2]
    base = {"traced": graph, "pp": 2, "schedule": "zero_bubble"}
    kept = helpers.make_plan(task, **base)
    dropped = helpers.make_plan(task, recompute={0: ((first, middle),)}, **base)
    curves = [
        helpers.run(plan, task, tmp_path / str(i), steps=3).losses
        for i, plan in enumerate((kept, dropped))
    ]
    assert curves[0] == curves[1]


def test_stages_on_other_ranks_than_the_schedules_are_refused() -> None:
    plan = plan_of("unet", "interleaved", 2)
    bent = Plan.from_dict({**plan.to_dict(), "schedule": "zbv"})
    with pytest.raises(InputError, match="needs stages") as caught:
        action_rows(bent)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("ranks 0, 1, 1, 0")
