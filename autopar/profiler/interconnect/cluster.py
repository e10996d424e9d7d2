"""Measure this host, or several, as a cluster: compute under load and every collective's curve."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autopar.cluster.cluster import Cluster, NodeGroup
from autopar.cluster.curve import CollectiveCurve
from autopar.cluster.fit import fit_alpha_beta, non_decreasing
from autopar.cluster.machine import Device, Link, Machine
from autopar.cluster.parse import MAX_LOCAL_RANKS
from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.core.provenance import provenance
from autopar.core.units import KIB, MIB
from autopar.profiler import host
from autopar.profiler.interconnect.layouts import curve_keys, layouts

Progress = Callable[[str, float], None]

_WORKER = "autopar.profiler.interconnect.worker"
_SIZES = tuple(KIB * 4**i for i in range(9))  # 1 KiB ... 64 MiB
_QUICK_SIZES = (KIB, 32 * KIB, 512 * KIB, 8 * MIB)
_ALIKE = 0.15
_LAST_WORDS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this host stands among the hosts measured together.

    Attributes:
        nnodes: Number of hosts.
        node_rank: This host's number, 0 for the one the others reach.
        rdzv_endpoint: ``host:port`` of host 0; unused for one host.
    """

    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.nnodes < 1 or not 0 <= self.node_rank < self.nnodes:
            raise InputError(
                f"node rank {self.node_rank} of {self.nnodes} hosts, "
                "a number from 0 to the number of hosts minus 1 is needed",
                hint="give each host its own --node-rank",
            )
        if self.nnodes > 1 and _split_endpoint(self.rdzv_endpoint) is None:
            raise InputError(
                f"rendezvous endpoint '{self.rdzv_endpoint}' is not HOST:PORT",
                hint="pass --rdzv-endpoint with the address of host 0, the same on every host",
            )


def measure_cluster(
    ranks: int,
    *,
    backend: str = "gloo",
    quick: bool = False,
    progress: Progress | None = None,
    place: Place | None = None,
    timeout_s: float = 180.0,
) -> Cluster:
    """Start ranks on this host and measure what a training step would meet.

    Measured: peak rates of one rank alone; the slow-down of a fixed mix with 1 to ``ranks`` busy
    ranks; curves of every collective for every group size, alone and with as many groups at once
    as fit; the slow-down of compute beside a collective. A collective's time is what it adds to a
    loop of computation on all ranks, as in a training step; times that fall as messages grow are
    levelled (:func:`autopar.cluster.fit.non_decreasing`). Energy is not measured.

    Args:
        ranks: Ranks on this host, each with ``cores // ranks`` threads.
        backend: ``gloo``; the only one that needs no GPU.
        quick: Fewer sizes and repeats, for a first look.
        progress: Called with what is being measured and the fraction done.
        place: This host among several; every host calls the function and gets the same cluster.
        timeout_s: Give up after this time.

    Raises:
        InputError: Impossible numbers of ranks or hosts.
        EnvironmentUnableError: A rank died or hung, or the hosts do not reach each other.
    """
    place = place or Place()
    if not 1 <= ranks <= MAX_LOCAL_RANKS:
        raise InputError(
            f"{ranks} ranks asked on this host, 1 to {MAX_LOCAL_RANKS} are possible",
            hint="write it like local:2",
        )
    if backend != "gloo":
        raise EnvironmentUnableError(
            f"the interconnect of backend '{backend}' cannot be measured by this version",
            hint="use gloo, or name the machine from the catalogue",
        )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autopar-measure-") as folder:
        job = _job(ranks, place, quick, timeout_s, Path(folder))
        result = _run(job, _environment(job, place), progress, timeout_s, Path(folder))
    return _cluster(result, job, place, quick=quick, seconds=time.monotonic() - started)


