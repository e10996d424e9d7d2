"""Measure what sharded weights cost on this host beside bytes and arithmetic.

FSDP2 does Python work around every unit and every weight: hooks, copies in and out of the gathered
tensor, waiting for ranks that are late. On a small model that is most of a step. It is measured
with the executor itself on a perceptron whose arithmetic takes microseconds: the same model in few
and in many units tells what a unit costs and what a weight costs.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from autopar.cluster.overhead import ShardCost, ShardOverhead
from autopar.core.stats import median, trimmed_mean
from autopar.plans import Mesh, Plan, Stage
from autopar.results import RunRecord
from autopar.tasks import Task
from autopar.trace import TracedTask

TARGET = "zoo:mlp?inputs=4&width=4&depth=16&classes=2"
UNITS = (3, 12)
MICROBATCHES = 12
STEPS, QUICK_STEPS = 12, 4
"""Timed steps of each run; the second when the host is measured quickly."""
SHARDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Seconds of a microbatch in one run, and of the optimizer per weight.

    Attributes:
        units: Units of the plan.
        forward_s: Forward.
        backward_s: Backward.
        step_s: Optimizer step, per weight.
    """

    units: int
    forward_s: float
    backward_s: float
    step_s: float


def measure_shard_overhead(
    ranks: int, launch_s: float, *, quick: bool = False
) -> ShardOverhead | None:
    """Run the perceptron under ZeRO-2 and ZeRO-3 in few and in many units.

    ZeRO-2 keeps weights gathered between microbatches, ZeRO-3 does not; the difference is what
    gathering costs.

    Args:
        ranks: Ranks of the host, all busy; two share weights, the rest are replicas.
        launch_s: Time of a small operator, to take the model's own ops out.
        quick: Fewer steps.

    Returns:
        The costs; ``None`` for an odd number of ranks, or where processes cannot be forked.
    """
    if ranks % SHARDS or sys.platform != "linux":
        return None
    import torch._dynamo  # noqa: F401  # once here, not in every forked rank
    from torch.optim import SGD, AdamW

    import autopar.executor.graph_path
    import autopar.executor.verifying.verify  # noqa: F401
    from autopar.tasks.resolve import resolve
    from autopar.trace import trace

    steps = QUICK_STEPS if quick else STEPS
    task = resolve(TARGET)
    traced = trace(task, 1)
    weights = len(traced.parameter_names)
    found = {}
    # One optimizer with one state per weight, one with two.
    for zero, optimizer in ((2, partial(SGD, lr=0.01, momentum=0.9)), (3, AdamW)):
        own = replace(task, optimizer=optimizer, target=None)
        found[zero] = [_passes(own, traced, ranks, zero, units, steps) for units in UNITS]
    return overhead_of(found[2], found[3], weights, len(traced.nodes) * launch_s)


def overhead_of(
    kept: list[Passes], again: list[Passes], weights: int, plain_s: float
) -> ShardOverhead:
    """Costs per unit and per weight from two numbers of units.

    Args:
        kept: With weights that stay gathered between microbatches, one state per weight.
        again: With weights gathered in every pass, two states; in the same order.
        weights: Weights of the model.
        plain_s: Forward of the model's own ops; backward takes twice that.
    """
    counts = [p.units for p in kept]

    def cost(seconds: list[float]) -> ShardCost:
        return _cost(counts, seconds, weights)

    visits = [p.forward_s - plain_s for p in kept]
    steps = [median([p.step_s for p in some]) for some in (kept, again)]
    return ShardOverhead(
        visit=cost(visits),
        gather=cost([b.forward_s - a.forward_s for a, b in zip(kept, again, strict=True)]),
        scatter=cost([p.backward_s - 2 * plain_s - v for p, v in zip(kept, visits, strict=True)]),
        regather=cost([b.backward_s - a.backward_s for a, b in zip(kept, again, strict=True)]),
        step_s_per_weight=steps[0],
        step_s_per_state=max(steps[1] - steps[0], 0.0),
    )


def _cost(units: list[int], seconds: list[float], weights: int) -> ShardCost:
    """``seconds = units x unit_s + weights x weight_s``, neither below 0."""
    (few, many), (first, second) = units, seconds
    unit_s = max((second - first) / (many - few), 0.0)
    weight_s = (first - few * unit_s) / weights
    if weight_s < 0:
        return ShardCost(unit_s=max(first / few + second / many, 0.0) / 2, weight_s=0.0)
    return ShardCost(unit_s=unit_s, weight_s=weight_s)


def _passes(
    task: Task, traced: TracedTask, ranks: int, zero: int, units: int, steps: int
) -> Passes:
    plan = _plan(traced, ranks, zero, units)
    record = _run(plan, task, steps)

    def seconds(kind: str, first: int, stop: int) -> float:
        return trimmed_mean(
            [
                e.end_s - e.start_s
                for e in record.timeline.events
                if e.kind == kind and first <= e.microbatch < stop
            ]
        )

    updates = [e.end_s - e.start_s for e in record.timeline.events if e.kind == "optimizer"]
    return Passes(
        units=len(plan.stages[0].units),
        forward_s=seconds("forward", 1, MICROBATCHES),  # weights come with the first one
        backward_s=seconds("backward", 0, MICROBATCHES - 1),  # replicas meet in the last one
        step_s=median(updates) / len(traced.parameter_names),
    )


def _plan(traced: TracedTask, ranks: int, zero: int, units: int) -> Plan:
    count = len(traced.nodes)
    legal = sorted(c for c in traced.cuts if 0 < c < count)
    wanted = [count * i / units for i in range(1, units)]
    cuts = sorted({min(legal, key=lambda c: abs(c - place)) for place in wanted})
    edges = [0, *cuts, count]
    return Plan(
        task=traced.reference,
        mesh=Mesh(dp_shard=SHARDS, dp_replicate=ranks // SHARDS),
        stages=(
            Stage(
                first_op=0,
                stop_op=count,
                pp=0,
                units=tuple(pairwise(edges)),
            ),
        ),
        zero=zero,
        microbatches=MICROBATCHES,
        threads=1,
    )


def _run(plan: Plan, task: Task, steps: int) -> RunRecord:
    from autopar.executor import RunOptions, run_plan

    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        return run_plan(
            plan,
            task,
            RunOptions(
                out=Path(folder),
                steps=steps,
                warmup=3,
                device="cpu",
                quiet=True,
                launcher="fork",
            ),
        )
