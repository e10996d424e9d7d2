"""Seconds of collectives and point-to-point messages between given devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autopar.cluster import Cluster, CollectiveCurve, Link
from autopar.cost.communication.groups import Group, GroupShapes

Size = TypeVar("Size", float, npt.NDArray[np.float64])
"""Bytes of one message, or an array of them."""


class CommunicationModel:
    """Measured curves where the cluster has them, else alpha-beta over its two tiers.

    Args:
        cluster: Devices, links and measured curves.
        busy: Devices that take part in the step; those of one node share its network link.
    """

    def __init__(self, cluster: Cluster, busy: Sequence[int]) -> None:
        self.cluster = cluster
        self.shapes = GroupShapes(cluster, busy)

    def ranks_on_host(self, device: int) -> int:
        """Busy devices on the node of a device."""
        return self.shapes.per_node[self.cluster.node(device)]

    def group_seconds(
        self, collective: str, size_bytes: float, devices: tuple[int, ...], concurrency: int = 1
    ) -> float:
        """:meth:`seconds` of the group of some devices."""
        if len(devices) < 2 or size_bytes <= 0:
            return 0.0
        return self.seconds(collective, size_bytes, self.shapes.of(devices), concurrency)

    def seconds(
        self, collective: str, size_bytes: float, group: Group, concurrency: int = 1
    ) -> float:
        """Time of one collective.

        Args:
            collective: ``all_reduce``, ``reduce_scatter``, ``all_gather``, ``broadcast`` or
                ``all_to_all``.
            size_bytes: The full tensor each rank contributes or ends with.
            group: Shape of the group.
            concurrency: Equal groups that run it at the same time.
        """
        if group.ranks < 2 or size_bytes <= 0:
            return 0.0
        measured = self._measured(collective, size_bytes, group.ranks, group.nodes, concurrency)
        return (
            measured if measured is not None else collective_seconds(collective, size_bytes, group)
        )

    def many(
        self,
        collective: str,
        sizes_bytes: npt.NDArray[np.float64],
        group: Group,
        concurrency: int = 1,
    ) -> npt.NDArray[np.float64]:
        """:meth:`seconds` of several sizes."""
        if self.cluster.curves:
            found = [
                self.seconds(collective, float(s), group, concurrency)
                for s in np.ravel(sizes_bytes)
            ]
            return np.reshape(found, sizes_bytes.shape)
        if group.ranks < 2:
            return np.zeros_like(sizes_bytes)
        seconds = collective_seconds(collective, sizes_bytes, group)
        return np.where(sizes_bytes > 0, seconds, 0.0)

    def message_seconds(self, size_bytes: float, source: int, target: int) -> float:
        """Time of one point-to-point message; all busy devices of a node send at once."""
        if source == target or size_bytes <= 0:
            return 0.0
        same = self.cluster.node(source) == self.cluster.node(target)
        measured = self._measured("send_recv", size_bytes, 2, 1 if same else 2, 1)
        if measured is not None:
            return measured
        if same:
            link = self.cluster.machine(source).intra
            return link.latency_s + size_bytes / _rate(link)
        ends = [self.cluster.machine(device).inter for device in (source, target)]
        shares = [
            _rate(link) / self.ranks_on_host(device)
            for link, device in zip(ends, (source, target), strict=True)
        ]
        return max(link.latency_s for link in ends) + size_bytes / min(shares)

    def _measured(
        self, collective: str, size_bytes: float, ranks: int, nodes: int, concurrency: int
    ) -> float | None:
        """The curve of this group size; other sizes by a line in the number of ranks.

        Between two measured sizes the seconds are interpolated linearly in ranks; beyond them
        they grow in proportion to ``ranks - 1`` (steps of a ring, shared host bandwidth). Curves
        of the closest concurrency and the same number of hosts are used.
        """
        if not self.cluster.curves:
            return None
        curves = self._curves(collective, nodes, concurrency)
        if not curves:
            return None
        if ranks in curves:
            return curves[ranks].seconds(size_bytes)
        low = max((n for n in curves if n < ranks), default=None)
        high = min((n for n in curves if n > ranks), default=None)
        if low is not None and high is not None:
            first, second = curves[low].seconds(size_bytes), curves[high].seconds(size_bytes)
            return first + (second - first) * (ranks - low) / (high - low)
        nearest = low if low is not None else high
        assert nearest is not None  # curves is not empty
        return curves[nearest].seconds(size_bytes) * (ranks - 1) / (nearest - 1)

    def _curves(self, collective: str, nodes: int, concurrency: int) -> dict[int, CollectiveCurve]:
        found: dict[int, CollectiveCurve] = {}
        for curve in self.cluster.curves:
            if curve.collective != collective or curve.nodes != nodes or curve.ranks < 2:
                continue
            known = found.get(curve.ranks)
            distance = abs(curve.concurrency - concurrency)
            if known is None or distance < abs(known.concurrency - concurrency):
                found[curve.ranks] = curve
        return found


def _rate(link: Link) -> float:
    return link.bytes_per_s * link.efficiency


def collective_seconds(collective: str, size_bytes: Size, group: Group) -> Size:
    """Alpha-beta time over two tiers.

    Inside a node on the whole message, across nodes on each device's share of it. All-to-all
    uses both tiers at once; the slower one counts.
    """
    if collective == "all_to_all":
        return _all_to_all(size_bytes, group)
    seconds = 0.0 * size_bytes
    if group.most > 1:
        seconds = seconds + _ring(
            collective, size_bytes, group.most, group.intra_bytes_per_s, group.intra_latency_s
        )
    if group.nodes > 1:
        part = size_bytes / group.fewest
        seconds = seconds + _ring(
            collective, part, group.nodes, group.inter_bytes_per_s, group.inter_latency_s
        )
    return seconds


def _all_to_all(size_bytes: Size, group: Group) -> Size:
    """Each rank keeps ``1/n`` of its bytes and sends the rest, ``most - 1`` parts in the node."""
    inside = (
        group.intra_latency_s
        + size_bytes * ((group.most - 1) / group.ranks) / group.intra_bytes_per_s
    )
    if group.nodes == 1:
        return inside
    outside = (
        group.inter_latency_s
        + size_bytes * ((group.ranks - group.most) / group.ranks) / group.inter_bytes_per_s
    )
    return _larger(inside, outside)


def _ring(collective: str, size_bytes: Size, ranks: int, rate: float, latency_s: float) -> Size:
    """Ring or double binary tree, the faster one, as NCCL chooses (Patarasuk & Yuan 2009)."""
    steps, part = ranks - 1, (ranks - 1) / ranks
    depth = math.ceil(math.log2(ranks))
    if collective == "all_reduce":
        ring = 2 * steps * latency_s + 2 * part * size_bytes / rate
        tree = 2 * depth * latency_s + 2 * size_bytes / rate
        return _smaller(ring, tree)
    if collective == "broadcast":
        return depth * latency_s + size_bytes / rate
    return steps * latency_s + part * size_bytes / rate


def _smaller(a: Size, b: Size) -> Size:
    return min(a, b) if isinstance(a, float) and isinstance(b, float) else np.minimum(a, b)


def _larger(a: Size, b: Size) -> Size:
    return max(a, b) if isinstance(a, float) and isinstance(b, float) else np.maximum(a, b)
