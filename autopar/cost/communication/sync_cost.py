"""Seconds and bytes of a sync mode with its compression on one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.cost.communication.gradients import overlapped_seconds
from autopar.sync import Overlap, Scope, Sync, SyncGroup

MessageSeconds = Callable[[str, float, Scope], float]
"""Collective, bytes of the full tensor, who takes part -> seconds."""


@dataclass(frozen=True, kw_only=True)
class SyncLinks:
    """What a rank synchronises over.

    Attributes:
        group: Ranks with the same parameters; nothing is sent when it is one rank.
        seconds: Time of one message.
        memory_bytes_per_s: Rate at which the device streams memory.
        bucket_bytes: Size of gradient buckets.
        element_bytes: Bytes of a gradient element.
        slowdown: Extra backward time per second of communication beside it.
    """

    group: SyncGroup
    seconds: MessageSeconds
    memory_bytes_per_s: float
    bucket_bytes: float
    element_bytes: float = 4.0
    slowdown: float = 0.0


def sync_seconds(
    sync: Sync, size_bytes: float, links: SyncLinks, *, backward_s: float, compute_s: float
) -> tuple[float, float]:
    """Full and exposed seconds of synchronisation per optimizer step.

    Messages that hide behind backward go in buckets, like DistributedDataParallel's. Those that
    hide behind the next step (stale modes) lengthen it only when they take longer than its
    compute. The rest, and encoding, come on top. Periodic modes are averaged over their period.

    Args:
        sync: Mode and compression.
        size_bytes: Gradient bytes of a rank.
        links: The ranks and what connects them.
        backward_s: Backward of the last microbatch, in which gradients become final; 0 when
            nothing may overlap.
        compute_s: Forward and backward of the step.
    """
    if links.group.ranks < 2 or size_bytes <= 0:
        return 0.0, 0.0
    work = sync.work(size_bytes, links.group, element_bytes=links.element_bytes)
    after = work.streamed_bytes / links.memory_bytes_per_s
    full = exposed = 0.0
    for overlap, share in dict.fromkeys((m.overlap, m.per_step) for m in work.messages):
        phase = _Phase(sync=sync, links=links, overlap=overlap, share=share)
        if overlap == "backward":
            whole, left = overlapped_seconds(
                [backward_s], [size_bytes], links.bucket_bytes, phase.seconds, links.slowdown
            )
        else:
            whole = phase.seconds(size_bytes)
            left = max(0.0, whole - compute_s) if overlap == "step" else whole
        full += share * whole
        exposed += share * left
    return full + after, exposed + after


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """Messages that hide behind the same work and are sent equally often."""

    sync: Sync
    links: SyncLinks
    overlap: Overlap
    share: float

    def seconds(self, size_bytes: float) -> float:
        """Time of all of them, once, for gradients (a bucket, or all) of some bytes."""
        links = self.links
        work = self.sync.work(size_bytes, links.group, element_bytes=links.element_bytes)
        return sum(
            links.seconds(m.kind, m.size_bytes, m.scope)
            for m in work.messages
            if (m.overlap, m.per_step) == (self.overlap, self.share)
        )


def sync_memory_bytes(
    sync: Sync, size_bytes: float, group: SyncGroup, element_bytes: float = 4.0
) -> float:
    """Bytes a rank keeps for a sync mode beside weights, gradients and optimizer state."""
    return sync.memory_bytes(size_bytes, group, element_bytes=element_bytes)
