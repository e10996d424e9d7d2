"""Devices, links and the machines built from them; every constant has a unit and a source."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or one CPU rank.

    Attributes:
        name: Catalogue key, e.g. ``a100-80gb-sxm``.
        kind: ``cuda``, ``rocm``, ``tpu`` or ``cpu``.
        peak_flop_per_s: Dense peak per dtype (``float32``, ``tf32``, ``bfloat16``, ``float16``,
            ``float8``); a dtype without an entry cannot be used.
        memory_bytes: Device memory.
        memory_bytes_per_s: Memory bandwidth.
        launch_s: Host time per kernel launch, the floor of a small op.
        multiprocessors: Units that run tiles of a product side by side (SM, CU), ``None`` when
            unknown or meaningless.
        power_watt: Board power limit (or the host's share), ``None`` when unknown.
        idle_watt: Power when idle, ``None`` when unknown.
        usd_per_hour: On-demand price of one device, ``None`` when unknown.
        clock_share: Part of the boost clock that its tensor cores hold under continuous
            products, above 0 and at most 1; ``None`` for what follows from ``power_watt``.
        sources: Field name -> where the figure comes from.
    """

    name: str
    kind: str
    peak_flop_per_s: dict[str, float]
    memory_bytes: float
    memory_bytes_per_s: float
    launch_s: float
    multiprocessors: int | None = None
    power_watt: float | None = None
    idle_watt: float | None = None
    usd_per_hour: float | None = None
    clock_share: float | None = None
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A tier of the network.

    Attributes:
        name: ``nvlink3``, ``pcie4``, ``infiniband-hdr`` ...
        bytes_per_s: Per direction and per device (intra node) or per node (inter node), nominal.
        latency_s: One-way latency of a small message, software included.
        efficiency: Fraction of the nominal rate that collectives reach; assumed unless measured.
        sources: Field name -> where the figure comes from.
    """

    name: str
    bytes_per_s: float
    latency_s: float
    efficiency: float
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node type: ``devices_per_node`` devices joined by ``intra``, nodes joined by ``inter``."""

    name: str
    device: Device
    devices_per_node: int
    intra: Link
    inter: Link
