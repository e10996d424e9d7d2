"""In which order a plan takes the devices of a mixed cluster.

Ranks run over pipeline stages first, so the order of the nodes decides which kind of machine
holds the first stages and which replicas a stage has. Searched are all orders of whole nodes, up
to nodes of one kind, of every non-empty subset of the kinds; where there are more than
:data:`MOST_ORDERS` orders of a subset, only those that keep the nodes of a kind together. Devices
inside a node keep their order, as they are equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, permutations

from autopar.cluster import Cluster, NodeGroup
from autopar.search.explain.machines_used import node_words

MOST_ORDERS = 24
"""Orders of one subset of kinds up to which kinds may alternate along the pipeline."""


@dataclass(frozen=True, kw_only=True)
class DeviceOrder:
    """The nodes of some kinds of a cluster in one order.

    Attributes:
        cluster: These nodes as a cluster of their own, with device ids 0, 1, 2 ... in this order.
        devices: Device id in the whole cluster of each of them.
    """

    cluster: Cluster
    devices: tuple[int, ...]

    @property
    def words(self) -> str:
        """The order for people: ``2 nodes of v100-32gb, then 2 nodes of t4``."""
        return ", then ".join(node_words(g.machine.name, g.nodes) for g in self.cluster.groups)

    def placed(self, placement: Sequence[int]) -> tuple[int, ...]:
        """Device ids of the whole cluster for ids of this order."""
        return tuple(self.devices[device] for device in placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A node: its kind, its group and its first device in the whole cluster."""

    kind: int
    group: NodeGroup
    first: int


def device_orders(cluster: Cluster) -> list[DeviceOrder]:
    """All orders that are searched, the cluster's own first."""
    kinds = _nodes_by_kind(cluster)
    own = tuple(kind for kind, _ in _sequence(cluster))
    found = {own: None}
    for size in range(len(kinds), 0, -1):
        for subset in combinations(kinds, size):
            counts = Counter({kind: len(kinds[kind]) for kind in subset})
            found.update(dict.fromkeys(_orders(counts)))
    return [_order(cluster, kinds, sequence) for sequence in found]


def _sequence(cluster: Cluster) -> list[tuple[int, _Node]]:
    """The nodes in their own order, numbered by kind of machine."""
    numbers: dict[object, int] = {}
    nodes, first = [], 0
    for group in cluster.groups:
        machine = group.machine
        # Equal names with other figures (a changed cluster) are other machines.
        kind = numbers.setdefault((machine.name, repr(machine)), len(numbers))
        for _ in range(group.nodes):
            nodes.append((kind, _Node(kind=kind, group=group, first=first)))
            first += machine.devices_per_node
    return nodes


def _nodes_by_kind(cluster: Cluster) -> dict[int, list[_Node]]:
    kinds: dict[int, list[_Node]] = {}
    for kind, node in _sequence(cluster):
        kinds.setdefault(kind, []).append(node)
    return kinds


def _orders(counts: Counter[int]) -> Iterator[tuple[int, ...]]:
    """Sequences of kinds, each as often as counted: all of them, or blocks if those are many."""
    blocks = (
        tuple(k for kind in order for k in [kind] * counts[kind]) for order in permutations(counts)
    )
    yield from blocks
    ways = math.factorial(counts.total())
    for count in counts.values():
        ways //= math.factorial(count)
    if ways <= MOST_ORDERS:
        yield from _alternating(counts)


def _alternating(counts: Counter[int]) -> Iterator[tuple[int, ...]]:
    """Every distinct sequence."""
    if not counts.total():
        yield ()
        return
    for kind in sorted(counts):
        if counts[kind]:
            rest = counts.copy()
            rest[kind] -= 1
            for tail in _alternating(rest):
                yield (kind, *tail)


def _order(
    cluster: Cluster, kinds: dict[int, list[_Node]], sequence: tuple[int, ...]
) -> DeviceOrder:
    """Nodes of each kind are taken in their own order."""
    taken = {kind: iter(nodes) for kind, nodes in kinds.items()}
    nodes = [next(taken[kind]) for kind in sequence]
    groups, devices = [], []
    for _, run in groupby(nodes, key=lambda node: node.kind):
        members = list(run)
        machine = members[0].group.machine
        groups.append(NodeGroup(machine=machine, nodes=len(members)))
        devices += [n.first + i for n in members for i in range(machine.devices_per_node)]
    return DeviceOrder(cluster=replace(cluster, groups=tuple(groups)), devices=tuple(devices))
