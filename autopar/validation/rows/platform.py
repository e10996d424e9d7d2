"""Devices as published tables write them, looked up in the machine catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from autopar.calibration.table import clock_share, device_class
from autopar.cluster.catalog import load_machine

PRECISIONS = ("float16", "float8", "float4", "tf32", "float32")
"""What the dense products of a run compute in; bfloat16 counts as float16, of the same rate."""
WIDE = ("tf32", "float32")
"""Precisions whose tensors and gradients are float32 in memory."""

_NAMES: tuple[tuple[str, str], ...] = (
    (r"gb300", "gb300"),
    (r"gb200", "gb200"),
    (r"b300", "b300-sxm"),
    (r"b200", "b200-sxm"),
    (r"gh-?(96|200)", "gh200-96gb"),
    (r"h200", "h200-sxm"),
    (r"h100.*hbm2e", "h100-sxm"),
    (r"h100.*nvl", "h100-nvl"),
    (r"h100.*pcie", "h100-pcie"),
    (r"h100", "h100-sxm"),
    (r"h800", "h800-sxm"),
    (r"a800", "a800-80gb-sxm"),
    (r"a100.*pcie", "a100-80gb-pcie"),
    (r"a100.*40", "a100-40gb-sxm"),
    (r"a100.*64", "a100-64gb-custom"),
    (r"a100", "a100-80gb-sxm"),
    (r"a10g?\b", "a10g"),
    (r"l40s", "l40s"),
    (r"v100.*dgx-2", "dgx-2"),
    (r"v100.*16", "v100-16gb"),
    (r"v100", "v100-32gb"),
    (r"\bt4\b", "t4"),
    (r"4090", "rtx-4090"),
    (r"mi300", "mi300x"),
    (r"mi250", "mi250x"),
)
SAME_MEMORY = 0.1
"""Relative difference below which a printed memory size is the catalogue's: GB, GiB, reserves."""
_RACK_DEVICES = 64
"""Devices of an NVL72 rack that power-of-two jobs use; 8 of 72 stay idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A device in its node.

    Attributes:
        device: Calibration class, e.g. ``a100``; mixed clusters join theirs with ``+``.
        peak_flop_per_s: Dense peak by :data:`PRECISIONS`; unsupported ones are missing.
        memory_bytes: Of one device, the smallest in a mixed cluster.
        memory_bytes_per_s: Bandwidth, the slowest in a mixed cluster.
        multiprocessors: Of one device.
        devices_per_node: Devices that share the fast links.
        intra_bytes_per_s: Per device and direction inside a node.
        inter_bytes_per_s: Per node and direction.
        mean_time: Mean over the devices of the time that work takes, over that of the slowest; 1
            where all are alike.
        note: What was assumed, empty for a catalogue device.
    """

    device: str
    peak_flop_per_s: dict[str, float]
    memory_bytes: float
    memory_bytes_per_s: float
    multiprocessors: float
    devices_per_node: int
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    mean_time: float = 1.0
    note: str = ""

    @property
    def shares_host_memory(self) -> bool:
        """A Grace superchip: the processor's memory is one NVLink-C2C hop away."""
        return self.device.startswith("g")


def _consumer(
    name: str,
    tensor: float,
    plain: float,
    memory_gb: float,
    bandwidth: float,
    multiprocessors: int,
) -> Platform:
    return Platform(
        device=f"rtx-{name}",
        peak_flop_per_s={"float16": tensor, "tf32": plain, "float32": plain},
        memory_bytes=memory_gb * 1024**3,
        memory_bytes_per_s=bandwidth,
        multiprocessors=multiprocessors,
        devices_per_node=8,
        intra_bytes_per_s=1.2e10,
        inter_bytes_per_s=1.25e9,
        note=f"RTX {name}: vendor figures from memory; PCIe 3 and 10 Gb/s Ethernet assumed",
    )


# Not in the catalogue: they only occur as parts of mixed published clusters. Float16 peaks are
# those with float32 accumulation, which GeForce halves.
CONSUMER = (
    (r"rtx-?2080", _consumer("2080", 4.0e13, 1.01e13, 8, 4.48e11, 46)),
    (r"rtx-?3090", _consumer("3090", 7.1e13, 3.56e13, 24, 9.36e11, 82)),
    (r"titan-?rtx", _consumer("titan", 1.305e14, 1.63e13, 24, 6.72e11, 72)),
)


def find_platform(text: str) -> Platform | None:
    """The platform a table cell such as ``V100+T4`` or ``GH-96 x64`` names; ``None`` if unknown.

    A mixed cluster is as slow as its slowest device: synchronous training waits for it. Only
    while a pipeline fills and drains do its faster devices gain; how many there are of each kind
    no table says, so equal numbers are assumed.
    """
    parts = [_one(part) for part in re.sub(r"\([^)]*row says[^)]*\)", "", text).split("+")]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    if len(known) == 1:
        return known[0]
    first = min(known, key=lambda part: part.peak_flop_per_s["float16"])
    return replace(
        first,
        device="+".join(sorted({part.device for part in known})),
        memory_bytes=min(part.memory_bytes for part in known),
        memory_bytes_per_s=min(part.memory_bytes_per_s for part in known),
        intra_bytes_per_s=min(part.intra_bytes_per_s for part in known),
        inter_bytes_per_s=min(part.inter_bytes_per_s for part in known),
        mean_time=sum(_relative_time(part, first) for part in known) / len(known),
        note="mixed devices: rates of the slowest, equal numbers of each kind",
    )


