"""``autopar export``: a plan in the words of another tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli.options import Json, Out
from autopar.cli.session import Session, session

if TYPE_CHECKING:
    from rich.console import Console

    from autopar.exporters.base import Exported


def command(
    plan: Annotated[Path, typer.Argument(help="A plan or search result file.")],
    to: Annotated[
        str,
        typer.Option(
            help="torchrun, slurm, torchtitan, megatron, deepspeed, accelerate, perfetto or csv; "
            "see autopar catalog exports."
        ),
    ],
    pick: Annotated[
        int, typer.Option(help="Plan number in a search result; csv writes all of them.")
    ] = 0,
    nnodes: Annotated[
        int | None,
        typer.Option(min=1, help="Hosts; those of the plan's catalogue cluster by default."),
    ] = None,
    out: Out = None,
    json_output: Json = False,
) -> None:
    """Write a plan for another tool; what that tool cannot say is listed, never dropped.

    Examples: `autopar export plan.json --to slurm --out job.sh`,
    `autopar export plan.json --to torchtitan`, `autopar export search.json --to csv`.
    """
    with session("export", json_output=json_output) as talk:
        from autopar.api.exporting import export

        exported = export(plan, to, out=out, pick=pick, nnodes=nnodes)
        written = {"text": exported.text} if out is None else {"path": str(out)}

        def show(_: Console) -> None:
            sys.stdout.write(exported.text if out is None else f"{out}\n")
            _show_losses(talk, exported)

        talk.finish({**written, **exported.to_dict()}, show)


def _show_losses(talk: Session, exported: Exported) -> None:
    """Everything that the text does not say, on stderr, so that a pipe gets the text alone."""
    if exported.lossy:
        talk.err.print(f"[yellow]not in {exported.target}, or not exactly:[/yellow]")
    for loss in exported.lossy:
        talk.err.print(f"  {loss.key}: {loss.reason}", markup=False, soft_wrap=True)
