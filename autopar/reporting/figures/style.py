"""What all figures share: layout, fonts, patterns. Colours of the page itself come from CSS."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from autopar.reporting.palette import Ink

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
PATTERN_SIZE = 6


def figure(*, height: int, x_title: str, y_title: str = "", **layout: Any) -> go.Figure:
    """An empty figure with the house layout: legend on top, automatic margins, no template."""
    base: dict[str, Any] = {
        "template": go.layout.Template(),
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8, "pad": 2},
        "font": {"family": FONT, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
        "hovermode": "closest",
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 12},
            "itemclick": "toggle",
            "traceorder": "normal",
        },
        "xaxis": axis(x_title),
        "yaxis": axis(y_title),
        "bargap": 0.35,
    }
    return go.Figure(layout={**base, **layout})


def axis(title: str, **options: Any) -> dict[str, Any]:
    """A calm axis: thin grid, no zero line, room for its labels."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12}},
        "automargin": True,
        "zeroline": False,
        "gridwidth": 1,
        "ticks": "",
        "tickfont": {"size": 12},
        "exponentformat": "SI",
        **options,
    }


def marker(ink: Ink) -> dict[str, Any]:
    """Fill of a bar: colour, and a pattern drawn in a darker or lighter tone of the page."""
    fill: dict[str, Any] = {"color": ink.color, "line": {"width": 0}}
    if ink.pattern:
        fill["pattern"] = {
            "shape": ink.pattern,
            "size": PATTERN_SIZE,
            "solidity": 0.18,
            "fillmode": "overlay",
            "fgcolor": "rgba(0,0,0,0.45)",
        }
    return fill


def bars_height(rows: int, *, row: int = 34, around: int = 110) -> int:
    """Height in pixels of a horizontal bar chart."""
    return around + row * max(rows, 1)
