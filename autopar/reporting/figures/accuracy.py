"""Predicted against measured for many plans."""

from __future__ import annotations

import plotly.graph_objects as go

from autopar.reporting.figures.style import bars_height, figure
from autopar.reporting.palette import BLUE, GREEN, VERMILLION
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, plot_text
from autopar.results import BenchResult

BAND = 0.10


def bench_table(bench: BenchResult) -> Table:
    """One row per plan, fastest measured first."""
    ordered = sorted(bench.rows, key=lambda row: (row.measured_s is None, row.measured_s or 0.0))
    rows = [
        (
            row.name,
            row.predicted_s,
            row.measured_s,
            row.rel_error,
            row.predicted_memory_bytes,
            row.measured_memory_bytes,
            _relative(row.predicted_memory_bytes, row.measured_memory_bytes),
            row.failure,
        )
        for row in ordered
    ]
    return Table(
        id="bench-data",
        caption="Plans by measured step time",
        columns=(
            Column("name", "plan"),
            Column("predicted_s", "predicted", "seconds"),
            Column("measured_s", "measured", "seconds"),
            Column("rel_error", "error", "signed_ratio"),
            Column("predicted_memory_bytes", "predicted memory", "bytes"),
            Column("measured_memory_bytes", "measured memory", "bytes"),
            Column("memory_rel_error", "memory error", "signed_ratio"),
            Column("failure", "failure"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 12,
    )


def _relative(predicted: float, measured: float | None) -> float | None:
    return predicted / measured - 1 if measured else None


def accuracy_figure(bench: BenchResult) -> go.Figure:
    """Scatter on equal logarithmic axes: the line is perfect, the band 10 % wide each way."""
    rows = bench.measured
    times = [t for row in rows for t in (row.predicted_s, row.measured_s or 0.0)]
    factor, unit = axis_seconds(max(times))
    low, high = min(times) * factor * 0.85, max(times) * factor * 1.18
    result = figure(
        height=440, x_title=f"measured step time ({unit})", y_title=f"predicted step time ({unit})"
    )
    edge = [low, high]
    result.add_scatter(
        x=edge + edge[::-1],
        y=[x * (1 + BAND) for x in edge] + [x * (1 - BAND) for x in edge[::-1]],
        fill="toself", mode="lines",
        fillcolor="rgba(0,158,115,0.14)", line={"width": 0}, name="within 10 %",
        hoverinfo="skip",
    )  # fmt: skip
    result.add_scatter(
        x=edge, y=edge, mode="lines", name="perfect", line={"color": GREEN, "width": 1.5},
        hoverinfo="skip",
    )  # fmt: skip
    chosen = bench.chosen
    for name, color, symbol, size, group in (
        ("plan", BLUE, "circle", 10, [row for row in rows if row is not chosen]),
        ("chosen by the model", VERMILLION, "star", 16, [row for row in rows if row is chosen]),
    ):
        if group:
            result.add_scatter(
                x=[(row.measured_s or 0.0) * factor for row in group],
                y=[row.predicted_s * factor for row in group],
                mode="markers", name=name, text=[plot_text(row.name) for row in group],
                marker={"color": color, "symbol": symbol, "size": size},
                error_y=_ranges(group, factor, color),
                hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
            )  # fmt: skip
    result.update_xaxes(type="log", dtick="D2")
    result.update_yaxes(type="log", dtick="D2")
    return result


def _ranges(rows: list, factor: float, color: str) -> dict | None:  # type: ignore[type-arg]
    if any(row.predicted_low_s is None or row.predicted_high_s is None for row in rows):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [(row.predicted_high_s - row.predicted_s) * factor for row in rows],
        "arrayminus": [(row.predicted_s - row.predicted_low_s) * factor for row in rows],
        "thickness": 1,
        "width": 0,
        "color": color,
    }


def errors_figure(table: Table, column: str) -> go.Figure:
    """Signed relative error of every plan, in the order of the table."""
    index = [c.key for c in table.columns].index(column)
    rows = [row for row in table.rows if row[index] is not None]
    values = [float(row[index] or 0) * 100 for row in rows]
    labels = [plot_text(row[0], 34) for row in rows]
    largest = max([abs(v) for v in values] + [BAND * 100])
    result = figure(
        height=bars_height(len(rows), row=26),
        x_title="predicted over measured, minus 1 (%)",
        showlegend=False,
    )
    result.add_vrect(
        x0=-BAND * 100, x1=BAND * 100, fillcolor=GREEN, opacity=0.12, line_width=0, layer="below"
    )
    result.add_bar(
        x=values,
        y=list(range(len(rows))),
        orientation="h",
        marker={"color": BLUE},
        text=[f"{v:+.1f} %" for v in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{text}<extra></extra>",
    )
    result.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed", showgrid=False
    )
    result.update_xaxes(range=[-largest * 1.3, largest * 1.3], zeroline=True)
    return result
