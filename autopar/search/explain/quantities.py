"""Quantities of a cluster that a question may change: how to read, write and show each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from autopar.cluster import Cluster, CollectiveCurve, Device, Link, Machine, NodeGroup
from autopar.core.errors import InputError
from autopar.core.units import format_bytes, format_seconds, parse_bytes
from autopar.cost.computation.roofline import held_clock

Change = Callable[[float], float]
"""Old value -> new value."""

_RATE = re.compile(r"^([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)(bits?|bps|b|)(?:/s)?$", re.IGNORECASE)
_TIME = re.compile(r"^([0-9]*\.?[0-9]+)\s*(s|ms|us)$", re.IGNORECASE)
_PLAIN = re.compile(r"^([0-9]*\.?[0-9]+)\s*(w|usd|usd/h)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One figure of a cluster.

    Attributes:
        name: As in ``--what-if name=value``.
        title: For sentences: "the bandwidth between nodes".
        example: An absolute value as a user writes it, ``None`` when only factors make sense.
        read: The value now, in SI units; the smallest over the machines of a mixed cluster.
        apply: The cluster with a changed value.
        parse: Absolute value in SI units from text.
        show: A value for people.
    """

    name: str
    title: str
    example: str | None
    read: Callable[[Cluster], float]
    apply: Callable[[Cluster, Change], Cluster]
    parse: Callable[[str], float]
    show: Callable[[float], str]


def parse_rate(text: str) -> float:
    """Bytes per second from ``25GB/s``, ``200Gbit/s``, ``200Gbps`` or plain bytes.

    Raises:
        InputError: The text is not a rate.
    """
    match = _RATE.match(text.strip())
    if match is None:
        raise InputError(f"'{text}' is not a rate", hint="write it like 25GB/s or 200Gbit/s")
    number, prefix, binary, unit = match.groups()
    power = "kmgt".find(prefix.lower()) + 1 if prefix else 0
    factor = float(1024 if binary else 1000) ** power
    bits = unit.lower().startswith("bit") or unit.lower() == "bps" or unit == "b"
    return float(number) * factor / (8 if bits else 1)


