"""Options of ``autopar bench --convergence``."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Steps to a loss"

Convergence = Annotated[
    bool,
    typer.Option(
        "--convergence",
        help="Measure steps to the same loss of each sync mode instead of plans.",
        rich_help_panel=PANEL,
    ),
]
Sync = Annotated[
    str | None,
    typer.Option(
        "--sync", help="Modes, joined by commas; every one by default.", rich_help_panel=PANEL
    ),
]
TargetLoss = Annotated[
    float | None,
    typer.Option(
        "--target-loss", help="Smoothed loss to reach; the task's own.", rich_help_panel=PANEL
    ),
]
Ranks = Annotated[
    int | None, typer.Option("--ranks", help="Replicas, 2 by default.", rich_help_panel=PANEL)
]
ProbeSteps = Annotated[
    int, typer.Option("--probe-steps", help="Steps of exact training.", rich_help_panel=PANEL)
]
Seeds = Annotated[int, typer.Option("--seeds", help="Runs of each mode.", rich_help_panel=PANEL)]
Slack = Annotated[
    float,
    typer.Option(
        "--slack",
        help="Times the steps of exact training that a mode may take.",
        rich_help_panel=PANEL,
    ),
]
