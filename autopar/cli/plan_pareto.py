"""The table of plans that ``autopar plan`` prints for several objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.units import format_bytes, format_joule, format_seconds, format_usd

if TYPE_CHECKING:
    from rich.console import Console

    from autopar.results.pareto import ParetoSet

FORMATS = {
    "time": format_seconds,
    "memory": format_bytes,
    "energy": format_joule,
    "cost": format_usd,
}


def show_pareto(console: Console, found: ParetoSet) -> None:
    """One row per plan, best in the first objective first; then what the set is worth."""
    from rich.table import Table

    table = Table("", *found.objectives, "plan", box=None)
    for index, plan in enumerate(found.plans):
        cells = [FORMATS[name](plan.values[name]) for name in found.objectives]
        table.add_row("knee" if index == found.knee else "", *cells, plan.ranked.name)
    console.print(table)
    console.print(verdict(found), markup=False, style="dim")


def verdict(found: ParetoSet) -> str:
    """How far the set can be trusted, in a sentence."""
    proof = found.proof
    text = f"{len(found.plans)} plans that none beats in {' and '.join(found.objectives)}"
    if proof.complete and proof.resolution:
        text += f"; complete but for plans that need up to {proof.resolution:.0%} less memory"
    elif proof.complete:
        text += "; complete"
    else:
        text += f"; not complete: bounds leave up to {proof.gap:.0%} of the hypervolume open"
    return text + f" ({proof.engine}, {proof.priced} priced, {found.search_time_s:.1f} s)"
