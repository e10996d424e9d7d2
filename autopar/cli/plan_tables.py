"""The tables of plans and baselines that ``autopar plan`` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autopar.core.units import format_bytes, format_joule, format_seconds, format_usd
from autopar.results import RankedPlan, Rejection, SearchResult

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "cost": ("money", format_usd),
    "energy": ("energy", format_joule),
    "time-to-target": ("step x steps", format_seconds),
    "memory": ("memory", format_bytes),
}
"""Objective -> head of its column and how its values are written; time has columns anyway."""


def plans_table(result: SearchResult) -> Table:
    """One row per ranked plan, with what was minimised beside its name."""
    from rich.table import Table

    own = own_column(result.objective)
    heads = ["", "plan", *([own[0]] if own else []), "step", "range", "samples/s"]
    heads += [*(["memory"] if result.objective != "memory" else []), "bubble", "sync"]
    table = Table(*heads, box=None)
    for item in result.top:
        table.add_row("*" if item is result.top[0] else "", *_row(item, result.objective))
    return table


def own_column(objective: str) -> tuple[str, Callable[[float], str]] | None:
    """Head and format of the objective's own column; ``None`` for time."""
    return COLUMNS.get(objective)


def _row(item: RankedPlan, objective: str) -> list[Any]:
    price = item.price
    step = price.step_time_s
    parts = price.breakdown
    total = parts.total_s or 1.0
    return [
        item.name,
        *_own(item, objective),
        format_seconds(step.value),
        f"{format_seconds(step.low)} .. {format_seconds(step.high)}",
        f"{price.samples_per_s:.4g}",
        *([format_bytes(price.peak_memory_bytes.value)] if objective != "memory" else []),
        f"{parts.bubble_s / total:.0%}",
        f"{parts.gradient_sync_s / total:.0%}",
    ]


def _own(item: RankedPlan, objective: str) -> list[str]:
    """The objective's value, written; nothing for time."""
    from autopar.search.stages.goal import value_of

    own = own_column(objective)
    return [own[1](value_of(item.price, objective))] if own else []


def baseline_words(item: RankedPlan | Rejection, best: RankedPlan, objective: str) -> str:
    """A baseline's figures and what it needs more of what was minimised."""
    from autopar.search.explain.choice import margin_words

    if isinstance(item, Rejection):
        return f"not possible: {item.detail}"
    figures = [*_own(item, objective), format_seconds(item.price.step_time_s.value)]
    return f"{', '.join(figures)} ({item.name}), {margin_words(best, item, objective)}"
