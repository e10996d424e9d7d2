"""Peak memory per rank against what the device has."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from autopar.core.units import format_bytes
from autopar.reporting.figures.style import bars_height, figure, marker
from autopar.reporting.palette import MEMORY
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_bytes
from autopar.results import MemoryBreakdown

OFF_SCALE = 6.0
"""The capacity line is drawn while capacity is below this multiple of the fullest bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """One pipeline coordinate.

    Attributes:
        label: ``stage rank 0``, or ``every rank`` without a pipeline.
        predicted: Bytes by part, if predicted.
        measured_bytes: Largest measured peak of its ranks, if measured.
    """

    label: str
    predicted: MemoryBreakdown | None
    measured_bytes: float | None = None

    @property
    def largest(self) -> float:
        """The longer of bar and marker."""
        return max(
            self.predicted.total_bytes if self.predicted else 0.0, self.measured_bytes or 0.0
        )


def memory_table(rows: tuple[MemoryRow, ...], capacity_bytes: float | None) -> Table:
    """Parts in columns, ranks in rows."""
    keys = [k for k in MEMORY if any(r.predicted and getattr(r.predicted, k) for r in rows)]
    values = [
        (
            row.label,
            *(getattr(row.predicted, key) if row.predicted else None for key in keys),
            row.predicted.total_bytes if row.predicted else None,
            row.measured_bytes,
            capacity_bytes,
        )
        for row in rows
    ]
    return Table(
        id="memory-data",
        caption="Peak bytes per rank",
        columns=(
            Column("ranks", "ranks"),
            *(Column(key, MEMORY[key].label, "bytes") for key in keys),
            Column("predicted_bytes", "predicted peak", "bytes"),
            Column("measured_bytes", "measured peak", "bytes"),
            Column("capacity_bytes", "capacity", "bytes"),
        ),
        rows=tuple(values),
    )


def memory_figure(rows: tuple[MemoryRow, ...], capacity_bytes: float | None) -> go.Figure:
    """Stacked bars, a diamond for the measured peak, a line for the capacity."""
    largest = max(row.largest for row in rows)
    visible = capacity_bytes is not None and capacity_bytes <= OFF_SCALE * largest
    factor, unit = axis_bytes(max(largest, capacity_bytes or 0.0) if visible else largest)
    labels = [row.label for row in rows]
    result = figure(
        height=bars_height(len(rows), row=40 if len(rows) < 8 else 24, around=130),
        x_title=f"peak memory ({unit})",
        barmode="stack",
    )
    for key, ink in MEMORY.items():
        values = [getattr(r.predicted, key) * factor if r.predicted else 0.0 for r in rows]
        if any(values):
            result.add_bar(
                x=values,
                y=labels,
                orientation="h",
                name=ink.label,
                marker=marker(ink),
                hovertemplate=f"%{{y}}<br>{ink.label}: %{{x:.3g}} {unit}<extra></extra>",
            )
    measured = [row for row in rows if row.measured_bytes is not None]
    if measured:
        result.add_scatter(
            x=[(row.measured_bytes or 0.0) * factor for row in measured],
            y=[row.label for row in measured],
            mode="markers",
            name="measured peak",
            marker={"symbol": "diamond", "size": 13, "line": {"width": 2, "color": "#ffffff"}},
            meta="ink",
            hovertemplate=f"%{{y}}<br>measured: %{{x:.3g}} {unit}<extra></extra>",
        )
    end = largest * factor * 1.08
    if capacity_bytes is not None and visible:
        end = max(end, capacity_bytes * factor * 1.06)
        result.add_vline(
            x=capacity_bytes * factor,
            line={"width": 2, "dash": "dash", "color": "#D55E00"},
            annotation={
                "text": f"capacity {format_bytes(capacity_bytes)}",
                "yref": "paper",
                "y": 0,
                "yanchor": "bottom",
                "xanchor": "right",
                "showarrow": False,
                "font": {"size": 12},
            },
        )
    result.update_yaxes(autorange="reversed", showgrid=False)
    result.update_xaxes(range=[0, end])
    return result
