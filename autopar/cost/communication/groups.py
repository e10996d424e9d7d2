"""Groups of devices that communicate: what the time of their collectives depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.cluster import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The shape of a group of devices.

    Two groups with equal values have equal collective times.

    Attributes:
        ranks: Devices.
        nodes: Nodes they sit on.
        fewest: Smallest number of them on one node.
        most: Largest number of them on one node.
        intra_bytes_per_s: Rate of the slowest link inside a node, efficiency included.
        intra_latency_s: Its latency.
        inter_bytes_per_s: Rate between nodes that one busy device has for itself.
        inter_latency_s: Latency between nodes.
    """

    ranks: int
    nodes: int
    fewest: int
    most: int
    intra_bytes_per_s: float
    intra_latency_s: float
    inter_bytes_per_s: float
    inter_latency_s: float


class GroupShapes:
    """Shapes of groups among the devices that take part in a step.

    Args:
        cluster: Devices and links.
        busy: Devices that take part; those of one node share its network link.
    """

    def __init__(self, cluster: Cluster, busy: Sequence[int]) -> None:
        self.cluster = cluster
        self.per_node = Counter(cluster.node(device) for device in busy)
        self._by_devices: dict[tuple[int, ...], Group] = {}
        self._strided: dict[tuple[int, int, int], Group] = {}
        per_node = cluster.groups[0].machine.devices_per_node
        counts = list(self.per_node.values())
        first = tuple(busy) == tuple(range(len(busy)))
        self.per_node_devices = per_node
        self.regular = (
            first and cluster.uniform and (len(counts) == 1 or all(c == per_node for c in counts))
        )
        """Devices 0, 1, 2 ... of equal, equally busy nodes: shapes follow by arithmetic."""
        self.axes: dict[tuple[int, int, int, int], tuple[Group, ...]] = {}
        """Shapes of the groups of an axis, by first rank and ranks of a stage, stride, count."""
        self._runs = _whole_runs(cluster, len(busy)) if first else []

    def node_size(self, start: int, stop: int) -> int | None:
        """Devices per node where ranks ``[start, stop)`` are whole nodes of one machine.

        Then groups that start at equal places of a node have equal shapes.
        """
        for first, last, size in self._runs:
            if first <= start and stop <= last:
                whole = (start - first) % size == 0 and (stop - first) % size == 0
                return size if whole else None
        return None

    def of(self, devices: tuple[int, ...]) -> Group:
        """The shape of any group."""
        if devices not in self._by_devices:
            counts = Counter(map(self.cluster.node, devices))
            self._by_devices[devices] = self._group(devices, list(counts.values()))
        return self._by_devices[devices]

    def strided(self, first: int, stride: int, count: int) -> Group:
        """The shape of devices ``first, first + stride, ...``, ``count`` of them."""
        if not self.regular:
            return self.of(tuple(range(first, first + stride * count, stride)))
        offset = first % self.per_node_devices
        key = (offset, stride, count)
        if key not in self._strided:
            self._strided[key] = self._arithmetic(offset, stride, count)
        return self._strided[key]

    def _arithmetic(self, offset: int, stride: int, count: int) -> Group:
        size = self.per_node_devices
        last = (offset + stride * (count - 1)) // size
        if last == 0:
            return self._group((offset,), [count])
        if stride >= size:
            return self._group((offset,), [1] * count)
        counts = Counter((offset + stride * i) // size for i in range(count))
        return self._group((offset,), list(counts.values()))

    def _group(self, devices: tuple[int, ...], counts: list[int]) -> Group:
        machines = {self.cluster.machine(d).name: self.cluster.machine(d) for d in devices}
        slowest = min(
            (machine.intra for machine in machines.values()),
            key=lambda link: link.bytes_per_s * link.efficiency,
        )
        share = min(
            self.cluster.machine(d).inter.bytes_per_s
            * self.cluster.machine(d).inter.efficiency
            / self.per_node[self.cluster.node(d)]
            for d in devices
        )
        return Group(
            ranks=sum(counts),
            nodes=len(counts),
            fewest=min(counts),
            most=max(counts),
            intra_bytes_per_s=slowest.bytes_per_s * slowest.efficiency,
            intra_latency_s=slowest.latency_s,
            inter_bytes_per_s=share,
            inter_latency_s=max(machine.inter.latency_s for machine in machines.values()),
        )


def _whole_runs(cluster: Cluster, busy: int) -> list[tuple[int, int, int]]:
    """``(first, stop, devices per node)`` of equal nodes of which all devices take part."""
    runs, first = [], 0
    for group in cluster.groups:
        size = group.machine.devices_per_node
        stop = min(first + group.devices, first + max(0, busy - first) // size * size)
        if stop > first:
            runs.append((first, stop, size))
        first += group.devices
    return runs
