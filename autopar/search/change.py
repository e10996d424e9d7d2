"""Changed clusters for what-if questions and for the relaxations of an infeasible search."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from autopar.cluster import Cluster, CollectiveCurve, Device, Link, Machine, NodeGroup
from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.core.units import parse_bytes

Change = Callable[[float], float]
"""Old value -> new value."""

KEYS = ("inter_node_bandwidth", "intra_node_bandwidth", "memory", "peak", "devices")
_FACTOR = re.compile(r"^[x*]([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)$", re.IGNORECASE)


def changed_cluster(cluster: Cluster, text: str) -> Cluster:
    """The cluster with ``key=value`` changes, separated by commas.

    Keys: ``inter_node_bandwidth``, ``intra_node_bandwidth`` (``x0.25`` or ``25GB/s``),
    ``memory`` (``x2`` or ``80GiB``), ``peak`` (``x1.5``), ``devices`` (``x2`` or a count).

    Raises:
        InputError: Unknown key, unreadable value, or a change the cluster cannot take.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("the change is empty", hint="write it like inter_node_bandwidth=x0.25")
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS:
            raise InputError(f"cannot change '{key}'", hint=did_you_mean(key, list(KEYS)))
        cluster = _APPLY[key](cluster, _change(value))
    return replace(cluster, name=f"{cluster.name} with {','.join(parts)}")


def _change(text: str) -> Change:
    match = _FACTOR.match(text)
    if match is not None and float(match[1]) > 0:
        factor = float(match[1])
        return lambda old: old * factor
    if match is not None:
        raise InputError(f"factor '{text}' is not positive", hint="write it like x0.5")
    size = float(parse_bytes(text.removesuffix("/s")))
    if size <= 0:
        raise InputError(f"'{text}' is not positive", hint="write it like x0.5 or 25GB/s")
    return lambda old: size


def _machines(cluster: Cluster, change: Callable[[Machine], Machine]) -> tuple[NodeGroup, ...]:
    return tuple(replace(group, machine=change(group.machine)) for group in cluster.groups)


def _link(link: Link, change: Change) -> Link:
    return replace(link, bytes_per_s=change(link.bytes_per_s))


def _curves(
    cluster: Cluster, links: list[Link], change: Change, *, across: bool
) -> tuple[CollectiveCurve, ...]:
    """Measured curves of the tier, with the part above the latency scaled like the links."""
    if not cluster.curves:
        return ()
    factors = {change(link.bytes_per_s) / link.bytes_per_s for link in links}
    if len(factors) != 1:
        raise InputError(
            "measured curves of different links cannot take one absolute bandwidth",
            hint="write the change as a factor, like x0.5",
        )
    factor = factors.pop()
    return tuple(
        _faster(curve, factor) if (curve.nodes > 1) == across else curve
        for curve in cluster.curves
    )


def _faster(curve: CollectiveCurve, factor: float) -> CollectiveCurve:
    alpha = min(curve.alpha_s, *(s for _, s in curve.points)) if curve.points else curve.alpha_s
    points = tuple((size, alpha + (s - alpha) / factor) for size, s in curve.points)
    return replace(curve, points=points, bytes_per_s=curve.bytes_per_s * factor)


def _inter(cluster: Cluster, change: Change) -> Cluster:
    links = [group.machine.inter for group in cluster.groups]
    return replace(
        cluster,
        groups=_machines(cluster, lambda m: replace(m, inter=_link(m.inter, change))),
        curves=_curves(cluster, links, change, across=True),
    )


def _intra(cluster: Cluster, change: Change) -> Cluster:
    links = [group.machine.intra for group in cluster.groups]
    return replace(
        cluster,
        groups=_machines(cluster, lambda m: replace(m, intra=_link(m.intra, change))),
        curves=_curves(cluster, links, change, across=False),
    )


def _device(cluster: Cluster, change: Callable[[Device], Device]) -> Cluster:
    groups = _machines(cluster, lambda m: replace(m, device=change(m.device)))
    return replace(cluster, groups=groups)


def _memory(cluster: Cluster, change: Change) -> Cluster:
    return _device(cluster, lambda d: replace(d, memory_bytes=change(d.memory_bytes)))


def _peak(cluster: Cluster, change: Change) -> Cluster:
    if cluster.measured:
        raise InputError(
            "compute times of this cluster are measured, its peak does not enter them",
            hint="use a catalogue cluster for this question",
        )
    return _device(
        cluster,
        lambda d: replace(d, peak_flop_per_s={k: change(v) for k, v in d.peak_flop_per_s.items()}),
    )


def _devices(cluster: Cluster, change: Change) -> Cluster:
    if len(cluster.groups) != 1:
        raise InputError("a mixed cluster cannot be resized", hint="name the new cluster instead")
    group = cluster.groups[0]
    count, per_node = round(change(cluster.device_count)), group.machine.devices_per_node
    if count < 1 or (count > per_node and count % per_node):
        raise InputError(
            f"{count} devices are not whole nodes of {per_node}",
            hint=f"use a multiple of {per_node}",
        )
    if group.nodes == 1 and cluster.measured:
        per_node = count
    machine = replace(group.machine, devices_per_node=min(count, per_node))
    nodes = max(1, count // per_node)
    return replace(cluster, groups=(NodeGroup(machine=machine, nodes=nodes),))


_APPLY: dict[str, Callable[[Cluster, Change], Cluster]] = {
    "inter_node_bandwidth": _inter,
    "intra_node_bandwidth": _intra,
    "memory": _memory,
    "peak": _peak,
    "devices": _devices,
}
