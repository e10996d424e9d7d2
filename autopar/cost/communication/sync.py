"""Seconds of a stage's gradient synchronisation and optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.gradients import (
    bucketed_seconds,
    many_bucketed_seconds,
    overlapped_seconds,
)
from autopar.cost.communication.ranks import Shapes
from autopar.cost.communication.sync_cost import SyncLinks, sync_memory_bytes, sync_seconds
from autopar.cost.states import ParameterBytes
from autopar.cost.work import Vector
from autopar.sync import Sync, SyncGroup, parse_sync

PLAIN = "all_reduce"
"""The mode that averages whole gradients in every step."""


@dataclass(frozen=True, kw_only=True)
class StageSync:
    """What the ranks of one pipeline coordinate do after their last backward.

    ==== ==================================================================================
    zero after the last backward
    ==== ==================================================================================
    0    all-reduce gradients over all ranks with the same parameters
    1    reduce-scatter gradients, all-reduce the shards over replicas, all-gather weights
    2    all-reduce the shards over replicas, all-gather weights (scattered in each backward)
    3    all-reduce the shards over replicas (gathers and scatters are in forward and backward)
    ==== ==================================================================================

    Attributes:
        communication: Seconds of collectives.
        sizes: Bytes per parameter element.
        zero: What is shared out.
        shards: Ranks that share.
        data: Groups of ranks with the same parameters.
        shard: Groups that share, empty when none does.
        replicate: Groups of replicas of a shard, empty when nothing is shared.
        expert_data: Groups of ranks with the same experts.
        concurrency: Groups that synchronise at the same time.
        bucket_bytes: Gradient bucket size.
        optimizer_s: Optimizer seconds per element that a rank updates.
        memory_bytes_per_s: Rate at which the device streams memory.
        compute_s: Forward and backward of a step, behind which stale modes hide.
        mode: Sync mode and compression.
    """

    communication: CommunicationModel
    sizes: ParameterBytes
    zero: int
    shards: int
    data: Shapes
    shard: Shapes
    replicate: Shapes
    expert_data: Shapes
    concurrency: int
    bucket_bytes: float
    optimizer_s: float
    memory_bytes_per_s: float
    compute_s: float = 0.0
    mode: str = PLAIN

    @cached_property
    def _sync(self) -> Sync | None:
        """The mode, ``None`` for plain synchronisation of gradients."""
        return None if self.mode == PLAIN else parse_sync(self.mode)

    @cached_property
    def key(self) -> object:
        """Equal where the seconds of any rank are."""
        return (
            id(self.communication),
            self.zero,
            self.shards,
            self.data,
            self.shard,
            self.replicate,
            self.expert_data,
            self.concurrency,
            self.bucket_bytes,
            self.optimizer_s,
            self.mode,
            None if self.mode == PLAIN else (self.memory_bytes_per_s, self.compute_s),
        )

    def _group(self) -> SyncGroup:
        return SyncGroup(ranks=self.data[0].ranks, nodes=self.data[0].nodes)

    def _other(self, dense: float, backward_s: float, compute_s: float) -> tuple[float, float]:
        """Full and exposed seconds of another mode or of compressed gradients."""
        assert self._sync is not None  # the caller looked
        links = SyncLinks(
            group=self._group(),
            seconds=self._message,
            memory_bytes_per_s=self.memory_bytes_per_s,
            bucket_bytes=self.bucket_bytes,
            element_bytes=self.sizes.gradient,
        )
        size = dense * self.sizes.gradient
        return sync_seconds(self._sync, size, links, backward_s=backward_s, compute_s=compute_s)

    def _message(self, kind: str, size_bytes: float, scope: str) -> float:
        if scope == "all":
            return self._slowest(kind, size_bytes, self.data)
        inside = tuple(
            replace(group, ranks=group.most, nodes=1, fewest=group.most) for group in self.data
        )
        return self._slowest(kind, size_bytes, inside)

    def held_bytes(self, dense: float) -> float:
        """Bytes a rank keeps for the mode beside weights, gradients and optimizer state."""
        if self._sync is None:
            return 0.0
        size = dense * self.sizes.gradient
        return sync_memory_bytes(self._sync, size, self._group(), self.sizes.gradient)

    def seconds(self, dense: float, experts: float = 0.0) -> float:
        """All of it, one after the other, nothing overlapped.

        Args:
            dense: Parameter elements on a rank, experts left out.
            experts: Expert parameter elements on a rank.
        """
        key = (dense, experts)
        if key not in self._known and self._sync is not None:
            exposed = self._other(dense, 0.0, self.compute_s)[1] if dense > 0 else 0.0
            self._known[key] = exposed + self._experts(experts)
        if key not in self._known:
            buckets = bucketed_seconds(
                dense * self.sizes.gradient, self.bucket_bytes, self._bucket
            )
            self._known[key] = buckets + self._gather(dense) + self._experts(experts)
        return self._known[key]

    def many(self, dense: Vector, experts: Vector) -> Vector:
        """:meth:`seconds` of several ranks."""
        if self._sync is not None:
            pairs = zip(dense.tolist(), experts.tolist(), strict=True)
            return np.array([self.seconds(*pair) for pair in pairs])
        buckets = many_bucketed_seconds(
            dense * self.sizes.gradient, self.bucket_bytes, self._many_buckets
        )
        if self.zero in (1, 2):
            buckets = buckets + self._slowest_of(
                "all_gather", dense * self.sizes.weight, self.shard
            )
        sizes = experts * self.sizes.gradient
        return buckets + self._slowest_of("all_reduce", sizes, self.expert_data)

    @cached_property
    def _known(self) -> dict[tuple[float, float], float]:
        return {}

    def overlapped(
        self,
        backward_s: Sequence[float],
        ready: Sequence[float],
        experts: float,
        slowdown: float,
    ) -> tuple[float, float]:
        """Full and exposed seconds when buckets start as soon as backward fills them.

        Args:
            backward_s: Backward seconds of the blocks, in the order backward runs them.
            ready: Elements whose gradients become complete in each.
            experts: Expert parameter elements on a rank.
            slowdown: Extra backward time per second of communication beside it.
        """
        tail = self._gather(sum(ready)) + self._experts(experts)
        if self._sync is not None:
            whole, left = self._other(sum(ready), sum(backward_s), self.compute_s)
            return whole + tail, left + tail
        if self._bucket(self.bucket_bytes) == 0.0:
            return tail, tail
        sizes = [elements * self.sizes.gradient for elements in ready]
        full, exposed = overlapped_seconds(
            backward_s, sizes, self.bucket_bytes, self._bucket, slowdown
        )
        return full + tail, exposed + tail

    def optimizer_seconds(self, dense: float, experts: float = 0.0) -> float:
        """Optimizer step over what the rank updates."""
        shards = self.shards if self.zero >= 1 else 1
        return (dense / shards + experts) * self.optimizer_s

    def per_element(self, dense: float) -> float:
        """Least seconds of synchronisation and optimizer per dense element, for bounds."""
        return (self.seconds(dense) + self.optimizer_seconds(dense)) / dense if dense else 0.0

    def _bucket(self, size_bytes: float) -> float:
        if self.zero == 0:
            return self._slowest("all_reduce", size_bytes, self.data)
        own = size_bytes / self.shards
        seconds = self._slowest("all_reduce", own, self.replicate)
        if self.zero == 1:
            seconds += self._slowest("reduce_scatter", size_bytes, self.shard)
        return seconds

    def _many_buckets(self, sizes_bytes: Vector) -> Vector:
        """:meth:`_bucket` of several sizes."""
        if self.zero == 0:
            return self._slowest_of("all_reduce", sizes_bytes, self.data)
        seconds = self._slowest_of("all_reduce", sizes_bytes / self.shards, self.replicate)
        if self.zero == 1:
            seconds = seconds + self._slowest_of("reduce_scatter", sizes_bytes, self.shard)
        return seconds

    def _gather(self, dense: float) -> float:
        if self.zero not in (1, 2):
            return 0.0
        return self._slowest("all_gather", dense * self.sizes.weight, self.shard)

    def _experts(self, experts: float) -> float:
        return self._slowest("all_reduce", experts * self.sizes.gradient, self.expert_data)

    def _slowest(self, kind: str, size_bytes: float, shapes: Shapes) -> float:
        return max(
            (
                self.communication.seconds(kind, size_bytes, group, self.concurrency)
                for group in shapes
            ),
            default=0.0,
        )

    def _slowest_of(self, kind: str, sizes_bytes: Vector, shapes: Shapes) -> Vector:
        """:meth:`_slowest` of several sizes."""
        found = [
            self.communication.many(kind, sizes_bytes, group, self.concurrency) for group in shapes
        ]
        return np.maximum.reduce(found) if found else np.zeros_like(sizes_bytes)
