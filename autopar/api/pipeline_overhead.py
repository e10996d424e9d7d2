"""Measure what the executor costs per action of a pipeline on this host, by running small ones.

Four schedules of a perceptron whose kernels take microseconds are run. They use the same actions
in different order, so each weighs their costs in another way: GPipe repeats forwards, then
backwards; 1F1B passes every microbatch back and forth; interleaving doubles the messages; zero
bubble halves the backward. The costs are those with which the cost model's own simulation comes
closest to the measured steps, starting from what the actions of the GPipe run took.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from autopar.cluster import Cluster
from autopar.cluster.overhead import HostOverhead
from autopar.core.stats import COUNTED_QUANTILE, median, quantile, rising_line
from autopar.cost import price
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import RunRecord
from autopar.search import SearchOptions, plan_for
from autopar.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

TARGET = "zoo:mlp?inputs=4&width=4&depth=4&classes=2"
PROBES = (
    ("schedule=gpipe", 16),
    ("schedule=1f1b", 16),
    ("schedule=interleaved,chunks=2", 8),
    ("schedule=zero_bubble", 16),
)
"""Schedule and microbatches of each run."""
REPLICA_MICROBATCHES = (1, 16)
"""Microbatches of the runs without a pipeline."""
STEPS, QUICK_STEPS = 60, 15
"""Timed steps of each run; the second when the host is measured quickly."""
PROBE_THREADS = 1
"""Of a rank that computes: forked ranks have no more."""
PRIOR = 0.3
"""Weight of a departure from the starting values beside that of a prediction from its measurement,
both as logarithms: four steps do not tell three costs apart on a noisy host by themselves."""
LEAST_S = 1e-6
"""Start of a cost that was too small to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A small pipeline that was run.

    Attributes:
        plan: What was run.
        record: What came of it.
        span_s: Seconds of a step without its optimizer, synchronisation and fixed bookkeeping.
    """

    plan: Plan
    record: RunRecord
    span_s: float


def probe_model() -> tuple[Task, GraphProfile]:
    """The model of the probes and its profile, not timed."""
    from autopar.profiler import profile_task
    from autopar.tasks.resolve import resolve

    task = resolve(TARGET)
    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        return task, profile_task(task, batch=1, measure=False, cache_dir=Path(folder)).profile


def measure_bookkeeping(
    task: Task, profile: GraphProfile, cluster: Cluster, *, steps: int = STEPS
) -> tuple[float, float]:
    """Seconds of a step beside its passes, messages and optimizer: fixed, and per microbatch.

    From replicas that run a few and many microbatches.

    Args:
        task: Of the probes.
        profile: Of it.
        cluster: Where.
        steps: Timed steps of each run.
    """
    found = []
    for microbatches in REPLICA_MICROBATCHES:
        ranks = cluster.device_count
        spec = f"dp_replicate={ranks},m={microbatches}"
        plan = _plan(profile, cluster, spec, ranks * microbatches)
        found.append(_run(plan, task, steps, fresh=False).breakdown.other_s)
    return rising_line(REPLICA_MICROBATCHES, found)


def run_probes(
    task: Task,
    profile: GraphProfile,
    cluster: Cluster,
    *,
    bookkeeping_s: float,
    steps: int = STEPS,
) -> list[Probe]:
    """Run the schedules on two ranks per replica, with as many replicas as ranks allow.

    The first is run in fresh processes: their memory is that of a user's ranks.

    Args:
        task: Of the probes.
        profile: Of it.
        cluster: Where.
        bookkeeping_s: What a step takes beside passes, messages and optimizer.
        steps: Timed steps of each run.
    """
    replicas = max(cluster.device_count // 2, 1)
    probes: list[Probe] = []
    for schedule, microbatches in PROBES:
        spec = f"world={2 * replicas},dp_replicate={replicas},pp=2,{schedule},m={microbatches}"
        plan = _plan(profile, cluster, spec, replicas * microbatches)
        record = _run(plan, task, steps, fresh=not probes)
        b = record.breakdown
        step_s = quantile(record.step_times_s, COUNTED_QUANTILE)
        tail_s = b.optimizer_s + b.gradient_sync_s + bookkeeping_s
        probes.append(Probe(plan=plan, record=record, span_s=max(step_s - tail_s, LEAST_S)))
    return probes


def _plan(profile: GraphProfile, cluster: Cluster, spec: str, batch: int) -> Plan:
    """What a probe runs."""
    found = plan_for(profile, cluster, spec, SearchOptions(global_batch=batch))
    return replace(found.plan, threads=PROBE_THREADS)


def pipeline_overhead(
    profile: GraphProfile, cluster: Cluster, probes: Sequence[Probe], *, at_need: bool
) -> HostOverhead:
    """The costs per action that explain the probes best.

    Args:
        profile: Of their model, not timed.
        cluster: Where they ran; its overhead is ignored but for what is not about pipelines.
        probes: As :func:`run_probes` gives them, GPipe first.
        at_need: Whether ranks received messages when they needed them.
    """
    start, curve_s = _first_guess(profile, cluster, probes)
    measured = np.array([probe.span_s for probe in probes])

    def overhead(costs: Sequence[float]) -> HostOverhead:
        forward, backward, message = costs
        return replace(
            cluster.overhead,
            forward_action_s=forward,
            backward_action_s=backward,
            receive_s=max(message - curve_s, 0.0) if at_need else None,
        )

    def predict(costs: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = replace(cluster, overhead=overhead(costs.tolist()))
        parts = [price(probe.plan, profile, trial).breakdown for probe in probes]
        return np.array([b.total_s - b.optimizer_s - b.gradient_sync_s - b.other_s for b in parts])

    return overhead(fit_costs(predict, measured, np.array(start)).tolist())


def fit_costs(
    predict: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    measured: NDArray[np.float64],
    start: NDArray[np.float64],
    *,
    rounds: int = 8,
) -> NDArray[np.float64]:
    """Positive costs whose predictions are closest to what was measured, relative to it.

    Gauss-Newton on logarithms of costs and predictions, held to the start by :data:`PRIOR`; of all
    rounds the best counts.

    Args:
        predict: Costs to seconds ``[probe]``.
        measured: Seconds ``[probe]``.
        start: Costs, all positive.
        rounds: Most rounds.
    """
    origin = np.log(start)

    def gaps(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate((np.log(predict(np.exp(x)) / measured), PRIOR * (x - origin)))

    x, best, nudge = origin, origin, 1e-3
    for _ in range(rounds):
        now = gaps(x)
        slopes = [(gaps(x + nudge * unit) - now) / nudge for unit in np.eye(len(x))]
        step = np.linalg.lstsq(np.array(slopes).T, -now, rcond=None)[0]
        x = x + np.clip(step, -1.0, 1.0)
        if np.sum(gaps(x) ** 2) < np.sum(gaps(best) ** 2):
            best = x
    return np.asarray(np.exp(best))


def _first_guess(
    profile: GraphProfile, cluster: Cluster, probes: Sequence[Probe]
) -> tuple[tuple[float, float, float], float]:
    """Forward, backward and a message, from the times between actions.

    The message's seconds by the cluster's curve come last.

    While GPipe goes forward its first rank receives nothing, while it goes back its last one does;
    the other rank receives before every action.
    """
    gpipe = probes[0]
    bare = replace(
        cluster,
        overhead=replace(
            cluster.overhead, forward_action_s=0.0, backward_action_s=0.0, receive_s=None
        ),
    )
    plain = price(gpipe.plan, profile, bare)
    sends, takes = (_period(gpipe.record, rank, "forward") for rank in (0, 1))
    takes_back, sends_back = (_period(gpipe.record, rank, "backward") for rank in (0, 1))
    curve_s = plain.transfers[0].forward_s
    found = (
        sends - plain.stage_costs[0].forward_s,
        sends_back - plain.stage_costs[-1].backward_s,
        max((takes - sends + takes_back - sends_back) / 2, curve_s),
    )
    forward, backward, message = (max(cost, LEAST_S) for cost in found)
    return (forward, backward, message), curve_s


def _period(record: RunRecord, rank: int, kind: str) -> float:
    """Typical seconds from one action of a kind to the next on a pipeline rank of replica 0."""
    events = [
        e for e in record.timeline.events if e.kind == kind and e.rank == _global(record, rank)
    ]
    starts = sorted(event.start_s for event in events)
    return median([after - before for before, after in pairwise(starts)])


def _global(record: RunRecord, pipeline_rank: int) -> int:
    return record.plan.mesh.rank(pp=pipeline_rank)


def _run(plan: Plan, task: Task, steps: int, *, fresh: bool) -> RunRecord:
    """Run it by torchrun, as users do, or in forks, which start in a quarter of the time."""
    from autopar.executor import RunOptions, run_plan

    launcher: Literal["torchrun", "fork"] = "torchrun"
    if not fresh and sys.platform == "linux":
        import torch._dynamo  # noqa: F401  # imported once here, not in every forked rank

        import autopar.executor.graph_path
        import autopar.executor.session  # noqa: F401

        launcher = "fork"
    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        options = RunOptions(
            out=Path(folder), steps=steps, warmup=5, device="cpu", quiet=True, launcher=launcher
        )
        return run_plan(plan, task, options)
