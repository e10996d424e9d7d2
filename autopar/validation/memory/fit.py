"""Fit the memory constants to measured peaks and to what ran or failed.

Maximum a posteriori: log-normal priors on every constant, a robust loss on the logarithm of
predicted over measured peaks (too low counts more), and one-sided residuals for runs of which only
the outcome is known: what ran must fit, what failed for memory must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import MEMORY_SPECS, MemoryConstants
from autopar.validation.memory.facts import Facts, facts, unstated_recompute
from autopar.validation.memory.oom import unjudged, usable_bytes
from autopar.validation.memory.peak import parts_of
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.columns import Columns, columns

Array = npt.NDArray[np.float64]

SCALE = 0.05
"""Residual that counts as usual: the figures are rounded to about 1 GB of 30."""
FREEDOM = 4.0
"""Degrees of freedom of the Student-t loss."""
UNDER_WEIGHT = 6.0
"""Weight of a peak that is predicted too low, over one too high: a run that fails for memory costs
more than an idle gigabyte. Held out, 2 leaves 4 % of the peaks more than a tenth too low, 4 and 8
none that its source does not contradict, at a median error of 2.9, 3.5 and 4.3 %."""
OUTCOME_WEIGHT = 0.5
"""Weight of a run of which only the outcome is known."""
FAMILY_ROWS = 40.0
"""A family counts as at most about this many rows, so that none drowns the others."""
MARGIN_WIDTH = 0.04
"""Standard deviation of the logarithm of a framework's margin over the common one."""
STEPS = 25
DAMPING = 1e-3
DIFFERENCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Rows of a fit, as arrays."""

    x: Columns
    f: Facts
    whole_x: npt.NDArray[np.bool_]
    measured: Array
    usable: Array
    failed: npt.NDArray[np.bool_]
    weight: Array
    framework: npt.NDArray[np.intp]
    names: tuple[str, ...]


def fit_memory(rows: Sequence[Row]) -> MemoryConstants:
    """Constants that fit the rows; defaults where no row says anything.

    Args:
        rows: Complete rows; those without a peak and without a judged outcome are ignored.
    """
    chosen = usable_rows(rows)
    if not chosen:
        return MemoryConstants.defaults()
    data = _data(chosen)
    theta = np.zeros(len(MEMORY_SPECS) + len(data.names))
    widths = np.array([spec.width for spec in MEMORY_SPECS] + [MARGIN_WIDTH] * len(data.names))
    cost = _cost(theta, data, widths)
    damping = DAMPING
    for _ in range(STEPS):
        residual = _residuals(theta, data)
        jacobian = _jacobian(theta, data, residual)
        weight = data.weight * _asymmetry(residual, data) / _spread(residual)
        normal = (jacobian * weight[:, None]).T @ jacobian + np.diag(widths**-2)
        slope = jacobian.T @ (weight * residual) + theta / widths**2
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope)
        new = _cost(theta + step, data, widths)
        if new < cost:
            done = cost - new < 1e-6 * cost
            theta, cost, damping = theta + step, new, damping / 3
            if done:
                break
        else:
            damping *= 10
    return _constants(theta, data.names)


def usable_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows a fit can use: judged peaks, failures, and runs whose plan is stated in full.

    In families that print failures, runs with something unstated count too: both share it.
    """
    skip = unjudged(rows)
    families = {row.family for row in rows if row.out_of_memory and row.id not in skip}
    return [
        row
        for row in rows
        if row.id not in skip
        and (
            row.measured_memory_bytes is not None
            or row.out_of_memory
            or (row.measured_s is not None and (row.family in families or stated(row)))
        )
    ]


def stated(row: Row) -> bool:
    """Whether a row says all that its memory depends on, and its source trusts it."""
    zero = bool(row.printed.get("zero_or_fsdp")) or row.dp == 1
    guessed = row.printed.get("notes", "").startswith("[C") or "assumed" in row.shape.source
    return zero and not guessed and not unstated_recompute(row)


def _data(rows: Sequence[Row]) -> _Data:
    names = tuple(sorted({row.framework for row in rows}))
    peaks = np.array([row.measured_memory_bytes or np.nan for row in rows])
    counts = {f: sum(row.family == f for row in rows) for f in {row.family for row in rows}}
    share = [min(1.0, (FAMILY_ROWS / counts[row.family]) ** 0.5) * row.weight for row in rows]
    known = ~np.isnan(peaks)
    return _Data(
        x=columns(rows),
        f=facts(rows),
        whole_x=~known,
        measured=peaks,
        usable=usable_bytes(rows),
        failed=np.array([row.out_of_memory for row in rows]),
        weight=np.array(share) * np.where(known, 1.0, OUTCOME_WEIGHT),
        framework=np.array([names.index(row.framework) for row in rows]),
        names=names,
    )


def _constants(theta: Array, names: Sequence[str]) -> MemoryConstants:
    count = len(MEMORY_SPECS)
    values = {
        spec.name: spec.default * float(np.exp(t))
        for spec, t in zip(MEMORY_SPECS, theta[:count], strict=True)
    }
    margins = {name: float(np.exp(t)) for name, t in zip(names, theta[count:], strict=True)}
    return MemoryConstants.of(values, margins)


def _residuals(theta: Array, data: _Data) -> Array:
    """Log of predicted over measured, or of how far an outcome is on the wrong side."""
    c = _constants(theta, data.names)
    offsets = np.exp(theta[len(MEMORY_SPECS) :])
    margin = c.allocator_margin * offsets[data.framework]
    peak = np.log(parts_of(c, data.x, data.f, margin).total / data.measured)
    whole = parts_of(c, data.x, data.f, margin, whole_device=True).total
    excess = np.log(whole / data.usable)
    outcome = np.where(data.failed, np.minimum(0, excess), np.maximum(0, excess))
    return np.asarray(np.where(data.whole_x, outcome, peak))


def _asymmetry(residual: Array, data: _Data) -> Array:
    return np.where(~data.whole_x & (residual < 0), UNDER_WEIGHT, 1.0)


def _spread(residual: Array) -> Array:
    """Inverse weights of the Student-t loss."""
    return SCALE**2 * (1 + (residual / SCALE) ** 2 / FREEDOM) * FREEDOM / (FREEDOM + 1)


def _cost(theta: Array, data: _Data, widths: Array) -> float:
    residual = _residuals(theta, data)
    loss = (FREEDOM + 1) / 2 * np.log1p((residual / SCALE) ** 2 / FREEDOM)
    weighted = np.sum(data.weight * _asymmetry(residual, data) * loss)
    return float(weighted + 0.5 * np.sum((theta / widths) ** 2))


def _jacobian(theta: Array, data: _Data, residual: Array) -> Array:
    columns_ = []
    for i in range(len(theta)):
        moved = theta.copy()
        moved[i] += DIFFERENCE
        columns_.append((_residuals(moved, data) - residual) / DIFFERENCE)
    return np.stack(columns_, axis=1)
