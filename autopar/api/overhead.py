"""Measure what the executor costs on this host by running plans of almost no work."""

from __future__ import annotations

from dataclasses import replace

from autopar.api.pipeline_overhead import (
    PROBE_THREADS,
    QUICK_STEPS,
    STEPS,
    TARGET,
    measure_bookkeeping,
    pipeline_overhead,
    probe_model,
    run_probes,
)
from autopar.api.shard_overhead import measure_shard_overhead
from autopar.cluster import Cluster
from autopar.cluster.overhead import NO_OVERHEAD
from autopar.cost.constants import MEASURED_WEIGHT_SHARE


def with_overhead(cluster: Cluster, *, quick: bool = False) -> Cluster:
    """The cluster with the executor's fixed costs per action, message and step.

    Args:
        cluster: As measured so far.
        quick: Fewer steps.
    """
    if cluster.device_count < 2:
        return cluster
    import torch

    from autopar.api.split_overhead import measure_split_overhead
    from autopar.executor.stages.mailbox import lookahead
    from autopar.profiler.timing.resident import measure_resident

    split = measure_split_overhead(MEASURED_WEIGHT_SHARE.value)
    bare = replace(cluster, overhead=replace(NO_OVERHEAD, split=split))
    steps = QUICK_STEPS if quick else STEPS
    task, model = probe_model()
    step_s, microbatch_s = measure_bookkeeping(task, model, bare, steps=steps)
    probes = run_probes(task, model, bare, bookkeeping_s=step_s, steps=steps)

    def at_need(ranks: int, threads: int) -> bool:
        return lookahead(torch.device("cpu"), ranks, threads) == 0

    probed = at_need(probes[0].plan.world_size, PROBE_THREADS)
    found = pipeline_overhead(model, bare, probes, at_need=probed)
    if not probed and at_need(cluster.device_count, cluster.threads_per_rank or 1):
        found = replace(found, receive_s=0.0)  # a user's ranks fill the cores, the probes did not
    resident_bytes = max(probes[0].record.peak_memory_bytes)
    return replace(
        cluster,
        overhead=replace(
            found,
            step_s=step_s,
            microbatch_s=microbatch_s,
            rank_bytes=max(resident_bytes - measure_resident(TARGET), 0.0),
            shards=measure_shard_overhead(
                cluster.device_count, cluster.device(0).launch_s, quick=quick
            ),
        ),
    )
