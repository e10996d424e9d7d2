"""One command's conversation: progress on stderr, one result on stdout, one exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console

from autopar.core.errors import AutoparError
from autopar.core.version import __version__

ENVELOPE_VERSION = 1
_SHOWN_NOTES = 3


@dataclass
class Session:
    """Where a command writes.

    Attributes:
        command: Verb, for the envelope.
        json_output: True when stdout takes exactly one JSON document.
        warnings: Collected notices; they reach the envelope or stderr.
    """

    command: str
    json_output: bool
    warnings: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Console:
        """Console on stdout, for results."""
        width = None if sys.stdout.isatty() else 160
        return Console(highlight=False, soft_wrap=width is not None, width=width)

    @property
    def err(self) -> Console:
        """Console on stderr, for progress and notices."""
        return Console(stderr=True, highlight=False)

    def warn(self, text: str) -> None:
        """Note something the user should know; repeated texts count once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a long step is, on a terminal only."""
        if sys.stderr.isatty() and not self.json_output:
            end = "\n" if done >= total else "\r"
            self.err.print(f"[dim]{stage} {done}/{total}[/dim]\033[K", end=end)

    def finish(self, data: dict[str, Any], human: Callable[[Console], None]) -> None:
        """Print the result: the JSON envelope, or ``human(console)``."""
        self.data = data
        if self.json_output:
            print_envelope(self.command, "ok", data=data, warnings=self.warnings)
            return
        human(self.out)
        for text in self.warnings[:_SHOWN_NOTES]:
            self.err.print("[yellow]note:[/yellow] ", end="")
            self.err.print(text, markup=False, soft_wrap=True)
        hidden = len(self.warnings) - _SHOWN_NOTES
        if hidden > 0:
            self.err.print(f"[yellow]note:[/yellow] {hidden} more in --json and in the report")


def print_envelope(
    command: str,
    status: str,
    *,
    data: dict[str, Any] | None = None,
    warnings: list[str] | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Write the one JSON document of the outward contract to stdout."""
    document = {
        "schema": f"autopar.envelope.{command}",
        "schema_version": ENVELOPE_VERSION,
        "autopar_version": __version__,
        "command": command,
        "status": status,
        "warnings": warnings or [],
        "data": data or {},
        "error": error,
    }
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    sys.stdout.flush()


def report_error(command: str, error: AutoparError, *, json_output: bool, **more: Any) -> None:
    """Say what went wrong, once, in the form the user asked for."""
    if json_output:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        print_envelope(command, error.status, error=body, **more)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/bold red] ", end="")
    console.print(error.message, markup=False)
    if error.hint:
        console.print("[bold]hint:[/bold]  ", end="")
        console.print(error.hint, markup=False)


@contextmanager
def session(command: str, *, json_output: bool) -> Iterator[Session]:
    """Run a command body; expected errors become one message and their exit code."""
    current = Session(command, json_output)
    try:
        yield current
    except AutoparError as error:
        extra = {"data": current.data, "warnings": current.warnings}
        report_error(command, error, json_output=json_output, **(extra if json_output else {}))
        raise typer.Exit(error.exit_code) from error
