"""Options of ``autopar run``, but for those of parameter servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanFile = Annotated[Path, typer.Argument(help="A plan or search result file.")]
Pick = Annotated[int, typer.Option("--pick", help="Plan number in a search result.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Measured steps.")]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="Steps before measuring.")]
Verify = Annotated[bool, typer.Option("--verify", help="First compare one step with one process.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, start nothing.")]
Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", help="Exit 5 when the prediction is off by more, e.g. 0.15."),
]
DataSplit = Annotated[
    str | None,
    typer.Option(
        "--data-split", help="random, contiguous, shard or balanced; the plan's by default."
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="shuffle, weighted or bucketed, of a dataset; the task's by default.",
    ),
]
ClipNorm = Annotated[float | None, typer.Option("--clip-norm", help="Gradient norm limit.")]
CheckpointEvery = Annotated[
    int | None,
    typer.Option("--checkpoint-every", min=1, help="Write a checkpoint every so many steps."),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Checkpoint folder of an earlier run to go on from."),
]
RunFolder = Annotated[Path | None, typer.Option("--out", help="Run folder.")]
