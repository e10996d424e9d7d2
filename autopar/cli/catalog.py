"""``autopar catalog``: what can be named."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli.options import Json
from autopar.cli.session import session
from autopar.core.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console


class Kind(StrEnum):
    """Listings."""

    MACHINES = "machines"
    ZOO = "zoo"
    SCHEDULES = "schedules"
    STRATEGIES = "strategies"
    SYNC = "sync"
    EXPORTS = "exports"


def command(
    kind: Annotated[
        Kind | None, typer.Argument(help="machines, zoo, schedules, strategies, sync or exports.")
    ] = None,
    json_output: Json = False,
) -> None:
    """List what other commands accept: machines, models, schedules, sync modes, export targets.

    Example: `autopar catalog machines`.
    """
    with session("catalog", json_output=json_output) as talk:
        kinds = [kind] if kind else list(Kind)
        data = {str(k): _LISTS[k]() for k in kinds}

        def show(console: Console) -> None:
            for name, rows in data.items():
                console.print(f"[bold]{name}[/bold]")
                if name == Kind.MACHINES:
                    _show_machines(console, rows)
                    continue
                for row in rows:
                    console.print(f"  {row['name']:22} {row['summary']}", markup=False)

        talk.finish(data, show)


def _show_machines(console: Console, rows: list[dict[str, Any]]) -> None:
    """One line per machine: what limits training on it, then its summary."""
    from rich.table import Table

    columns = ["name", "devices", "memory", "half precision", "in the node", "between nodes"]
    table = Table(*columns, "USD/h each", "", box=None, padding=(0, 1, 0, 1))
    for row in rows:
        peaks = row["peak_flop_per_s"]
        half = peaks.get("bfloat16", peaks.get("float16"))
        price = row["usd_per_hour"]
        table.add_row(
            row["name"],
            str(row["devices_per_node"]),
            format_bytes(row["memory_bytes"]),
            "" if half is None else f"{format_count(half)}FLOP/s",
            f"{format_count(row['intra_bytes_per_s'])}B/s",
            f"{format_count(row['inter_bytes_per_s'])}B/s",
            "" if price is None else f"{price:.2f}",
            row["summary"],
        )
    console.print(table)


def _machines() -> list[dict[str, Any]]:
    from autopar.cluster.catalog import load_entry, machine_names

    rows = []
    for name in machine_names():
        entry = load_entry(name)
        machine, device = entry.machine, entry.machine.device
        rows.append(
            {
                "name": name,
                "summary": entry.summary,
                "device": device.name,
                "devices_per_node": machine.devices_per_node,
                "memory_bytes": device.memory_bytes,
                "memory_bytes_per_s": device.memory_bytes_per_s,
                "peak_flop_per_s": device.peak_flop_per_s,
                "intra_bytes_per_s": machine.intra.bytes_per_s,
                "inter_bytes_per_s": machine.inter.bytes_per_s,
                "power_watt": device.power_watt,
                "usd_per_hour": device.usd_per_hour,
            }
        )
    return rows


def _zoo() -> list[dict[str, Any]]:
    from autopar.tasks.zoo import ZOO

    return [{"name": f"zoo:{name}", "summary": ZOO.summary(name)} for name in ZOO]


def _schedules() -> list[dict[str, Any]]:
    from autopar.schedules import SCHEDULES

    return [{"name": name, "summary": SCHEDULES.summary(name)} for name in SCHEDULES]


def _strategies() -> list[dict[str, Any]]:
    from autopar.strategies import STRATEGIES

    return [{"name": name, "summary": STRATEGIES.summary(name)} for name in STRATEGIES]


def _sync() -> list[dict[str, Any]]:
    """Modes, then compressions as they are joined to a mode, ``+int8``."""
    from autopar.sync import COMPRESSIONS, SYNC_MODES, SyncContext, SyncGroup, parse_sync

    names = [*SYNC_MODES, *(f"all_reduce+{name}" for name in COMPRESSIONS if name != "none")]
    rows = []
    for name in names:
        sync = parse_sync(name)
        _, joined, compression = name.partition("+")
        summary = COMPRESSIONS.summary(compression) if joined else SYNC_MODES.summary(name)
        multiplier = sync.steps_multiplier(SyncContext(group=SyncGroup(ranks=2)))
        rows.append(
            {
                "name": sync.name.removeprefix("all_reduce") if joined else sync.name,
                "semantics": sync.semantics,
                "summary": f"{sync.semantics:9} {summary}",
                "steps_multiplier": multiplier.to_dict(),
                "citations": [item.citation for item in sync.literature],
            }
        )
    return rows


def _exports() -> list[dict[str, Any]]:
    from autopar.exporters import EXPORTS

    return [
        {
            "name": name,
            "summary": EXPORTS.summary(name),
            "written_for": EXPORTS.load(name).written_for,
        }
        for name in EXPORTS
    ]


_LISTS = {
    Kind.MACHINES: _machines,
    Kind.ZOO: _zoo,
    Kind.SCHEDULES: _schedules,
    Kind.STRATEGIES: _strategies,
    Kind.SYNC: _sync,
    Kind.EXPORTS: _exports,
}
