"""Options of ``autopar plan``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

MACHINES = "Which machines"


class SpaceName(StrEnum):
    """Which plans compete."""

    AUTO = "auto"
    FULL = "full"
    RUNNABLE = "runnable"


Clusters = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster",
        help="local[:RANKS], NODESxDEVICES:MACHINE, several joined by +, or a file; "
        "repeat it to choose among clusters.",
        show_default="local",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        help="Samples to train on; --deadline and --budget need it.",
        rich_help_panel=MACHINES,
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        help="Longest time for --samples, e.g. 24h, 90min, 3d.",
        rich_help_panel=MACHINES,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option("--budget", help="Most money for --samples, in USD.", rich_help_panel=MACHINES),
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        help="time, time-to-target, memory, energy or cost; a list like time,memory for the "
        "plans that no other beats in all of them.",
    ),
]
Sync = Annotated[
    str,
    typer.Option(
        "--sync",
        help="Sync modes that compete: exact, any (with time-to-target), or names joined by "
        "commas: all_reduce, ps_sync, ps_stale, ps_async, local_sgd, post_local_sgd, "
        "hierarchical, diloco; options as local_sgd:8, compression as all_reduce+int8. "
        "See autopar catalog sync.",
    ),
]
Forbid = Annotated[
    list[str] | None, typer.Option("--forbid", help="Rule out axis=value; repeatable.")
]
MaxMemory = Annotated[
    str | None, typer.Option("--max-memory", help="Memory limit per device, e.g. 20GiB.")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Compute dtype: float32, tf32, bfloat16, float16, float8 or auto."
    ),
]
Space = Annotated[
    SpaceName,
    typer.Option(
        "--space", help="full, what autopar run executes, or auto: runnable where measured."
    ),
]
Top = Annotated[int, typer.Option("--top", min=1, help="Plans to rank.")]
Tune = Annotated[bool, typer.Option("--tune", help="Tune the best plan's gradient bucket size.")]
Explain = Annotated[bool, typer.Option("--explain", help="Say why, with numbers.")]
WhyNot = Annotated[
    str | None,
    typer.Option("--why-not", help="Why not this plan, e.g. 'pp=2,schedule=gpipe'."),
]
WhatIf = Annotated[
    str | None,
    typer.Option("--what-if", help="What changes, e.g. inter_node_bandwidth=x0.25."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights and data in the plan.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Keep the search: sqlite:///FILE, journal:FILE or another Optuna URL; several "
        "processes that name the same share the work.",
    ),
]