def _job(ranks: int, place: Place, quick: bool, timeout_s: float, folder: Path) -> dict[str, Any]:
    count = sum(len(curve_keys(layout)) for layout in layouts(place.nnodes, ranks))
    one_host = place.nnodes == 1
    meeting = (folder / "store").as_uri() if one_host else f"tcp://{place.rdzv_endpoint}"
    return {
        "ranks": ranks,
        "nnodes": place.nnodes,
        "node_rank": place.node_rank,
        "init_method": meeting,
        "threads": max(1, host.usable_cores() // ranks),
        "sizes": list(_QUICK_SIZES if quick else _SIZES),
        "curves_s": 1.5 + 0.2 * (count - 5) if quick else 9.0 + 0.8 * (count - 5),
        "device_s": 0.4 if quick else 1.5,
        "rounds": 5 if quick else 15,
        "timeout_s": 0.8 * timeout_s,  # so that a rank can still say what it waited for
    }


def _environment(job: dict[str, Any], place: Place) -> dict[str, str]:
    root = str(Path(__file__).parents[3])  # the worker imports the same autopar
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(job["threads"]),
    }
    interface = _interface(place)
    if interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    return environment


def _interface(place: Place) -> str | None:
    """The network interface gloo should use: the one that leads to host 0.

    Left to itself gloo asks for the address of the host's name, which fails where the name does
    not resolve and may lead to another network than the endpoint's.
    """
    target = "127.0.0.1"
    if place.nnodes > 1:
        target = (_split_endpoint(place.rdzv_endpoint) or (target, 0))[0]
    try:
        family, kind, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # a datagram socket sends nothing, it only picks the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise EnvironmentUnableError(
            f"cannot reach '{target}': {error}", hint="check --rdzv-endpoint and the network"
        ) from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == own for entry in addresses):
            return str(name)
    return None


def _split_endpoint(endpoint: str | None) -> tuple[str, int] | None:
    name, _, port = (endpoint or "").rpartition(":")
    valid = name and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
    return (name.strip("[]"), int(port)) if valid else None


def _run(
    job: dict[str, Any],
    environment: dict[str, str],
    progress: Progress | None,
    timeout_s: float,
    folder: Path,
) -> dict[str, Any]:
    """Run the worker to its result; whatever happens, none of its processes stays.

    Raises:
        EnvironmentUnableError: It ended without a result or took too long.
    """
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
            start_new_session=True,
        )
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill_group(process)

    timer = threading.Timer(timeout_s, expire)
    timer.start()
    try:
        outcome = _converse(process, job, progress)
    finally:
        timer.cancel()
        _kill_group(process)
        process.wait()
    if "result" in outcome:
        found: dict[str, Any] = outcome["result"]
        return found
    cause = f"took more than {timeout_s:g} s" if expired.is_set() else outcome.get("error")
    hint = "check memory and loopback networking with `autopar doctor`, or use fewer ranks"
    if job["nnodes"] > 1:
        hint = "start the same command on every host within the timeout, with one endpoint"
    words = log.read_text(errors="replace")[-_LAST_WORDS:].strip().splitlines()
    raise EnvironmentUnableError(
        f"measuring this host failed: {cause or (words[-1] if words else 'no output')}",
        hint=hint,
    )


def _converse(
    process: subprocess.Popen[str], job: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    """Hand over the job and follow the worker's lines to the last that ends the measurement."""
    if process.stdin is None or process.stdout is None:
        return {}
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return {}
    outcome: dict[str, Any] = {}
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message and progress is not None:
            progress(*message["progress"])
        elif "progress" not in message:
            outcome = message
    return outcome


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End the worker and its ranks, which share its session's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _cluster(
    result: dict[str, Any], job: dict[str, Any], place: Place, *, quick: bool, seconds: float
) -> Cluster:
    ranks, nnodes = job["ranks"], place.nnodes
    curves = tuple(_curve(row) for row in result["curves"])
    return Cluster(
        name=f"local:{ranks}" if nnodes == 1 else f"measured:{nnodes}x{ranks}",
        groups=_groups(result["hosts"], curves, job),
        curves=curves,
        backend="gloo",
        busy_slowdown={int(k): float(v) for k, v in result["busy_slowdown"].items()},
        overlap_slowdown=result["overlap_slowdown"],
        measured=True,
        provenance={
            **provenance(),
            "measurement": {
                "seconds": round(seconds, 3),
                "quick": quick,
                "threads_per_rank": job["threads"],
                "torch": result["torch"],
                "busy_detail": result["busy_detail"],
                "statistic": "what a collective adds to a loop of computation; messages: median",
            },
        },
    )


def _curve(row: dict[str, Any]) -> CollectiveCurve:
    points = non_decreasing([(float(size), float(seconds)) for size, seconds in row["points"]])
    alpha, rate = fit_alpha_beta(points)
    return CollectiveCurve(**{**row, "points": points}, alpha_s=alpha, bytes_per_s=rate)


