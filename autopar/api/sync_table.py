"""Sync modes on a real task as a table: steps, time and bytes to the same loss."""

from __future__ import annotations

from autopar.api.profiling import load_task
from autopar.core.units import format_bytes, format_seconds
from autopar.results.convergence import ConvergenceResult, ConvergenceRow
from autopar.sync import SyncGroup, parse_sync
from autopar.tasks import Task

COLUMNS = ("sync", "steps", "multiplier", "time to loss", "sent per step", "declared", "off by")


def gradient_bytes(task: Task | str) -> float:
    """Bytes of all gradients of a task's model; nothing of the model is allocated."""
    import torch

    job = load_task(task)
    with torch.device("meta"):
        model = job.model()
    return float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))


def sync_table(result: ConvergenceResult, size_bytes: float, nodes: int = 1) -> list[str]:
    """Lines of a Markdown table.

    Args:
        result: Measured.
        size_bytes: Gradient bytes of a rank.
        nodes: Nodes that the ranks counted as.
    """
    group = SyncGroup(ranks=result.ranks, nodes=nodes)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result.rows:
        lines.append("| " + " | ".join(_cells(row, size_bytes, group)) + " |")
    return lines


def _cells(row: ConvergenceRow, size_bytes: float, group: SyncGroup) -> list[str]:
    name = f"`{row.name}`"
    if row.multiplier is None or row.time_to_loss_s is None:
        return [name, row.status, *[""] * (len(COLUMNS) - 2)]
    known = [steps for steps in row.steps if steps is not None]
    declared = parse_sync(row.name).work(size_bytes, group).sent_bytes
    sent = row.bytes_per_step or 0.0
    return [
        name,
        f"{min(known):.0f} to {max(known):.0f}",
        f"{row.multiplier.value:.2f}",
        format_seconds(row.time_to_loss_s.value),
        format_bytes(sent),
        format_bytes(declared),
        f"{sent / declared - 1:+.1%}",
    ]
