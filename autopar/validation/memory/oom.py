"""Whether a run fits: predicted peak against what a device leaves, and which failures can tell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autopar.calibration import peak
from autopar.calibration.memory import MemoryConstants
from autopar.validation.memory.facts import HABITS, USUAL, facts, unstated_recompute
from autopar.validation.memory.peak import predict
from autopar.validation.rows.rows import Row

NOT_MEMORY = "failed, but the same plan ran with no less to hold on no larger devices: not memory"
CONTRADICTED = "its source has the same plan with no less to hold peak more than a tenth lower"
CONTRADICTION = 0.9
"""Repeats of a plan differ by less than this ratio (the widest of the BLOOM pages: 0.92)."""
PLAN = ("model", "devices", "dp", "tp", "pp", "cp", "ep", "zero")
"""What makes two runs the same plan but for microbatch and devices."""


def usable_bytes(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Memory of a device that a process can allocate, the smallest in a mixed cluster."""
    return peak.usable_bytes(facts(rows).capacity_bytes) if rows else np.zeros(0)


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
    contradicted = _contradicted(rows)
    for row in rows:
        if row.measured_memory_bytes is None and not row.out_of_memory:
            continue
        if any(note.startswith("microbatch ") for note in row.assumed):
            reasons[row.id] = "microbatch not stated"
        elif row.printed.get("notes", "").startswith("[C"):
            reasons[row.id] = "noisy or not self-consistent by its source"
        elif row.id in contradicted:
            reasons[row.id] = CONTRADICTED
        elif row.out_of_memory and any(
            _needs_more(other, row) for other in ran.get(_plan(row), ())
        ):
            reasons[row.id] = NOT_MEMORY
    return reasons


def _contradicted(rows: Sequence[Row]) -> set[str]:
    """Runs of which one must be wrong; nothing says which, so both count as such."""
    alike: dict[tuple[object, ...], list[tuple[Row, float]]] = {}
    for row in rows:
        if row.measured_memory_bytes is not None:
            key = (*_plan(row), row.family, row.shape, row.seq, row.recompute, row.vpp)
            precision = row.printed.get("precision", "")
            alike.setdefault((*key, precision), []).append((row, row.measured_memory_bytes))
    found: set[str] = set()
    for group in alike.values():
        for (more, low), (less, high) in itertools.permutations(group, 2):
            if low < CONTRADICTION * high and _needs_more(more, less):
                found |= {more.id, less.id}
    return found


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
