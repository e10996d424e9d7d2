"""Step times in order, their spread, and the predicted range."""

from __future__ import annotations

import plotly.graph_objects as go

from autopar.core.estimate import Estimate
from autopar.core.stats import median
from autopar.reporting.figures.style import axis, figure
from autopar.reporting.palette import BLUE, GREY, ORANGE
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds


def steps_table(warmup: tuple[float, ...], measured: tuple[float, ...]) -> Table:
    """One row per step."""
    rows = [(i, "warm-up", t) for i, t in enumerate(warmup)]
    rows += [(len(warmup) + i, "measured", t) for i, t in enumerate(measured)]
    return Table(
        id="steps-data",
        caption="Time of each step (slowest rank)",
        columns=(
            Column("step", "step", "count"),
            Column("phase", "phase"),
            Column("step_time_s", "time", "seconds"),
        ),
        rows=tuple(rows),
    )


def steps_figure(
    warmup: tuple[float, ...], measured: tuple[float, ...], predicted: Estimate | None
) -> go.Figure:
    """Points in time order, a histogram beside them on the same scale."""
    factor, unit = axis_seconds(median(measured))
    top = max([*measured, predicted.high if predicted else 0.0]) * 1.1
    result = figure(
        height=320,
        x_title="step",
        y_title=f"step time ({unit})",
        xaxis=axis("step", domain=[0, 0.8]),
        xaxis2=axis("steps", domain=[0.83, 1.0], showgrid=False),
    )
    low = min([*measured, predicted.low if predicted else measured[0]]) * 0.9
    if predicted:
        result.add_hrect(
            y0=predicted.low * factor, y1=predicted.high * factor, fillcolor=ORANGE, opacity=0.16,
            line_width=0, layer="below",
        )  # fmt: skip
        result.add_scatter(
            x=[0, len(warmup) + len(measured) - 1], y=[predicted.value * factor] * 2, mode="lines",
            name="predicted, with range", line={"color": ORANGE, "width": 2, "dash": "dash"},
        )  # fmt: skip
    if warmup:
        result.add_scatter(
            x=list(range(len(warmup))), y=[t * factor for t in warmup], mode="markers",
            name="warm-up", marker={"symbol": "circle-open", "size": 8, "color": GREY},
        )  # fmt: skip
    result.add_scatter(
        x=[len(warmup) + i for i in range(len(measured))], y=[t * factor for t in measured],
        mode="markers", name="measured", marker={"size": 7, "color": BLUE},
        hovertemplate=f"step %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
    )  # fmt: skip
    result.add_trace(
        go.Histogram(
            y=[t * factor for t in measured], xaxis="x2", marker={"color": BLUE}, opacity=0.7,
            nbinsy=20, showlegend=False, hovertemplate="%{x} steps<extra></extra>",
        )
    )  # fmt: skip
    result.add_hline(y=median(measured) * factor, line={"color": BLUE, "width": 1}, layer="below")
    result.update_yaxes(range=[low * factor, top * factor])
    return result
