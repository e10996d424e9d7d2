"""Training loss against the step, of one run or of two."""

from __future__ import annotations

import plotly.graph_objects as go

from autopar.reporting.figures.style import figure
from autopar.reporting.palette import BLUE, ORANGE
from autopar.reporting.table import Column, Table
from autopar.reporting.text import clean, plot_text

Series = tuple[str, tuple[float, ...]]


def losses_table(series: tuple[Series, ...]) -> Table:
    """One row per step, one column per run."""
    steps = max(len(values) for _, values in series)
    columns = [Column("step", "step", "count")]
    columns += [Column(clean(name), clean(name), "number") for name, _ in series]
    rows = tuple(
        (step, *(values[step] if step < len(values) else None for _, values in series))
        for step in range(steps)
    )
    return Table(
        id="losses-data", caption="Mean loss of each step", columns=tuple(columns), rows=rows
    )


def losses_figure(series: tuple[Series, ...]) -> go.Figure:
    """Lines; the second run dashed."""
    result = figure(height=320, x_title="step", y_title="loss", showlegend=len(series) > 1)
    for (name, values), color, dash in zip(
        series, (BLUE, ORANGE), ("solid", "dash"), strict=False
    ):
        result.add_scatter(
            x=list(range(len(values))),
            y=list(values),
            mode="lines+markers" if len(values) <= 60 else "lines",
            name=plot_text(name),
            line={"color": color, "width": 2, "dash": dash},
            hovertemplate="step %{x}: %{y:.5g}<extra></extra>",
        )
    return result
