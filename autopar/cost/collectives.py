"""Seconds of collectives and point-to-point messages between given devices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from autopar.cluster import Cluster, CollectiveCurve, Link


class CommunicationModel:
    """Measured curves where the cluster has them, else alpha-beta over its two tiers.

    Args:
        cluster: Devices, links and measured curves.
        busy: Devices that take part in the step; those of one node share its network link.
    """

    def __init__(self, cluster: Cluster, busy: Sequence[int]) -> None:
        self.cluster = cluster
        self._per_node = Counter(cluster.node(device) for device in busy)
        self._shape: dict[tuple[int, ...], tuple[int, int, int]] = {}
        self.measured_only = True

    def ranks_on_host(self, device: int) -> int:
        """Busy devices on the node of a device."""
        return self._per_node[self.cluster.node(device)]

    def group_seconds(
        self, collective: str, size_bytes: float, devices: tuple[int, ...], concurrency: int = 1
    ) -> float:
        """Time of ``all_reduce``, ``reduce_scatter``, ``all_gather`` or ``broadcast``.

        Args:
            collective: Name.
            size_bytes: The full tensor each rank contributes or ends with.
            devices: The group.
            concurrency: Equal groups that run it at the same time.
        """
        if len(devices) < 2 or size_bytes <= 0:
            return 0.0
        nodes, _, _ = self._group_shape(devices)
        measured = self._measured(collective, size_bytes, len(devices), nodes, concurrency)
        if measured is not None:
            return measured
        self.measured_only = False
        return self._analytic(collective, size_bytes, devices)

    def message_seconds(self, size_bytes: float, source: int, target: int) -> float:
        """Time of one point-to-point message; all busy devices of a node send at once."""
        if source == target or size_bytes <= 0:
            return 0.0
        same = self.cluster.node(source) == self.cluster.node(target)
        measured = self._measured("send_recv", size_bytes, 2, 1 if same else 2, 1)
        if measured is not None:
            return measured
        self.measured_only = False
        if same:
            link = self.cluster.machine(source).intra
            return link.latency_s + size_bytes / _rate(link)
        ends = [self.cluster.machine(device).inter for device in (source, target)]
        shares = [
            _rate(link) / self.ranks_on_host(device)
            for link, device in zip(ends, (source, target), strict=True)
        ]
        return max(link.latency_s for link in ends) + size_bytes / min(shares)

    def group_kind(self, devices: tuple[int, ...]) -> tuple[object, ...]:
        """Groups of the same kind have the same collective times."""
        places = {(self.cluster.machine(d).name, self.ranks_on_host(d)) for d in devices}
        return (len(devices), self._group_shape(devices), frozenset(places))

    def _group_shape(self, devices: tuple[int, ...]) -> tuple[int, int, int]:
        """Nodes of a group, smallest and largest number of its devices on one node."""
        if devices not in self._shape:
            counts = Counter(map(self.cluster.node, devices)).values()
            self._shape[devices] = (len(counts), min(counts), max(counts))
        return self._shape[devices]

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

    def _analytic(self, collective: str, size_bytes: float, devices: tuple[int, ...]) -> float:
        """Two tiers: inside the node on the whole message, across nodes on each device's share."""
        nodes, fewest, most = self._group_shape(devices)
        machines = [self.cluster.machine(device) for device in devices]
        seconds = 0.0
        if most > 1:
            slowest = min((m.intra for m in machines), key=_rate)
            seconds += _ring(collective, size_bytes, most, _rate(slowest), slowest.latency_s)
        if nodes > 1:
            rate = min(
                _rate(machine.inter) / self.ranks_on_host(device)
                for machine, device in zip(machines, devices, strict=True)
            )
            latency = max(machine.inter.latency_s for machine in machines)
            seconds += _ring(collective, size_bytes / fewest, nodes, rate, latency)
        return seconds


def _rate(link: Link) -> float:
    return link.bytes_per_s * link.efficiency


def _ring(collective: str, size_bytes: float, ranks: int, rate: float, latency_s: float) -> float:
    """Ring or double binary tree, the faster one, as NCCL chooses (Patarasuk & Yuan 2009)."""
    steps, part = ranks - 1, (ranks - 1) / ranks
    depth = math.ceil(math.log2(ranks))
    if collective == "all_reduce":
        ring = 2 * steps * latency_s + 2 * part * size_bytes / rate
        tree = 2 * depth * latency_s + 2 * size_bytes / rate
        return min(ring, tree)
    if collective == "broadcast":
        return depth * latency_s + size_bytes / rate
    return steps * latency_s + part * size_bytes / rate