def _groups(
    hosts: list[dict[str, Any]], curves: tuple[CollectiveCurve, ...], job: dict[str, Any]
) -> tuple[NodeGroup, ...]:
    """Hosts in order; neighbours of the same processor and speed make one group."""
    bunches: list[list[dict[str, Any]]] = []
    for row in sorted(hosts, key=lambda row: int(row["node"])):
        if bunches and _alike(bunches[-1][0], row):
            bunches[-1].append(row)
        else:
            bunches.append([row])
    intra = _link("loopback", curves, 1) or _alone(hosts[0])
    inter = _link("network", curves, max((c.nodes for c in curves), default=1)) or intra
    groups = []
    for index, bunch in enumerate(bunches):
        name = "local" if len(bunches) == 1 else f"local-{index}"
        groups.append(
            NodeGroup(
                nodes=len(bunch),
                machine=Machine(
                    name=name,
                    device=_device(bunch, job),
                    devices_per_node=job["ranks"],
                    intra=intra,
                    inter=inter,
                ),
            )
        )
    return tuple(groups)


def _alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    speeds = [row["peak_flop_per_s"]["float32"] for row in (first, second)]
    same = first["cpu"] == second["cpu"] and first["cores"] == second["cores"]
    return bool(same and max(speeds) <= (1 + _ALIKE) * min(speeds))


def _device(bunch: list[dict[str, Any]], job: dict[str, Any]) -> Device:
    """The mean rates of equal hosts, and the memory of the smallest."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    dtypes = bunch[0]["peak_flop_per_s"]
    one = "best of several, one rank alone with its threads"
    return Device(
        name=bunch[0]["cpu"],
        kind="cpu",
        peak_flop_per_s={
            dtype: mean([row["peak_flop_per_s"][dtype] for row in bunch]) for dtype in dtypes
        },
        memory_bytes=min(row["memory_bytes"] for row in bunch) / job["ranks"],
        memory_bytes_per_s=mean([row["memory_bytes_per_s"] for row in bunch]),
        launch_s=mean([row["launch_s"] for row in bunch]),
        sources={
            "peak_flop_per_s": f"measured: square matrix products, {one}",
            "memory_bytes": "measured: memory of the host or its cgroup, divided by the ranks",
            "memory_bytes_per_s": f"measured: large copy, bytes read and written, {one}",
            "launch_s": f"measured: operator on 64 numbers, {one}",
            "power_watt": "not measured",
            "idle_watt": "not measured",
            "usd_per_hour": "not known",
        },
    )


def _link(name: str, curves: tuple[CollectiveCurve, ...], nodes: int) -> Link | None:
    """A link from the point-to-point curve between two ranks that ``nodes`` hosts separate."""
    wanted = 1 if nodes == 1 else 2
    pair = [c for c in curves if c.collective == "send_recv" and c.nodes == wanted]
    sums = [c for c in curves if c.collective == "all_reduce" and c.nodes == nodes]
    if not pair or not sums:
        return None
    line = min(pair, key=lambda c: c.concurrency)
    widest = max(sums, key=lambda c: (c.ranks, -c.concurrency))
    size, seconds = widest.points[-1]
    bus_rate = 2 * (widest.ranks - 1) / widest.ranks * size / seconds
    return Link(
        name=name,
        bytes_per_s=line.bytes_per_s,
        latency_s=line.alpha_s,
        efficiency=min(1.0, bus_rate / line.bytes_per_s),
        sources={
            "bytes_per_s": "measured: send/recv between two ranks, fitted rate",
            "latency_s": "measured: send/recv between two ranks, fitted latency",
            "efficiency": f"measured: bus bandwidth of all-reduce over {widest.ranks} ranks "
            f"at {size:.0f} bytes over the send/recv rate",
        },
    )


def _alone(row: dict[str, Any]) -> Link:
    """The link of a single rank, which has no peer: its own memory."""
    note = "one rank alone: its memory copy rate and operator time stand in, nothing is sent"
    return Link(
        name="memory",
        bytes_per_s=row["memory_bytes_per_s"] / 2,
        latency_s=row["launch_s"],
        efficiency=1.0,
        sources={"bytes_per_s": note, "latency_s": note, "efficiency": note},
    )
