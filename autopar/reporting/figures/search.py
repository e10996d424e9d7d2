"""How the search went: best so far by trial, and what became of every point of the space."""

from __future__ import annotations

import plotly.graph_objects as go

from autopar.reporting.figures.style import bars_height, figure
from autopar.reporting.palette import BLUE, GREEN, GREY, ORANGE
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, plot_text
from autopar.results import Certificate

History = tuple[tuple[int, float, float, str], ...]
MAX_POINTS = 4000


def history_table(history: History) -> Table:
    """One row per priced point."""
    return Table(
        id="history-data",
        caption="Priced points in the order of the search",
        columns=(
            Column("trial", "trial", "count"),
            Column("value_s", "step time", "seconds"),
            Column("best_so_far_s", "best so far", "seconds"),
            Column("plan", "plan"),
        ),
        rows=tuple(history[:MAX_POINTS]),
        searchable=len(history) > 12,
        omitted=max(len(history) - MAX_POINTS, 0),
    )


def history_figure(history: History) -> go.Figure:
    """Every priced point, and the best so far as a step line."""
    drawn = history[:MAX_POINTS]
    factor, unit = axis_seconds(max(row[2] for row in drawn))
    result = figure(height=320, x_title="trial", y_title=f"step time ({unit})")
    result.add_scatter(
        x=[row[0] for row in drawn],
        y=[row[1] * factor for row in drawn],
        mode="markers",
        name="priced plan",
        text=[plot_text(row[3]) for row in drawn],
        marker={"color": ORANGE, "size": 6, "opacity": 0.8},
        hovertemplate=f"trial %{{x}}: %{{y:.4g}} {unit}<br>%{{text}}<extra></extra>",
    )
    result.add_scatter(
        x=[row[0] for row in drawn],
        y=[row[2] * factor for row in drawn],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": BLUE, "width": 2},
        hovertemplate=f"best after trial %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
    )
    low = min(row[2] for row in drawn)
    high = max(row[1] for row in drawn)
    if low > 0 and high > 20 * low:
        result.update_yaxes(type="log")
    else:
        result.update_yaxes(rangemode="tozero")
    return result


def outcomes_table(certificate: Certificate) -> Table:
    """What became of the points: priced, bounded, rejected by reason."""
    rows = [
        ("priced in full", certificate.priced),
        ("excluded by a lower bound", certificate.bounded),
    ]
    rows += [
        (f"rejected: {plot_text(reason)}", count)
        for reason, count in sorted(certificate.rejected.items(), key=lambda item: -item[1])
    ]
    return Table(
        id="outcomes-data",
        caption=f"What became of the {certificate.space:,} points of the search space",
        columns=(Column("outcome", "outcome"), Column("points", "points", "count")),
        rows=tuple(rows),
    )


def outcomes_figure(table: Table) -> go.Figure:
    """Horizontal bars, one per outcome."""
    labels = [str(row[0]) for row in table.rows]
    counts = [int(row[1] or 0) for row in table.rows]
    colors = [GREEN, BLUE, *([GREY] * len(labels))][: len(labels)]
    result = figure(height=bars_height(len(labels)), x_title="points", showlegend=False)
    result.add_bar(
        x=counts,
        y=labels,
        orientation="h",
        marker={"color": colors},
        text=[f"{count:,}" for count in counts],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:,}<extra></extra>",
    )
    result.update_yaxes(autorange="reversed", showgrid=False)
    result.update_xaxes(range=[0, max(*counts, 1) * 1.12])
    return result
