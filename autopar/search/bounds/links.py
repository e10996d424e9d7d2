"""What messages and collectives between the ranks of a group take at least."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.cost.communication.groups import Group
from autopar.cost.communication.ranks import Shapes
from autopar.cost.layout import BUCKET_BYTES
from autopar.search.space.columns import Columns, alike
from autopar.search.space.groups import PointGroup
from autopar.strategies import WHOLE

if TYPE_CHECKING:
    from autopar.search.bounds.rows import Rows

Array = npt.NDArray[np.float64]
LARGE = 1e13
"""Bytes at which the latency of a collective no longer counts."""
RATES = ("scatter", "gather", "bucket_all_reduce", "bucket_scatter", "bucket_replicas")
"""Names of the rates of a group."""


class Links:
    """Messages down the pipeline, sums of tied parameters, rates over the data ranks.

    Args:
        rows: Devices and ranks of groups.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.model = rows.model
        self._group_rates: dict[object, tuple[float, ...]] = {}
        self._rates: dict[object, float] = {}
        self._hops: dict[object, tuple[Array, float]] = {}
        self._link_kinds: dict[
            tuple[int, int], tuple[list[tuple[int, int]], npt.NDArray[np.intp]]
        ] = {}

    def hops(self, group: PointGroup, size_bytes: float) -> tuple[Array, float]:
        """Least seconds of messages along the pipeline.

        Args:
            group: The group.
            size_bytes: Of a message from one pipeline rank to the next.

        Returns:
            By pipeline rank, all messages from rank 0 down to it; and the slowest message.
        """
        nothing = np.zeros(group.pp)
        if group.pp == 1 or size_bytes <= 0:
            return nothing, 0.0
        key = (group.world, group.pp, size_bytes)
        if key not in self._hops:
            ends, kinds = self._links(group.world, group.pp)
            message_seconds = self.rows.world(group.world).communication.message_seconds
            each = np.array([message_seconds(size_bytes, *pair) for pair in ends])[kinds]
            self._hops[key] = np.concatenate((nothing[:1], np.cumsum(each))), float(each.max())
        return self._hops[key]

    def all_hops(self, columns: Columns, sizes_bytes: Array) -> tuple[Array, Array]:
        """:meth:`hops` of every group, of equal pipelines ``[group, rank]`` and ``[group]``."""
        firsts, which = alike(columns.world, sizes_bytes)
        found = [self.hops(columns.groups[i], float(sizes_bytes[i])) for i in firsts]
        sums = np.array([sums for sums, _ in found])
        return sums[which], np.array([slowest for _, slowest in found])[which]

    def _links(self, size: int, pp: int) -> tuple[list[tuple[int, int]], npt.NDArray[np.intp]]:
        """A pair of devices for each kind of link down the pipeline, and the kind of each link."""
        if (size, pp) not in self._link_kinds:
            world, stage, cluster = self.rows.world(size), size // pp, self.model.cluster
            numbers: dict[object, int] = {}
            pairs, kinds = [], []
            for rank in range(pp - 1):
                ends = (world.placement[rank * stage], world.placement[(rank + 1) * stage])
                kind = (
                    cluster.node(ends[0]) == cluster.node(ends[1]),
                    *(cluster.machine(d).name for d in ends),
                    *(world.communication.ranks_on_host(d) for d in ends),
                )
                if kind not in numbers:
                    numbers[kind] = len(numbers)
                    pairs.append(ends)
                kinds.append(numbers[kind])
            self._link_kinds[size, pp] = (pairs, np.array(kinds))
        return self._link_kinds[size, pp]

    def around_s(self, group: PointGroup, size_bytes: float) -> float:
        """Least seconds of a message from the last pipeline rank to the first."""
        world = self.rows.world(group.world)
        return world.communication.message_seconds(
            size_bytes, (group.pp - 1) * (group.world // group.pp), 0
        )

    @cached_property
    def ends_tied(self) -> bool:
        """True when parameters are tied between the first and the last block and no others."""
        tied, last = self.model.tables(WHOLE).tied, len(self.model.profile.blocks) - 1
        return bool(tied) and all(blocks == (0, last) for _, _, blocks in tied)

    def tied_s(self, group: PointGroup, ends: tuple[int, int]) -> float:
        """Least seconds of summing gradients of what the first and the last block share.

        Args:
            group: The group.
            ends: Pipeline ranks of the first and of the last stage.
        """
        if not self.ends_tied or ends[0] == ends[1]:
            return 0.0
        elements = sum(size for _, size, _ in self.model.tables(group.split).tied)
        world, stage = self.rows.world(group.world), group.world // group.pp
        devices = tuple(world.placement[rank * stage] for rank in sorted(ends))
        key = ("tied", group.world, devices, stage, elements)
        if key not in self._rates:
            self._rates[key] = world.communication.group_seconds(
                "all_reduce", elements * self.model.sizes.gradient, devices, concurrency=stage
            )
        return self._rates[key]

    def rates(self, group: PointGroup) -> tuple[float, ...]:
        """Seconds per byte of the collectives over a group's data ranks, by :data:`RATES`.

        ``scatter`` and ``gather`` leave latency out; those of gradient buckets have it in.
        """
        regular = self.rows.world(group.world).regular
        degrees = (group.dp_replicate, group.dp_shard, group.cp, group.tp)
        key = (group.world, *degrees, 1 if regular else group.pp)
        if key not in self._group_rates:
            ranks, bucket = self.rows.ranks(group), float(BUCKET_BYTES)
            shards = group.dp_shard * group.cp if group.dp_shard > 1 else 1
            every = [0] if regular else range(group.pp)
            data = {ranks.data(q) for q in every}
            shard = {ranks.shard(q) for q in every}
            replicate = {ranks.replicate(q) for q in every}
            self._group_rates[key] = (
                self._fastest("reduce_scatter", shard),
                self._fastest("all_gather", shard),
                self._fastest("all_reduce", data, bucket),
                self._fastest("reduce_scatter", shard, bucket),
                self._fastest("all_reduce", replicate, bucket / shards),
            )
        return self._group_rates[key]

    def all_rates(self, columns: Columns) -> Array:
        """:meth:`rates` of every group ``[group, rate]``."""
        c = columns
        depth = np.where(self.rows.regular(c), 1, c.pp)  # equal nodes: no rank is slower
        return c.once((c.world, c.dp_replicate, c.dp_shard, c.split, depth), self.rates)

    def _fastest(self, kind: str, ranks: set[Shapes], size_bytes: float | None = None) -> float:
        """Least rate over pipeline ranks, each as slow as one of its groups."""
        if size_bytes is None:
            return min(max(self._rate(kind, s) for s in shapes) for shapes in ranks)
        return min(max(self._bucket_rate(kind, s, size_bytes) for s in shapes) for shapes in ranks)

    def _rate(self, kind: str, shape: Group) -> float:
        key = (kind, shape)
        if key not in self._rates:
            one, two = (self._seconds(kind, size, shape) for size in (LARGE, 2 * LARGE))
            self._rates[key] = (two - one) / LARGE
        return self._rates[key]

    def _bucket_rate(self, kind: str, shape: Group, size_bytes: float) -> float:
        """Seconds per byte of whole buckets and, as time is concave in bytes, of a smaller one.

        Measured curves may bend the other way: only their slope counts.
        """
        if self.model.cluster.curves:
            return self._rate(kind, shape)
        key = (kind, shape, size_bytes)
        if key not in self._rates:
            self._rates[key] = self._seconds(kind, size_bytes, shape) / size_bytes
        return self._rates[key]

    @cached_property
    def _seconds(self) -> Callable[[str, float, Group], float]:
        return self.rows.world(self.model.cluster.device_count).communication.seconds
