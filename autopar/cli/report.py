"""``autopar report``: the page of a result, or a comparison of two."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autopar.cli.options import Json, Out
from autopar.cli.session import session


class Format(StrEnum):
    """Output formats."""

    HTML = "html"
    MD = "md"
    JSON = "json"
    CSV = "csv"


def command(
    path: Annotated[Path, typer.Argument(help="Profile, search, plan, run folder or bench file.")],
    other: Annotated[
        Path | None, typer.Argument(help="Second file: compare.", metavar="[PATH2]")
    ] = None,
    out: Out = None,
    format: Annotated[Format, typer.Option(help="Form of the report.")] = Format.HTML,
    fail_if: Annotated[
        str | None,
        typer.Option(
            help="Exit 5 when this holds: 'step_time>+5%' (against PATH2), "
            "'step_time_rel>0.15', 'peak_memory>2GiB'."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Write a self-contained HTML page (or md, json, csv) of a result, or compare two.

    Examples: `autopar report reports/run-gpt`, `autopar report new old --fail-if 'step_time>+5%'`.
    """
    with session("report", json_output=json_output) as talk:
        from autopar.api.reporting import report

        written = report(path, other, out=out, format=str(format), fail_if=fail_if)
        talk.finish(
            {"report": str(written)}, lambda console: console.print(str(written), markup=False)
        )
