"""``autopar bench --convergence``: steps to the same loss of each sync mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopar.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from autopar.cli.session import Session
    from autopar.results import ConvergenceResult, ConvergenceRow


def measure(talk: Session, target: str, **options: Any) -> None:
    """Probe a task and print what was found.

    Args:
        talk: The command's conversation.
        target: Task to train.
        options: Of :func:`autopar.api.convergence.measure_convergence`.
    """
    from autopar.api.convergence import measure_convergence

    result, path = measure_convergence(target, progress=talk.progress, **options)
    for text in result.warnings:
        talk.warn(text)
    body = result.to_dict()
    data = {**body, "convergence": body.pop("rows"), "rows": [], "bench": str(path)}
    talk.finish(data, lambda console: _show(console, result, path))


def _show(console: Console, result: ConvergenceResult, path: Path) -> None:
    from rich.table import Table

    console.print(
        f"[bold]{result.task}[/bold]  to loss {result.target_loss:.4g}, "
        f"{result.convergence.words.split(', to')[0]}"
    )
    table = Table("sync", "steps", "multiplier", "range", "time to loss", "sent a step", box=None)
    for row in result.rows:
        table.add_row(row.name, *_cells(row))
    console.print(table)
    for row in result.rows:
        if row.reason is not None:
            console.print(f"  {row.name}: {row.status}: {row.reason}", markup=False)
    console.print(f"stored {path}", markup=False)


def _cells(row: ConvergenceRow) -> list[str]:
    if row.multiplier is None or row.time_to_loss_s is None:
        return [row.status]
    known = [found for found in row.steps if found is not None]
    return [
        f"{min(known):.0f} .. {max(known):.0f}",
        f"{row.multiplier.value:.2f}",
        f"{row.multiplier.low:.2f} .. {row.multiplier.high:.2f}",
        format_seconds(row.time_to_loss_s.value),
        format_bytes(row.bytes_per_step or 0.0),
    ]
