"""FLOPs and bytes of the model by operator."""

from __future__ import annotations

from collections import defaultdict

import plotly.graph_objects as go

from autopar.graph import GraphProfile
from autopar.reporting.figures.style import bars_height, figure, marker
from autopar.reporting.palette import PARTS
from autopar.reporting.table import Column, Table, Value
from autopar.reporting.text import clean, plot_text


def op_types_table(profile: GraphProfile, samples: int) -> Table:
    """FLOPs and bytes by operator, most FLOPs first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for op in profile.ops:
        amounts = (op.forward_flop, op.backward_flop, op.forward_bytes, op.saved_bytes)
        entry = sums[clean(op.target)]
        entry[0] += 1
        for index, amount in enumerate(amounts, start=1):
            entry[index] += amount.at(samples)
    ordered = sorted(
        sums.items(), key=lambda item: (-(item[1][1] + item[1][2]), -item[1][3], item[0])
    )
    rows: list[tuple[Value, ...]] = [(target, *values) for target, values in ordered]
    return Table(
        id="op-types-data",
        caption=f"Operators of one microbatch of {samples}",
        columns=(
            Column("op", "operator"),
            Column("calls", "calls", "count"),
            Column("forward_flop", "forward", "flop"),
            Column("backward_flop", "backward", "flop"),
            Column("forward_bytes", "read and written", "bytes"),
            Column("saved_bytes", "kept for backward", "bytes"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 10,
    )


def op_types_figure(table: Table, bars: int = 12) -> go.Figure:
    """Operators with most arithmetic, forward and backward stacked."""
    rows = [row for row in table.rows if float(row[2] or 0) + float(row[3] or 0) > 0][:bars]
    rows = rows or list(table.rows[:bars])
    labels = [plot_text(row[0], 36) for row in rows]
    result = figure(height=bars_height(len(rows), row=28), x_title="GFLOP", barmode="stack")
    for index, key, ink in (
        (2, "forward", PARTS["forward_s"]),
        (3, "backward", PARTS["backward_s"]),
    ):
        result.add_bar(
            x=[float(row[index] or 0) / 1e9 for row in rows],
            y=labels,
            orientation="h",
            name=key,
            marker=marker(ink),
            hovertemplate=f"%{{y}}<br>{key}: %{{x:.4g}} GFLOP<extra></extra>",
        )
    result.update_yaxes(autorange="reversed", showgrid=False)
    return result
