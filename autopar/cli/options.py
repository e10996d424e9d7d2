"""Options several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write.")]
NNodes = Annotated[
    int, typer.Option("--nnodes", min=1, help="Hosts.", rich_help_panel="Several hosts")
]
NodeRank = Annotated[
    int,
    typer.Option(
        "--node-rank", min=0, help="This host's number.", rich_help_panel="Several hosts"
    ),
]
Rendezvous = Annotated[
    str | None,
    typer.Option("--rdzv-endpoint", help="HOST:PORT of host 0.", rich_help_panel="Several hosts"),
]
GlobalBatch = Annotated[
    int | None, typer.Option("--global-batch", help="Samples per optimizer step, all replicas.")
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster", help="local[:RANKS], NODESxDEVICES:MACHINE, several joined by +, or a file."
    ),
]
Fix = Annotated[
    list[str] | None, typer.Option("--fix", help="Demand axis=value, e.g. pp=2; repeatable.")
]
