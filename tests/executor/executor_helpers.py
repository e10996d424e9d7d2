"""Plans by hand, and runs of them in forked ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from autopar.executor import RunOptions, run_plan
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.results import RunRecord
from autopar.schedules import SCHEDULES
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.trace import TracedTask, trace

_TRACED: dict[tuple[str, int], TracedTask] = {}


def traced_of(task: Task, batch: int = 2) -> TracedTask:
    return trace(task, batch, device="meta")


def shallow(name: str) -> Task:
    """A small zoo model of at most two layers, which one cut between equal blocks needs."""
    return resolve(small_target(name).replace("layers=4", "layers=2"))


def even_cuts(traced: TracedTask, stages: int) -> tuple[int, ...]:
    """Legal cuts near equal op counts."""
    count = len(traced.nodes)
    cuts: list[int] = []
    for s in range(1, stages):
        legal = [c for c in traced.cuts if not cuts or c > cuts[-1]]
        cuts.append(min(legal, key=lambda c: abs(c - count * s / stages)))
    return tuple(cuts)


def even_ranges(
    traced: TracedTask, first: int, stop: int, count: int
) -> tuple[tuple[int, int], ...]:
    """Up to ``count`` ranges that cover ops ``[first, stop)``, cut where it is legal."""
    legal = sorted(c for c in traced.cuts if first < c < stop)
    wanted = [first + (stop - first) * i / count for i in range(1, count)] if legal else []
    cuts = sorted({min(legal, key=lambda c: abs(c - place)) for place in wanted})
    edges = [first, *cuts, stop]
    return tuple(pairwise(edges)) if count else ()


def make_plan(
    task: Task,
    *,
    traced: TracedTask | None = None,
    cuts: tuple[int, ...] | None = None,
    dp: int = 1,
    pp: int = 1,
    stages: int | None = None,
    mesh: Mesh | None = None,
    recompute: dict[int, tuple[tuple[int, int], ...]] | None = None,
    selective: dict[int, tuple[tuple[int, int], ...]] | None = None,
    shard: int = 1,
    units: int = 0,
    **changes: Any,
) -> Plan:
    traced = traced or traced_of(task)
    count = len(traced.nodes)
    mesh = mesh or Mesh(dp_replicate=dp, dp_shard=shard, pp=pp)
    pp = mesh.pp
    cuts = even_cuts(traced, stages or pp) if cuts is None else cuts
    edges = [0, *cuts, count]
    changes.setdefault("schedule", "1f1b" if pp > 1 else "none")
    changes.setdefault("microbatches", 4 if pp > 1 else 1)
    changes.setdefault("microbatch_size", 2)
    place = SCHEDULES.load(changes["schedule"]).rank_of
    return Plan(
        task=TaskRef(
            name=task.name, target=task.target, fingerprint=traced.fingerprint, op_count=count
        ),
        mesh=mesh,
        stages=tuple(
            Stage(
                first_op=edges[s],
                stop_op=edges[s + 1],
                pp=place(s, pp),
                recompute=(recompute or {}).get(s, ()),
                selective=(selective or {}).get(s, ()),
                units=even_ranges(traced, edges[s], edges[s + 1], units),
            )
            for s in range(len(edges) - 1)
        ),
        **changes,
    )


def run(plan: Plan, task: Task, out: Path, **options: Any) -> RunRecord:
    options.setdefault("steps", 2)
    options.setdefault("warmup", 1)
    options.setdefault("launcher", "fork")
    options.setdefault("timeout_s", 60.0)
    return run_plan(plan, task, RunOptions(out=out, **options))
