"""Achieved FLOP/s of every measured block against its FLOPs per byte."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from autopar.reporting.figures.blocks import BlockRow, block_label
from autopar.reporting.figures.style import figure
from autopar.reporting.palette import BLUE, stage_color


def log_axis(values: list[float]) -> dict[str, Any]:
    """A logarithmic axis around the values, at least a decade wide, with ticks at 1, 2 and 5."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.15 * (high - low), (1 - (high - low)) / 2, 0.1)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    powers = range(math.floor(low - margin), math.ceil(high + margin) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {
        "type": "log",
        "range": [low - margin, high + margin],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def roofline_figure(
    rows: tuple[BlockRow, ...], peak_flop_per_s: float | None, bytes_per_s: float | None
) -> go.Figure:
    """Achieved FLOP/s against FLOPs per byte; the roof when the device's peaks are known."""
    timed = [row for row in rows if row.rate and row.intensity]
    total = sum(row.seconds or 0.0 for row in timed)
    result = figure(
        height=400, x_title="FLOPs per byte moved", y_title="achieved GFLOP/s", showlegend=False
    )
    rates = [(row.rate or 0.0) / 1e9 for row in timed]
    result.add_scatter(
        x=[row.intensity for row in timed],
        y=rates,
        mode="markers",
        text=[block_label(row) for row in timed],
        customdata=[f"{(row.seconds or 0) / total:.0%}" for row in timed],
        marker={
            "size": [10 + 40 * ((row.seconds or 0.0) / total) ** 0.5 for row in timed],
            "color": [stage_color(row.stage) if row.stage >= 0 else BLUE for row in timed],
            "opacity": 0.75,
            "line": {"width": 1, "color": "#333"},
        },
        hovertemplate="%{text}<br>%{x:.3g} FLOP/byte, %{y:.4g} GFLOP/s<br>"
        "%{customdata} of the time<extra></extra>",
    )
    intensities = [row.intensity or 1.0 for row in timed]
    if peak_flop_per_s and bytes_per_s:
        low, high = min(intensities) / 2, max(*intensities, peak_flop_per_s / bytes_per_s) * 2
        ridge = peak_flop_per_s / bytes_per_s
        points = sorted({low, ridge, high})
        roof = [min(peak_flop_per_s, x * bytes_per_s) / 1e9 for x in points]
        intensities, rates = [*intensities, *points], [*rates, *roof]
        result.add_scatter(
            x=points,
            y=roof,
            mode="lines",
            line={"width": 2, "color": "#888"},
            hovertemplate="roof: %{y:.4g} GFLOP/s<extra></extra>",
        )
    result.update_xaxes(**log_axis(intensities))
    result.update_yaxes(**log_axis(rates))
    return result
