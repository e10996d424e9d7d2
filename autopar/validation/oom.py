"""Whether a run fits: predicted peak against what a device leaves, and which failures can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import MemoryConstants
from autopar.validation.memory import predict
from autopar.validation.memory_facts import HABITS, USUAL, facts, unstated_recompute
from autopar.validation.rows import Row

RESERVED_SHARE = 0.012
"""Part of a device's memory that the driver keeps: an A100 of 80 GiB reports 79.1."""
NOT_MEMORY = "failed, but the same plan ran with no less to hold on no larger devices: not memory"
PLAN = ("model", "devices", "dp", "tp", "pp", "cp", "ep", "zero")
"""What makes two runs the same plan but for microbatch and devices."""


def usable_bytes(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Memory of a device that a process can allocate, the smallest in a mixed cluster."""
    return facts(rows).capacity_bytes * (1 - RESERVED_SHARE) if rows else np.zeros(0)


def oom_verdict(
    rows: Sequence[Row], constants: MemoryConstants | None = None, *, upper: bool = True
) -> npt.NDArray[np.bool_]:
    """Whether each run fits on its devices.

    A run that may have recomputed, as its source does not say, fits if it does so with recompute.

    Args:
        rows: Complete rows.
        constants: Constants; the shipped ones when ``None``.
        upper: Judge by the upper end of the range, as a planner that must not fail does; else by
            the central value.
    """
    c = constants or MemoryConstants.shipped()
    if not rows:
        return np.zeros(0, bool)
    frugal = [_with_recompute(row) for row in rows]
    needed = predict(c, frugal, whole_device=True) * (c.high_factor if upper else 1.0)
    return np.asarray(needed <= usable_bytes(rows))


def _with_recompute(row: Row) -> Row:
    """The row with full recompute where neither its source nor its framework says."""
    habits = HABITS.get(row.framework, USUAL)
    if unstated_recompute(row) and not habits.recompute:
        return replace(row, recompute="full")
    return row


def unjudged(rows: Sequence[Row]) -> dict[str, str]:
    """Rows whose peak or failure says nothing about a memory model, with the reason.

    Args:
        rows: Complete rows; a failed run is compared with the others.
    """
    reasons: dict[str, str] = {}
    ran: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.measured_s is not None and not row.out_of_memory:
            ran.setdefault(_plan(row), []).append(row)
    for row in rows:
        if row.measured_memory_bytes is None and not row.out_of_memory:
            continue
        if any(note.startswith("microbatch ") for note in row.assumed):
            reasons[row.id] = "microbatch not stated"
        elif row.printed.get("notes", "").startswith("[C"):
            reasons[row.id] = "noisy or not self-consistent by its source"
        elif row.out_of_memory and any(
            _needs_more(other, row) for other in ran.get(_plan(row), ())
        ):
            reasons[row.id] = NOT_MEMORY
    return reasons


def _plan(row: Row) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in PLAN)


def _needs_more(other: Row, row: Row) -> bool:
    """Whether a run of the same plan had no more memory and nothing less to hold."""
    same = other.printed.get("gpu") == row.printed.get("gpu")
    mixed = "+" in other.platform.device
    room, have = facts([other, row]).capacity_bytes
    stages = zip(other.stage_layers, row.stage_layers, strict=True)
    return (
        (same or (not mixed and room <= have))
        and other.micro_batch >= row.micro_batch
        and all(a >= b for a, b in stages)
    )
