"""``autopar catalog``: what can be named."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from autopar.cli.options import Json
from autopar.cli.session import session
from autopar.core.units import format_bytes, format_count


class Kind(StrEnum):
    """Listings."""

    MACHINES = "machines"
    ZOO = "zoo"
    SCHEDULES = "schedules"


def command(
    kind: Annotated[Kind | None, typer.Argument(help="machines, zoo or schedules.")] = None,
    json_output: Json = False,
) -> None:
    """List the machines, zoo models and schedules that other commands accept.

    Example: `autopar catalog machines`.
    """
    with session("catalog", json_output=json_output) as talk:
        kinds = [kind] if kind else list(Kind)
        data = {str(k): _LISTS[k]() for k in kinds}

        def show(console: Any) -> None:
            for name, rows in data.items():
                console.print(f"[bold]{name}[/bold]")
                for row in rows:
                    note = "" if row.get("runnable", True) else " [planned only, not yet run]"
                    console.print(f"  {row['name']:22} {row['summary']}{note}", markup=False)

        talk.finish(data, show)


def _machines() -> list[dict[str, Any]]:
    from autopar.cluster.catalog import load_machine, machine_names

    rows = []
    for name in machine_names():
        machine = load_machine(name)
        device = machine.device
        best = max(device.peak_flop_per_s.items(), key=lambda item: item[1])
        rows.append(
            {
                "name": name,
                "summary": f"{machine.devices_per_node} x {device.name}, "
                f"{format_bytes(device.memory_bytes)}, {format_count(best[1])}FLOP/s {best[0]}, "
                f"{machine.intra.name} / {machine.inter.name}",
                "devices_per_node": machine.devices_per_node,
                "memory_bytes": device.memory_bytes,
                "peak_flop_per_s": device.peak_flop_per_s,
            }
        )
    return rows


def _zoo() -> list[dict[str, Any]]:
    from autopar.tasks.zoo import ZOO

    return [{"name": f"zoo:{name}", "summary": ZOO.summary(name)} for name in ZOO]


def _schedules() -> list[dict[str, Any]]:
    from autopar.schedules import SCHEDULES

    return [
        {
            "name": name,
            "runnable": SCHEDULES.load(name).runnable,
            "summary": SCHEDULES.summary(name),
        }
        for name in SCHEDULES
    ]


_LISTS = {Kind.MACHINES: _machines, Kind.ZOO: _zoo, Kind.SCHEDULES: _schedules}
