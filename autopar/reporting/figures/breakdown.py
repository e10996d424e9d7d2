"""Where the step's seconds go: one stacked bar per case (predicted, measured, another plan)."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from autopar.reporting.figures.style import bars_height, figure, marker
from autopar.reporting.palette import PARTS
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, clean, plot_text
from autopar.results import CostBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One case.

    Attributes:
        label: Who it is: ``predicted``, a plan name.
        breakdown: Seconds by part.
        low_s: Lower end of the step time, if known.
        high_s: Upper end of the step time, if known.
    """

    label: str
    breakdown: CostBreakdown
    low_s: float | None = None
    high_s: float | None = None


def breakdown_table(bars: tuple[Bar, ...], id_: str) -> Table:
    """Parts in rows, cases in columns, parts that are zero everywhere left out."""
    rows = [
        (ink.label, *(getattr(bar.breakdown, key) for bar in bars))
        for key, ink in PARTS.items()
        if any(getattr(bar.breakdown, key) for bar in bars)
    ]
    rows.append(("total", *(bar.breakdown.total_s for bar in bars)))
    columns = [Column("part", "part")]
    columns += [
        Column(f"{clean(bar.label).replace(' ', '_')}_s", clean(bar.label), "seconds")
        for bar in bars
    ]
    return Table(
        id=id_,
        caption="Seconds of one step by part, on the rank that ends last",
        columns=tuple(columns),
        rows=tuple(rows),
    )


def breakdown_figure(bars: tuple[Bar, ...]) -> go.Figure:
    """Stacked horizontal bars on one time scale; whiskers show the range of the whole."""
    largest = max((bar.high_s or bar.breakdown.total_s) for bar in bars)
    factor, unit = axis_seconds(largest)
    labels = [plot_text(bar.label, 34) for bar in bars]
    result = figure(
        height=bars_height(len(bars), row=46 if len(bars) <= 3 else 32),
        x_title=f"step time ({unit})",
        barmode="stack",
    )
    for key, ink in PARTS.items():
        values = [getattr(bar.breakdown, key) * factor for bar in bars]
        if not any(values):
            continue
        result.add_bar(
            x=values,
            y=labels,
            name=ink.label,
            orientation="h",
            marker=marker(ink),
            hovertemplate=f"%{{y}}<br>{ink.label}: %{{x:.4g}} {unit}<extra></extra>",
        )
    ranged = [bar for bar in bars if bar.low_s is not None and bar.high_s is not None]
    if ranged:
        result.add_trace(_whiskers(ranged, factor))
    result.update_yaxes(autorange="reversed", showgrid=False)
    result.update_xaxes(rangemode="tozero")
    return result


def _whiskers(bars: list[Bar], factor: float) -> go.Scatter:
    totals = [bar.breakdown.total_s for bar in bars]
    return go.Scatter(
        x=[total * factor for total in totals],
        y=[plot_text(bar.label, 34) for bar in bars],
        mode="markers",
        name="total and its range",
        marker={"symbol": "line-ns-open", "size": 14, "line": {"width": 2}, "color": "#888"},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [
                max((b.high_s or t) - t, 0) * factor for b, t in zip(bars, totals, strict=True)
            ],
            "arrayminus": [
                max(t - (b.low_s or t), 0) * factor for b, t in zip(bars, totals, strict=True)
            ],
            "thickness": 2,
            "width": 6,
            "color": "#888",
        },
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        meta="ink",
    )
