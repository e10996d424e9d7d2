"""Make and remove an emulated network with iproute2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.emulation.layout import INTERFACE, Layout
from autopar.emulation.quota import make_group, remove_group

HOSTS_FILES = Path("/etc/netns")
SHAPED_QUEUE_S = 0.2
"""Longest stay in the queue of a shaped link before packets are dropped."""
BURST_S = 1e-3
LEAST_BURST_BYTES = 6000
"""Two of the largest packets."""
PACKET_BYTES = 3000
"""Largest packet handed to a shaped link: bundles of more would pass its bucket at once."""
GRACE_S = 3.0


def check_able() -> None:
    """Refuse where hosts cannot be emulated.

    Raises:
        EnvironmentUnableError: Not Linux, not root, or without iproute2.
    """
    if sys.platform != "linux":
        raise EnvironmentUnableError(
            f"hosts are emulated with Linux network namespaces, this is {sys.platform}",
            hint="run it in a Linux virtual machine",
        )
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise EnvironmentUnableError(
            f"{' and '.join(missing)} not found", hint="install iproute2 (apt install iproute2)"
        )
    if os.geteuid() != 0:
        raise EnvironmentUnableError(
            "making network namespaces takes root", hint="run it as root: sudo scripts/emulate"
        )


def up(layout: Layout) -> None:
    """Make the network; whatever fails, nothing of it stays.

    Raises:
        InputError: It is up already, or its addresses are in use.
        EnvironmentUnableError: The kernel refuses a part of it.
    """
    if layout.state.is_file():
        raise InputError(
            f"emulated network '{layout.name}' is up already",
            hint="remove it first with scripts/emulate down",
        )
    subnet = f"{layout.subnet}.0/24"
    if _output("ip", "-4", "route", "show", "root", subnet).strip():
        raise InputError(
            f"addresses {subnet} are in use on this machine", hint="choose another --subnet"
        )
    layout.save()  # first, so that down finds what a crash leaves behind
    try:
        for line in commands(layout):
            _run(*line)
        for number in range(layout.hosts):
            _write_names(layout, number)
            if layout.quotas_cores[number]:
                make_group(layout.host(number), layout.quotas_cores[number])
    except BaseException:
        down(layout)
        raise


def commands(layout: Layout) -> Iterator[list[str]]:
    """The commands that make the network, in order."""
    yield ["ip", "link", "add", layout.bridge, "type", "bridge"]
    yield ["ip", "link", "set", layout.bridge, "up"]
    for number in range(layout.hosts):
        host, plug = layout.host(number), layout.plug(number)
        inside = ["ip", "-n", host]
        yield ["ip", "netns", "add", host]
        yield [
            *("ip", "link", "add", plug, "type", "veth"),
            *("peer", "name", INTERFACE, "netns", host),
        ]
        yield ["ip", "link", "set", plug, "master", layout.bridge, "up"]
        address = f"{layout.address(number)}/24"
        yield [*inside, "addr", "add", address, "dev", INTERFACE]
        yield [*inside, "link", "set", "lo", "up"]
        yield [*inside, "link", "set", INTERFACE, "up"]
        rate = layout.rates_bit_per_s[number]
        if rate:
            for ip, tc, end in (
                (["ip"], ["tc"], plug),
                (inside, ["tc", "-n", host], INTERFACE),
            ):
                sizes = ["gso_max_size", f"{PACKET_BYTES}", "gso_max_segs", "2"]
                yield [*ip, "link", "set", end, *sizes]
                yield [*tc, "qdisc", "replace", "dev", end, "root", *shape(rate)]


def shape(rate_bit_per_s: float) -> list[str]:
    """The token bucket of a link."""
    burst = max(LEAST_BURST_BYTES, round(rate_bit_per_s / 8 * BURST_S))
    return [
        *("tbf", "rate", f"{rate_bit_per_s:.0f}bit"),
        *("burst", f"{burst}", "latency", f"{SHAPED_QUEUE_S * 1e3:.0f}ms"),
    ]


def down(layout: Layout) -> None:
    """Remove everything of the network that is there; its processes end first."""
    for number in range(layout.hosts):
        host = layout.host(number)
        _end_processes(host)
        _output("ip", "netns", "del", host)
        _output("ip", "link", "del", layout.plug(number))
        shutil.rmtree(HOSTS_FILES / host, ignore_errors=True)
        remove_group(host)
    _output("ip", "link", "del", layout.bridge)
    layout.state.unlink(missing_ok=True)


def _write_names(layout: Layout, number: int) -> None:
    """Names of all hosts, which ``ip netns exec`` puts in place of /etc/hosts."""
    folder = HOSTS_FILES / layout.host(number)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{layout.address(i)} {layout.host(i)}" for i in range(layout.hosts)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")


def _end_processes(host: str) -> None:
    """Ask the processes of a host to end, then make them."""
    pids = _processes(host)
    _signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while pids and time.monotonic() < deadline:
        time.sleep(0.05)
        pids = _processes(host)
    _signal(pids, signal.SIGKILL)


def _processes(host: str) -> list[int]:
    return [int(pid) for pid in _output("ip", "netns", "pids", host).split()]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _output(*line: str) -> str:
    """What a command prints; nothing when it fails."""
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout


def _run(*line: str) -> None:
    """Run a command.

    Raises:
        EnvironmentUnableError: It fails.
    """
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise EnvironmentUnableError(
            f"'{' '.join(line)}' failed: {reason[-1] if reason else done.returncode}",
            hint="the kernel needs network namespaces, veth, bridge and the tbf queue",
        )