def show_rate(bytes_per_s: float) -> str:
    """A link rate for people, in the bits that networks are sold by: ``200 Gbit/s``."""
    bits = bytes_per_s * 8
    for unit, factor in (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= factor:
            return f"{bits / factor:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def _parse_seconds(text: str) -> float:
    match = _TIME.match(text.strip())
    if match is None:
        raise InputError(f"'{text}' is not a time", hint="write it like 5us or 0.1ms")
    return float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[match[2].lower()]


def _parse_number(text: str) -> float:
    match = _PLAIN.match(text.strip())
    if match is None:
        raise InputError(f"'{text}' is not a number", hint="write it like 2.5 or x0.5")
    return float(match[1])


def _only_factor(name: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        raise InputError(
            f"{name}={text} is not a factor", hint=f"a device has one per dtype: {name}=x1.1"
        )

    return parse


def _machines(cluster: Cluster, change: Callable[[Machine], Machine]) -> Cluster:
    groups = tuple(replace(group, machine=change(group.machine)) for group in cluster.groups)
    return replace(cluster, groups=groups)


def _device(cluster: Cluster, change: Callable[[Device], Device]) -> Cluster:
    return _machines(cluster, lambda m: replace(m, device=change(m.device)))


def _smallest(read: Callable[[Machine], float]) -> Callable[[Cluster], float]:
    return lambda cluster: min(read(group.machine) for group in cluster.groups)


def _link(tier: str, cluster: Cluster, change: Callable[[Link], Link]) -> Cluster:
    if tier == "intra":
        return _machines(cluster, lambda m: replace(m, intra=change(m.intra)))
    return _machines(cluster, lambda m: replace(m, inter=change(m.inter)))


def _bandwidth(tier: str) -> Callable[[Cluster, Change], Cluster]:
    def apply(cluster: Cluster, change: Change) -> Cluster:
        curves = _curves(
            cluster,
            [getattr(group.machine, tier) for group in cluster.groups],
            change,
            across=tier == "inter",
        )
        faster = _link(
            tier, cluster, lambda link: replace(link, bytes_per_s=change(link.bytes_per_s))
        )
        return replace(faster, curves=curves)

    return apply


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


def _least(curve: CollectiveCurve) -> float:
    """Latency of a measured curve: the fitted one, or less where a point undercuts it."""
    return min(curve.alpha_s, *(s for _, s in curve.points)) if curve.points else curve.alpha_s


def _faster(curve: CollectiveCurve, factor: float) -> CollectiveCurve:
    alpha = _least(curve)
    points = tuple((size, alpha + (s - alpha) / factor) for size, s in curve.points)
    return replace(curve, points=points, bytes_per_s=curve.bytes_per_s * factor)


def _latency(cluster: Cluster, change: Change) -> Cluster:
    """Both tiers, and measured curves moved by what their latency changes."""
    moved = []
    for curve in cluster.curves:
        extra = change(_least(curve)) - _least(curve)
        points = tuple((size, s + extra) for size, s in curve.points)
        moved.append(replace(curve, points=points, alpha_s=max(0.0, curve.alpha_s + extra)))
    for tier in ("intra", "inter"):
        cluster = _link(
            tier, cluster, lambda link: replace(link, latency_s=change(link.latency_s))
        )
    return replace(cluster, curves=tuple(moved))


def _memory(cluster: Cluster, change: Change) -> Cluster:
    return _device(cluster, lambda d: replace(d, memory_bytes=change(d.memory_bytes)))


def _memory_bandwidth(cluster: Cluster, change: Change) -> Cluster:
    _refuse_measured(cluster, "memory bandwidth")
    return _device(cluster, lambda d: replace(d, memory_bytes_per_s=change(d.memory_bytes_per_s)))


def _peak(cluster: Cluster, change: Change) -> Cluster:
    _refuse_measured(cluster, "peak")
    return other_peak(cluster, change)


def other_peak(cluster: Cluster, change: Change) -> Cluster:
    """Devices with other peaks that reach the same part of them.

    The clock that is held stays as it is: otherwise the power limit would take back what a higher
    peak brings.
    """

    def changed(device: Device) -> Device:
        peaks = {dtype: change(peak) for dtype, peak in device.peak_flop_per_s.items()}
        return replace(device, peak_flop_per_s=peaks, clock_share=held_clock(device))

    return _device(cluster, changed)


def _refuse_measured(cluster: Cluster, what: str) -> None:
    if cluster.measured:
        raise InputError(
            f"compute times of this cluster are measured, its {what} does not enter them",
            hint="use a catalogue cluster for this question",
        )


def _known(value: float | None, name: str, field: str) -> float:
    if value is None:
        raise InputError(
            f"device '{name}' has no {field}", hint=f"add {field} to the cluster file first"
        )
    return value


def _price(cluster: Cluster, change: Change) -> Cluster:
    return _device(
        cluster,
        lambda d: replace(d, usd_per_hour=change(_known(d.usd_per_hour, d.name, "usd_per_hour"))),
    )


def _power(cluster: Cluster, change: Change) -> Cluster:
    def scaled(device: Device) -> Device:
        watt = change(_known(device.power_watt, device.name, "power_watt"))
        idle = device.idle_watt
        return replace(
            device, power_watt=watt, idle_watt=None if idle is None else min(idle, watt)
        )

    return _device(cluster, scaled)


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


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            name="inter_node_bandwidth",
            title="bandwidth of a node to the network",
            example="200Gbit/s",
            read=_smallest(lambda m: m.inter.bytes_per_s),
            apply=_bandwidth("inter"),
            parse=parse_rate,
            show=show_rate,
        ),
        Quantity(
            name="intra_node_bandwidth",
            title="bandwidth between devices of a node",
            example="300GB/s",
            read=_smallest(lambda m: m.intra.bytes_per_s),
            apply=_bandwidth("intra"),
            parse=parse_rate,
            show=lambda rate: f"{rate / 1e9:.3g} GB/s",
        ),
        Quantity(
            name="latency",
            title="latency of the network",
            example="5us",
            read=_smallest(lambda m: m.inter.latency_s),
            apply=_latency,
            parse=_parse_seconds,
            show=format_seconds,
        ),
        Quantity(
            name="memory",
            title="memory of a device",
            example="80GiB",
            read=_smallest(lambda m: m.device.memory_bytes),
            apply=_memory,
            parse=lambda text: float(parse_bytes(text)),
            show=format_bytes,
        ),
        Quantity(
            name="memory_bandwidth",
            title="memory bandwidth",
            example="2TB/s",
            read=_smallest(lambda m: m.device.memory_bytes_per_s),
            apply=_memory_bandwidth,
            parse=parse_rate,
            show=lambda rate: f"{rate / 1e12:.3g} TB/s",
        ),
        Quantity(
            name="peak",
            title="peak FLOP/s",
            example=None,
            read=_smallest(lambda m: max(m.device.peak_flop_per_s.values(), default=0.0)),
            apply=_peak,
            parse=_only_factor("peak"),
            show=lambda rate: f"{rate / 1e12:.4g} TFLOP/s",
        ),
        Quantity(
            name="devices",
            title="number of devices",
            example="64",
            read=lambda cluster: float(cluster.device_count),
            apply=_devices,
            parse=_parse_number,
            show=lambda count: f"{count:.0f} devices",
        ),
        Quantity(
            name="price",
            title="price of a device per hour",
            example="2.5",
            read=_smallest(lambda m: _known(m.device.usd_per_hour, m.device.name, "usd_per_hour")),
            apply=_price,
            parse=_parse_number,
            show=lambda usd: f"{usd:.3g} USD/h",
        ),
        Quantity(
            name="power",
            title="power of a busy device",
            example="400W",
            read=_smallest(lambda m: _known(m.device.power_watt, m.device.name, "power_watt")),
            apply=_power,
            parse=_parse_number,
            show=lambda watt: f"{watt:.3g} W",
        ),
    )
}
"""What may be changed, by name."""
