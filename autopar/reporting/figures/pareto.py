"""Step time against peak memory of ranked plans and baselines."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from autopar.reporting.figures.style import figure
from autopar.reporting.palette import BLUE, ORANGE, VERMILLION
from autopar.reporting.table import Column, Table, Value
from autopar.reporting.text import axis_bytes, axis_seconds, plot_text
from autopar.results import PlanPrice


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A priced plan.

    Attributes:
        role: ``chosen``, ``runner-up`` or ``baseline``.
        label: Plan name, with the baseline's name in front.
        price: Its prediction.
    """

    role: str
    label: str
    price: PlanPrice


_MARKS = {
    "baseline": (ORANGE, "square", 10),
    "runner-up": (BLUE, "circle", 9),
    "chosen": (VERMILLION, "star", 16),
}
"""Colour, symbol and size by role, in drawing order: the chosen plan lies on top."""


def candidates_table(
    candidates: tuple[Candidate, ...], rejected: tuple[tuple[str, str], ...]
) -> Table:
    """One row per priced plan and rejected baseline."""
    rows: list[tuple[Value, ...]] = [
        (
            c.label,
            c.role,
            c.price.step_time_s.value,
            c.price.step_time_s.low,
            c.price.step_time_s.high,
            c.price.peak_memory_bytes.value,
            c.price.samples_per_s,
            c.price.mfu,
            c.price.breakdown.bubble_s / c.price.step_time_s.value,
            _exposed(c.price),
            None,
        )
        for c in candidates
    ]
    blank = (None,) * 8
    rows += [(label, "baseline, not possible", *blank, why) for label, why in rejected]
    return Table(
        id="candidates-data",
        caption="Ranked plans and baselines, all predicted by the same model",
        columns=(
            Column("plan", "plan"),
            Column("role", "role"),
            Column("step_time_s", "step time", "seconds"),
            Column("step_time_low_s", "low", "seconds"),
            Column("step_time_high_s", "high", "seconds"),
            Column("peak_memory_bytes", "peak memory", "bytes"),
            Column("samples_per_s", "samples/s", "number"),
            Column("mfu", "MFU", "ratio"),
            Column("bubble", "idle", "ratio"),
            Column("exposed_communication", "exposed communication", "ratio"),
            Column("rejected", "why not"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 12,
    )


def _exposed(price: PlanPrice) -> float:
    parts = price.breakdown
    return (parts.gradient_sync_s + parts.pipeline_communication_s) / price.step_time_s.value


def on_front(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Plans that no other beats in both time and memory, by time."""
    front: list[Candidate] = []
    ordered = sorted(
        candidates, key=lambda c: (c.price.step_time_s.value, c.price.peak_memory_bytes.value)
    )
    for candidate in ordered:
        memory = candidate.price.peak_memory_bytes.value
        if not front or memory < front[-1].price.peak_memory_bytes.value:
            front.append(candidate)
    return tuple(front)


def pareto_figure(candidates: tuple[Candidate, ...], capacity_bytes: float | None) -> go.Figure:
    """Scatter with ranges; the Pareto front as a stepped line."""
    t_factor, t_unit = axis_seconds(max(c.price.step_time_s.value for c in candidates))
    m_max = max(c.price.peak_memory_bytes.value for c in candidates)
    m_factor, m_unit = axis_bytes(m_max)
    result = figure(
        height=400, x_title=f"step time ({t_unit})", y_title=f"peak memory per rank ({m_unit})"
    )
    front = on_front(candidates)
    result.add_scatter(
        x=[c.price.step_time_s.value * t_factor for c in front],
        y=[c.price.peak_memory_bytes.value * m_factor for c in front],
        mode="lines", name="Pareto front",
        line={"shape": "hv", "width": 1.5, "dash": "dot", "color": "#888"},
        hoverinfo="skip",
    )  # fmt: skip
    for role, (color, symbol, size) in _MARKS.items():
        group = [c for c in candidates if c.role == role]
        if group:
            result.add_trace(_points(group, role, color, symbol, size, t_factor, m_factor))
    if capacity_bytes and capacity_bytes < 2 * m_max:
        result.add_hline(
            y=capacity_bytes * m_factor, line={"width": 2, "dash": "dash", "color": VERMILLION},
            annotation={"text": "capacity", "font": {"size": 12}, "xanchor": "right"},
        )  # fmt: skip
    result.update_yaxes(rangemode="tozero")
    return result


def _points(
    group: list[Candidate],
    role: str,
    color: str,
    symbol: str,
    size: int,
    t_factor: float,
    m_factor: float,
) -> go.Scatter:
    times = [c.price.step_time_s for c in group]
    return go.Scatter(
        x=[t.value * t_factor for t in times],
        y=[c.price.peak_memory_bytes.value * m_factor for c in group],
        mode="markers",
        name=role,
        text=[plot_text(c.label) for c in group],
        marker={"color": color, "symbol": symbol, "size": size},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(t.high - t.value) * t_factor for t in times],
            "arrayminus": [(t.value - t.low) * t_factor for t in times],
            "thickness": 1,
            "width": 0,
            "color": color,
        },
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.3g}<extra></extra>",
    )
