"""The table of machine sets that ``autopar plan`` prints for several clusters or a deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.units import format_joule, format_seconds, format_usd

if TYPE_CHECKING:
    from rich.console import Console

    from autopar.core.estimate import Estimate
    from autopar.search.machines.choose import MachineChoice
    from autopar.search.machines.offers import Offer


def show_machines(console: Console, choice: MachineChoice) -> None:
    """One row per set: time, range, money, energy, whether it meets the wishes, its plan."""
    from rich.table import Table

    limited = choice.wishes.deadline_s is not None or choice.wishes.budget_usd is not None
    columns = ["", "machines", "step", "time", "range", "money", "energy"]
    table = Table(*columns, *(["meets"] if limited else []), "plan", box=None)
    front = {offer.cluster.name for offer in choice.pareto}
    energies = [offer.energy_joule for offer in choice.offers]
    most = max((energy.value for energy in energies if energy is not None), default=0.0)
    for offer in choice.offers:
        mark = "*" if offer is choice.chosen else "+" if offer.cluster.name in front else ""
        row = [mark, offer.cluster.name, *_figures(offer, most)]
        table.add_row(*row, *([offer.meets(choice.wishes)] if limited else []), _plan(offer))
    console.print(table)
    unit = f"{choice.chosen.steps} steps" if choice.wishes.samples else "one step"
    console.print(
        f"time, money and energy of {unit}, global batch {choice.options.global_batch}; "
        "* chosen, + not beaten in both time and money"
        + ("; surely: the whole range is within" if limited else ""),
        style="dim",
        markup=False,
    )
    console.print(choice.explanation, markup=False)
    console.print()


def _figures(offer: Offer, most_joule: float) -> list[str]:
    step, total, cost, energy = (
        offer.step_time_s,
        offer.total_s,
        offer.cost_usd,
        offer.energy_joule,
    )
    return [
        _value(step),
        _value(total),
        "" if total is None else f"{format_seconds(total.low)} .. {format_seconds(total.high)}",
        "" if cost is None else format_usd(cost.value),
        "" if energy is None else format_joule(energy.value, most_joule),
    ]


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else format_seconds(estimate.value)


def _plan(offer: Offer) -> str:
    if offer.result is None:
        reason = offer.reason or ""
        return f"skipped: {reason}" if offer.skipped else f"none: {reason.partition(':')[0]}"
    best = offer.result.best
    return f"{best.name} {best.plan.precision}"
