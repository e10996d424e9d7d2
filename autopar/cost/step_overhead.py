"""What the executor costs per step outside the schedule's actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autopar.cost.layout import Layout


def bookkeeping_seconds(layout: Layout) -> float:
    """Per step, what the executor does beside passes, messages and optimizer."""
    overhead = layout.model.cluster.overhead
    own = layout.microbatches if layout.mesh.pp == 1 else 0
    return overhead.step_s + own * overhead.microbatch_s


def sharding_seconds(layout: Layout) -> float:
    """Per step, what sharded weights cost on a rank outside its microbatches.

    ZeRO-1 and 2 gather once, ZeRO-1 shares out gradients once; the optimizer visits every
    weight's shard. Ranks of a pipeline hold equal parts, near enough.
    """
    profile, shards = layout.model.profile, layout.model.cluster.overhead.shards
    if not layout.zero or shards is None:
        return 0.0
    counts = [len(block.parameters) for block in profile.blocks]
    pp = layout.mesh.pp
    weights, units = sum(counts) / pp, sum(map(bool, counts)) / pp
    seconds = shards.step_s(weights, profile.optimizer.state_bytes_per_parameter_byte)
    if layout.zero <= 2:
        seconds += shards.gather.seconds(units, weights)
    if layout.zero == 1:
        seconds += shards.scatter.seconds(units, weights)
    return seconds
