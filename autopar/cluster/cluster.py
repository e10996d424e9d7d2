"""Cluster: groups of equal nodes, the network between them, and measured curves if any."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx

from autopar.cluster.curve import CollectiveCurve
from autopar.cluster.machine import Device, Link, Machine
from autopar.cluster.overhead import NO_OVERHEAD, HostOverhead
from autopar.core.errors import InputError
from autopar.core.io import check_schema, content_hash, read_json, write_document

SCHEMA = "autopar.cluster"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """``nodes`` equal machines."""

    machine: Machine
    nodes: int

    @property
    def devices(self) -> int:
        """Devices in the group."""
        return self.nodes * self.machine.devices_per_node


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices and how they reach each other.

    Device ids run over groups, then nodes, then devices of a node: 0, 1, 2 ...

    Attributes:
        name: The string it was made from (``4x8:h100-sxm``, ``local:2``).
        groups: Node groups; several for mixed clusters.
        curves: Measured collectives; empty for catalogue clusters.
        backend: ``gloo`` or ``nccl``.
        busy_slowdown: Busy ranks per host -> time of a fixed computation relative to one busy
            rank (a host with fewer cores than ranks, shared caches and memory); empty when the
            devices do not share anything.
        overlap_slowdown: Relative extra compute time while a collective runs beside it, 0 to 1.
        overhead: What the executor costs per action and step on this host, zero when unknown.
        measured: True when the figures were measured here.
        provenance: Who made it.
    """

    name: str
    groups: tuple[NodeGroup, ...]
    curves: tuple[CollectiveCurve, ...] = ()
    backend: str = "nccl"
    busy_slowdown: dict[int, float] = field(default_factory=dict)
    overlap_slowdown: float = 0.0
    overhead: HostOverhead = NO_OVERHEAD
    measured: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.groups or any(g.nodes < 1 for g in self.groups):
            raise InputError(f"cluster '{self.name}' has no nodes", hint="write it like 4x8:NAME")
        for group in self.groups:
            _check_figures(group.machine)

    @property
    def threads_per_rank(self) -> int | None:
        """Threads of each rank while a CPU host was measured; ``None`` where nobody noted them."""
        noted = self.provenance.get("measurement") or {}
        return noted.get("threads_per_rank")

    @property
    def others_share(self) -> float | None:
        """Share of the processors that other programs took while it was measured, if noted."""
        noted = self.provenance.get("measurement") or {}
        return noted.get("others_share")

    @cached_property
    def device_count(self) -> int:
        """Number of devices."""
        return sum(group.devices for group in self.groups)

    @cached_property
    def uniform(self) -> bool:
        """True when all devices are of one kind."""
        return len({group.machine.name for group in self.groups}) == 1

    @cached_property
    def _places(self) -> list[tuple[Machine, int]]:
        places: list[tuple[Machine, int]] = []
        node = 0
        for group in self.groups:
            for _ in range(group.nodes):
                places += [(group.machine, node)] * group.machine.devices_per_node
                node += 1
        return places

    def device(self, device_id: int) -> Device:
        """The device with an id."""
        return self._places[device_id][0].device

    def machine(self, device_id: int) -> Machine:
        """The machine type a device sits in."""
        return self._places[device_id][0]

    def node(self, device_id: int) -> int:
        """The node a device sits in."""
        return self._places[device_id][1]

    def curve(
        self, collective: str, ranks: int, *, concurrency: int = 1, nodes: int | None = None
    ) -> CollectiveCurve | None:
        """The measured curve for a collective and exactly that group size, if there is one.

        Args:
            collective: One of :data:`autopar.cluster.curve.COLLECTIVES`.
            ranks: Group size.
            concurrency: Equal groups that run it at the same time.
            nodes: Hosts the group spans; ``None`` takes the curve over the fewest hosts.
        """
        found = [
            curve
            for curve in self.curves
            if (curve.collective, curve.ranks, curve.concurrency)
            == (collective, ranks, concurrency)
            and nodes in (None, curve.nodes)
        ]
        return min(found, key=lambda curve: curve.nodes, default=None)

    @cached_property
    def graph(self) -> nx.Graph[int | str]:
        """Devices and switches as nodes, links as edges (``bytes_per_s``, ``latency_s``)."""
        graph: nx.Graph[int | str] = nx.Graph(name=self.name)
        graph.add_node("network", kind="switch")
        for device_id, (machine, node) in enumerate(self._places):
            switch = f"node{node}"
            if switch not in graph:
                graph.add_node(switch, kind="switch", machine=machine.name)
                graph.add_edge(switch, "network", **_edge(machine.inter))
            graph.add_node(device_id, kind="device", device=machine.device.name)
            graph.add_edge(device_id, switch, **_edge(machine.intra))
        return graph

    @cached_property
    def hash(self) -> str:
        """Content hash of everything but provenance."""
        body = self.to_dict()
        body.pop("provenance")
        return content_hash(body)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the schema header."""
        return {
            "name": self.name,
            "backend": self.backend,
            "measured": self.measured,
            "busy_slowdown": {str(k): v for k, v in self.busy_slowdown.items()},
            "overlap_slowdown": self.overlap_slowdown,
            "overhead": asdict(self.overhead),
            "groups": [asdict(group) for group in self.groups],
            "curves": [asdict(curve) for curve in self.curves],
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "cluster") -> Cluster:
        """Check and build.

        Raises:
            InputError: A field is missing or wrong.
        """
        try:
            return cls(
                name=data["name"],
                backend=data["backend"],
                measured=data["measured"],
                busy_slowdown={int(k): float(v) for k, v in data["busy_slowdown"].items()},
                overlap_slowdown=data["overlap_slowdown"],
                overhead=HostOverhead.from_dict(data["overhead"]),
                groups=tuple(_group(row) for row in data["groups"]),
                curves=tuple(_curve(row) for row in data["curves"]),
                provenance=data["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad cluster field: {type(error).__name__}: {error}",
                hint="make it again with `autopar profile --cluster local`",
            ) from error

    def save(self, path: Path) -> None:
        """Write the cluster file atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Cluster:
        """Read a cluster file.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))


def _check_figures(machine: Machine) -> None:
    """Refuse figures that no later formula can divide by or scale with.

    Raises:
        InputError: A count, rate or size is not positive, or a latency is negative.
    """
    figures = {
        "devices_per_node": machine.devices_per_node,
        "device.memory_bytes": machine.device.memory_bytes,
        "device.memory_bytes_per_s": machine.device.memory_bytes_per_s,
        **{f"device.peak {k}": v for k, v in machine.device.peak_flop_per_s.items()},
    }
    latencies = {"device.launch_s": machine.device.launch_s}
    for tier, link in (("intra", machine.intra), ("inter", machine.inter)):
        figures |= {f"{tier}.bytes_per_s": link.bytes_per_s, f"{tier}.efficiency": link.efficiency}
        latencies[f"{tier}.latency_s"] = link.latency_s
    wrong = [f"{k} = {v}" for k, v in figures.items() if v <= 0]
    share = machine.device.clock_share
    if share is not None and not 0 < share <= 1:
        wrong.append(f"device.clock_share = {share} (at most 1)")
    wrong += [f"{k} = {v}" for k, v in latencies.items() if v < 0]
    if wrong:
        raise InputError(
            f"machine '{machine.name}' has {wrong[0]}, a positive number is needed",
            hint="correct the cluster file",
        )


def _edge(link: Link) -> dict[str, Any]:
    return {"link": link.name, "bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}


def _group(row: dict[str, Any]) -> NodeGroup:
    machine = dict(row["machine"])
    machine["device"] = Device(**machine["device"])
    machine["intra"] = Link(**machine["intra"])
    machine["inter"] = Link(**machine["inter"])
    return NodeGroup(machine=Machine(**machine), nodes=row["nodes"])


def _curve(row: dict[str, Any]) -> CollectiveCurve:
    points = tuple((float(p[0]), float(p[1])) for p in row["points"])
    return CollectiveCurve(**{**row, "points": points})
