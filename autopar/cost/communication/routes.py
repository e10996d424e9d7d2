"""Seconds between pipeline coordinates of one placement: messages, and sums of tied gradients."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.cluster import Cluster
from autopar.cost import constants as k
from autopar.cost.communication.collectives import CommunicationModel

Pairs = list[tuple[int, int]]


class Routes:
    """What goes between pipeline coordinates; all layouts with equal groups share one.

    Args:
        cluster: Devices and links.
        communication: Communication between the devices that take part.
        groups: Devices of each pipeline coordinate.
    """

    def __init__(
        self,
        cluster: Cluster,
        communication: CommunicationModel,
        groups: tuple[tuple[int, ...], ...],
    ) -> None:
        self.groups = groups
        self._cluster = cluster
        self._communication = communication
        self._kinds: dict[object, tuple[int, Pairs]] = {}
        self._routes: dict[tuple[int, int], tuple[int, Pairs]] = {}
        self._messages: dict[tuple[int, float], float] = {}
        self._tied: dict[tuple[tuple[int, ...], float], float] = {}

    def message_seconds(self, size_bytes: float, source: int, target: int) -> float:
        """Slowest message between two pipeline coordinates, never quite free."""
        if source == target:
            return 0.0
        if (source, target) not in self._routes:
            self._routes[source, target] = self._route(source, target)
        kind, pairs = self._routes[source, target]
        key = (kind, size_bytes)
        if key not in self._messages:
            seconds = max(self._communication.message_seconds(size_bytes, *pair) for pair in pairs)
            self._messages[key] = max(seconds, k.MIN_TRANSFER_S)
        return self._messages[key]

    def _route(self, source: int, target: int) -> tuple[int, Pairs]:
        """Number of what message times depend on, and a pair of devices of each kind."""
        cluster, communication = self._cluster, self._communication
        kinds = {}
        for a, b in self._pairs(source, target):
            kind = (
                cluster.node(a) == cluster.node(b),
                cluster.machine(a).name,
                cluster.machine(b).name,
                communication.ranks_on_host(a),
                communication.ranks_on_host(b),
            )
            kinds[kind] = (a, b)
        return self._kinds.setdefault(frozenset(kinds), (len(self._kinds), list(kinds.values())))

    def _pairs(self, source: int, target: int) -> Pairs:
        """Devices that send and receive; one pair where all are alike."""
        shapes, size = self._communication.shapes, len(self.groups[source])
        node = shapes.per_node_devices
        if shapes.regular and (size % node == 0 or node % size == 0):
            return [(self.groups[source][0], self.groups[target][0])]
        return list(zip(self.groups[source], self.groups[target], strict=True))

    def tied_seconds(self, ranks: Sequence[int], size_bytes: float) -> float:
        """Sum of gradients over pipeline coordinates; all replicas at once."""
        key = (tuple(ranks), size_bytes)
        if key not in self._tied:
            self._tied[key] = self._tied_seconds(key[0], size_bytes)
        return self._tied[key]

    def _tied_seconds(self, ranks: tuple[int, ...], size_bytes: float) -> float:
        replicas = zip(*(self.groups[rank] for rank in ranks), strict=True)
        shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        for devices in replicas:
            shapes.setdefault(tuple(map(self._cluster.node, devices)), devices)
            if len(shapes) == k.TIED_SHAPES:  # equal machines: a few shapes stand for all
                break
        return max(
            self._communication.group_seconds(
                "all_reduce", size_bytes, devices, concurrency=len(self.groups[0])
            )
            for devices in shapes.values()
        )
