"""Which parts explain the difference of two step times: a waterfall from one to the other."""

from __future__ import annotations

import plotly.graph_objects as go

from autopar.reporting.figures.style import figure
from autopar.reporting.palette import BLUE, ORANGE, PARTS
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, display, plot_text
from autopar.results import CostBreakdown

INSIDE = ("forward_s", "backward_s", "recompute_s", "collective_s")
"""Parts that a run does not tell apart where ranks meet between ops: its spans of forward and
backward hold those collectives."""


def difference_table(
    first: CostBreakdown, second: CostBreakdown, id_: str, *, pooled: bool = False
) -> Table:
    """Parts with their change in seconds, largest first.

    Args:
        first: Where the waterfall begins.
        second: Where it ends.
        id_: Of the table.
        pooled: Count compute and the collectives inside it as one part.
    """
    parts: dict[str, tuple[str, ...]] = {ink.label: (key,) for key, ink in PARTS.items()}
    if pooled:
        parts = {label: keys for label, keys in parts.items() if keys[0] not in INSIDE}
        parts["compute, collectives inside"] = INSIDE
    rows = []
    for label, keys in parts.items():
        before, after = (sum(getattr(item, key) for key in keys) for item in (first, second))
        if before or after:
            rows.append((label, before, after, after - before))
    rows.sort(key=lambda row: -abs(row[3]))
    return Table(
        id=id_,
        caption="Change of each part, largest first",
        columns=(
            Column("part", "part"),
            Column("first_s", "first", "seconds"),
            Column("second_s", "second", "seconds"),
            Column("change_s", "change", "signed_seconds"),
        ),
        rows=tuple(rows),
    )


def difference_figure(table: Table, start: str, end: str) -> go.Figure:
    """A waterfall: from the first total, one step per part, to the second total."""
    first = sum(float(row[1] or 0) for row in table.rows)
    second = sum(float(row[2] or 0) for row in table.rows)
    factor, unit = axis_seconds(max(first, second))
    labels = [plot_text(start, 24), *(str(row[0]) for row in table.rows), plot_text(end, 24)]
    changes = [float(row[3] or 0) * factor for row in table.rows]
    values = [first * factor, *changes, second * factor]
    result = figure(height=130 + 30 * len(labels), x_title=f"step time ({unit})", showlegend=False)
    result.add_trace(
        go.Waterfall(
            orientation="h",
            measure=["absolute", *("relative" for _ in changes), "total"],
            y=labels,
            x=values,
            text=[
                display("seconds", first),
                *(display("signed_seconds", row[3]) for row in table.rows),
                display("seconds", second),
            ],
            textposition="outside",
            cliponaxis=False,
            connector={"line": {"width": 1, "color": "#888", "dash": "dot"}},
            increasing={"marker": {"color": ORANGE}},
            decreasing={"marker": {"color": BLUE}},
            totals={"marker": {"color": "#8a9099"}},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    result.update_yaxes(autorange="reversed", showgrid=False)
    low, high = _span(first * factor, changes)
    result.update_xaxes(range=[low, high])
    return result


def _span(start: float, changes: list[float]) -> tuple[float, float]:
    """Axis range: from zero when the changes are large, else close around the steps."""
    levels = [start]
    for change in changes:
        levels.append(levels[-1] + change)
    low, high = min(levels), max(levels)
    margin = max((high - low) * 0.35, high * 0.04)
    return max(low - margin, 0.0) if low > 0.4 * high else 0.0, high + margin