def _relative_time(part: Platform, slowest: Platform) -> float:
    """Time of a block over that of the slowest device: half its products, half its streams."""
    products = slowest.peak_flop_per_s["float16"] / part.peak_flop_per_s["float16"]
    streams = slowest.memory_bytes_per_s / part.memory_bytes_per_s
    return min(1.0, (products + streams) / 2)


def _one(text: str) -> Platform | None:
    name = text.strip().lower()
    for pattern, platform in CONSUMER:
        if re.search(pattern, name):
            return platform
    for pattern, machine in _NAMES:
        if re.search(pattern, name):
            watt = re.search(r"(\d{2,4})\s?w\b", name)
            platform = _of_machine(machine, float(watt[1]) if watt else None)
            if "hbm2e" in name and machine == "h100-sxm":
                return _with_hbm2e(platform)
            return _with_memory(platform, name, machine)
    return None


def _with_memory(platform: Platform, name: str, machine: str) -> Platform:
    """A variant of a catalogue device with another amount of memory than the catalogue's."""
    stated = re.search(r"(\d+)\s?g(?:i?b)?\b", name)
    size = int(stated[1]) * 1024**3 if stated else platform.memory_bytes
    if abs(size / platform.memory_bytes - 1) <= SAME_MEMORY:
        return platform
    note = f"{size / 1024**3:g} GB as its name says, at the rates of {machine}"
    return replace(platform, memory_bytes=size, note=note)


def _with_hbm2e(platform: Platform) -> Platform:
    """An H100 with six stacks of HBM2e instead of HBM3."""
    note = "HBM2e assumed to give 2.4e12 B/s: six stacks of the rate that five reach on PCIe cards"
    return replace(platform, memory_bytes=96 * 1024**3, memory_bytes_per_s=2.4e12, note=note)


def measured_bytes_per_s(notes: str) -> float | None:
    """Network rate of a node that a text says a collective benchmark measured.

    Of a span it is the middle.
    Such a benchmark of the fabric is an input, as a cluster profile is, not a result of the run.
    """
    found = re.search(r"measured NCCL [\w-]+ [\w ]*?(\d+)(?:-(\d+))? Gbps", notes)
    if found is None:
        return None
    ends = [float(text) for text in found.groups() if text]
    return sum(ends) / len(ends) * 1e9 / 8


def named_bytes_per_s(notes: str) -> float | None:
    """Network rate of the slowest machine type that a text names, per node and direction.

    Types without RDMA reach :data:`TCP_GBPS` at most.
    """
    text = notes.lower()
    found = [rate for name, rate in NAMED_GBPS.items() if name in text]
    found += [min(rate, TCP_GBPS) for name, rate in NAMED_TCP_GBPS.items() if name in text]
    return min(found) * 1e9 / 8 if found else None


TCP_GBPS = 32
"""Most that training over TCP takes from any network: between p3dn nodes of 100 Gbit/s steps gain
nothing beyond 25, and no more than this is used (Zhang et al. 2020, arXiv 2006.10103; the second
figure from memory)."""


NAMED_GBPS = {
    "dgx-a100": 1600,
    "dgx a100": 1600,
    "dgx-h100": 3200,
    "dgx h100": 3200,
    "p3dn.24xlarge": 100,
    "p4d.24xlarge": 400,
    "p4de.24xlarge": 400,
    "p5.48xlarge": 3200,
}
NAMED_TCP_GBPS = {
    "p3.2xlarge": 10,
    "p3.8xlarge": 10,
    "p3.16xlarge": 25,
    "g4dn.12xlarge": 50,
    "g5.12xlarge": 40,
    "g5.48xlarge": 100,
}
"""Gbit/s of DGX systems (their data sheets: 8 ports of 200 and 400) and of cloud instances (AWS
instance type pages), from memory; the second table's types have no RDMA."""


def _of_machine(name: str, power_watt: float | None) -> Platform:
    """A catalogue machine, its boards limited to the printed power if one is printed."""
    machine = load_machine(name)
    device = machine.device
    peaks = device.peak_flop_per_s
    kind = device_class(device.name)
    clock = clock_share(kind, peaks["float16"], power_watt or device.power_watt)
    half = peaks["float16"] * clock
    eighth = peaks.get("float8", 0.0) * clock
    table = {
        "float16": half,
        "float8": eighth,
        # Dense NVFP4: twice float8 on B200, three times on B300 (NVIDIA Blackwell briefs).
        "float4": eighth * {"b200": 2, "gb200": 2, "b300": 3, "gb300": 3}.get(kind, 0),
        "tf32": peaks.get("tf32", 0.0) * clock,
        "float32": peaks["float32"],
    }
    per_node = machine.devices_per_node
    inter = machine.inter.bytes_per_s
    if machine.inter.name.startswith("ethernet"):
        inter = min(inter, TCP_GBPS * 1e9 / 8)
    if per_node > _RACK_DEVICES:
        inter, per_node = inter * _RACK_DEVICES / per_node, _RACK_DEVICES
    return Platform(
        device=kind,
        peak_flop_per_s={k: v for k, v in table.items() if v > 0},
        memory_bytes=device.memory_bytes,
        memory_bytes_per_s=device.memory_bytes_per_s,
        multiprocessors=float(device.multiprocessors or 100),
        devices_per_node=per_node,
        intra_bytes_per_s=machine.intra.bytes_per_s,
        inter_bytes_per_s=inter,
    )
