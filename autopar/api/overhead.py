"""Measure what the executor costs on this host by running a pipeline of almost no work."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from autopar.api.shard_overhead import measure_shard_overhead
from autopar.cluster import Cluster
from autopar.cluster.overhead import HostOverhead
from autopar.core.stats import COUNTED_QUANTILE, quantile
from autopar.plans import Mesh, Plan, Stage
from autopar.results import RunRecord

TARGET = "zoo:mlp?inputs=4&width=4&depth=4&classes=2"
MICROBATCHES = 16
STEPS = 30


def with_overhead(cluster: Cluster) -> Cluster:
    """The cluster with the executor's fixed costs per action and step.

    A two-stage 1F1B pipeline of a four-unit perceptron is run on two ranks of this host; its
    kernels take a few microseconds, what remains is the runner: receiving, starting autograd,
    handing over, recording. The lower quartile counts, as everywhere in profiling.
    """
    if cluster.device_count < 2:
        return cluster
    from autopar.profiler.resident import measure_resident

    record = _run()
    device = cluster.device(0)
    forward_s = _typical(record, "forward") + _typical(record, "wait", 0.1)
    backward_s = _typical(record, "backward") + _typical(record, "wait", 0.1)
    kernels = len(record.plan.stages) and record.plan.task.op_count / len(record.plan.stages)
    return replace(
        cluster,
        overhead=HostOverhead(
            forward_action_s=max(forward_s - kernels * device.launch_s, 0.0),
            backward_action_s=max(backward_s - 2 * kernels * device.launch_s, 0.0),
            step_s=record.breakdown.other_s,
            rank_bytes=max(max(record.peak_memory_bytes) - measure_resident(TARGET), 0.0),
            shards=measure_shard_overhead(cluster.device_count, device.launch_s),
        ),
    )


def _run() -> RunRecord:
    from autopar.executor import RunOptions, run_plan
    from autopar.tasks.resolve import resolve
    from autopar.trace import trace

    task = resolve(TARGET)
    traced = trace(task, 1)
    count = len(traced.nodes)
    cut = min(traced.cuts, key=lambda k: abs(k - count / 2))
    plan = Plan(
        task=traced.reference,
        mesh=Mesh(pp=2),
        stages=(
            Stage(first_op=0, stop_op=cut, pp=0),
            Stage(first_op=cut, stop_op=count, pp=1),
        ),
        schedule="1f1b",
        microbatches=MICROBATCHES,
        threads=1,
    )
    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        return run_plan(
            plan,
            task,
            RunOptions(out=Path(folder), steps=STEPS, warmup=5, device="cpu", quiet=True),
        )


def _typical(record: RunRecord, kind: str, q: float = COUNTED_QUANTILE) -> float:
    durations = [e.end_s - e.start_s for e in record.timeline.events if e.kind == kind]
    return quantile(durations, q) if durations else 0.0
