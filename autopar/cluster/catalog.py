"""The catalogue of machines: one TOML file each, read when asked for.

A file ``catalog/NAME.toml`` holds a ``summary``, ``devices_per_node`` (the usual count),
``max_devices_per_node``, the tables ``device``, ``intra`` and ``inter`` with the fields of
:class:`~autopar.cluster.machine.Device` and :class:`~autopar.cluster.machine.Link`, and a
``sources`` table in each that says where every figure comes from. ``device = "OTHER"`` takes the
device of another file, ``intra`` and ``inter`` likewise its links, so that a host on sale repeats
nothing of its hardware. To add a machine, add a file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopar.cluster.machine import Device, Link, Machine
from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean

_FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One machine of the catalogue.

    Attributes:
        machine: The machine with its usual number of devices.
        summary: One line for listings.
        max_devices_per_node: Most devices the machine can hold.
        devices_per_node_source: Where the number of devices comes from.
        inter_scales_with_devices: The network ports are shared out over the devices, so that a
            part of a node has the same part of its network rate.
    """

    machine: Machine
    summary: str
    max_devices_per_node: int
    devices_per_node_source: str
    inter_scales_with_devices: bool = False

    def with_devices(self, devices_per_node: int) -> Machine:
        """The machine with another number of devices.

        Raises:
            InputError: It cannot hold that many.
        """
        name = self.machine.name
        if not 1 <= devices_per_node <= self.max_devices_per_node:
            raise InputError(
                f"{devices_per_node} devices per node asked of '{name}', "
                f"it holds 1 to {self.max_devices_per_node}",
                hint=f"use more nodes, e.g. 2x{self.machine.devices_per_node}:{name}",
            )
        inter = self.machine.inter
        share = devices_per_node / self.machine.devices_per_node
        if self.inter_scales_with_devices and share != 1:
            note = f"{share:g} of a node's ports: {inter.sources['bytes_per_s']}"
            inter = replace(
                inter,
                bytes_per_s=inter.bytes_per_s * share,
                sources={**inter.sources, "bytes_per_s": note},
            )
        return replace(self.machine, devices_per_node=devices_per_node, inter=inter)


def machine_names() -> list[str]:
    """Names of all machines, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_entry(name: str) -> CatalogEntry:
    """Read one machine with what the catalogue says about it.

    Raises:
        InputError: No such machine; the hint names the closest ones.
    """
    data = _read(name)
    device_name, device = _part(name, data, "device")
    machine = Machine(
        name=name,
        device=Device(name=device_name, **device),
        devices_per_node=data["devices_per_node"],
        intra=Link(**_part(name, data, "intra")[1]),
        inter=Link(**_part(name, data, "inter")[1]),
    )
    return CatalogEntry(
        machine=machine,
        summary=data["summary"],
        max_devices_per_node=data["max_devices_per_node"],
        devices_per_node_source=data["devices_per_node_source"],
        inter_scales_with_devices=data.get("inter_scales_with_devices", False),
    )


def _part(name: str, data: dict[str, Any], part: str) -> tuple[str, dict[str, Any]]:
    """A table of a machine file and the name of the file that holds it."""
    table = data[part]
    return (table, _read(table)[part]) if isinstance(table, str) else (name, table)


def load_machine(name: str) -> Machine:
    """One machine with its usual number of devices.

    Raises:
        InputError: No such machine; the hint names the closest ones.
    """
    return load_entry(name).machine


def _read(name: str) -> dict[str, Any]:
    names = machine_names()
    if name not in names:  # the listing, not the file system, decides: no paths in names
        raise InputError(
            f"unknown machine '{name}'",
            hint=f"{did_you_mean(name, names)} `autopar catalog machines` lists all",
        )
    with (_FOLDER / f"{name}.toml").open("rb") as stream:
        return tomllib.load(stream)
