"""Measured time per sample of unique blocks against the microbatch size."""

from __future__ import annotations

from collections import defaultdict

import plotly.graph_objects as go

from autopar.graph import GraphProfile
from autopar.reporting.figures.style import figure
from autopar.reporting.palette import stage_color
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, clean, middle, plot_text


def curves_table(profile: GraphProfile) -> Table:
    """One row per measured point of each unique block."""
    rows = []
    for signature, (name, count) in _unique(profile).items():
        curve = profile.measurement.curves.get(signature) if profile.measurement else None
        rows += [
            (name, count, samples, forward, backward, (forward + backward) / samples)
            for samples, forward, backward in (curve.points if curve else ())
        ]
    return Table(
        id="curves-data",
        caption="Measured time of each unique block by microbatch size",
        columns=(
            Column("block", "block"),
            Column("repeats", "repeats", "count"),
            Column("samples", "microbatch", "count"),
            Column("forward_s", "forward", "seconds"),
            Column("backward_s", "backward", "seconds"),
            Column("per_sample_s", "both, per sample", "seconds"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 20,
    )


def _unique(profile: GraphProfile) -> dict[str, tuple[str, int]]:
    unique: dict[str, tuple[str, int]] = {}
    for block in profile.blocks:
        name, count = unique.get(block.signature, (clean(block.name), 0))
        unique[block.signature] = (name, count + 1)
    return unique


def curves_figure(table: Table, lines: int = 7) -> go.Figure:
    """Time per sample against the microbatch size, for the most expensive unique blocks."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    weight: dict[str, float] = defaultdict(float)
    for name, repeats, samples, _, _, per_sample in table.rows:
        series[str(name)].append((float(samples or 0), float(per_sample or 0)))
        weight[str(name)] += float(per_sample or 0) * float(repeats or 0)
    names = sorted(series, key=lambda n: -weight[n])[:lines]
    factor, unit = axis_seconds(max(y for name in names for _, y in series[name]))
    symbols = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
    result = figure(
        height=380, x_title="microbatch size (samples)", y_title=f"time per sample ({unit})"
    )
    for index, name in enumerate(names):
        result.add_scatter(
            x=[x for x, _ in series[name]],
            y=[y * factor for _, y in series[name]],
            mode="lines+markers",
            name=plot_text(middle(name, 30)),
            line={"color": stage_color(index), "width": 2},
            marker={"symbol": symbols[index % len(symbols)], "size": 8},
            hovertemplate=f"microbatch %{{x}}: %{{y:.4g}} {unit} per sample<extra></extra>",
        )
    result.update_xaxes(type="log", tickvals=sorted({x for n in names for x, _ in series[n]}))
    result.update_yaxes(rangemode="tozero")
    return result
