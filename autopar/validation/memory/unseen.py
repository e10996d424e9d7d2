"""Memory of rows by constants that have not seen their group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import MemoryConstants
from autopar.validation.memory.fit import fit_memory
from autopar.validation.memory.oom import oom_verdict
from autopar.validation.memory.peak import peak_memory
from autopar.validation.memory.report import calibrate, hold_out, ranged
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.held_out import fold_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """Predicted peaks and verdicts, one entry per row.

    Attributes:
        value_bytes: Central estimate, as the source counts.
        fits: Whether the run fits, by the upper end of the range.
    """

    value_bytes: Array
    fits: npt.NDArray[np.bool_]


def predict_memory(
    rows: Sequence[Row], known: Sequence[Row] | None = None, *, zero_shot: bool = False
) -> MemoryPrediction:
    """Memory of every row; one the fit knows is predicted by a fit without its group.

    Args:
        rows: Rows to predict.
        known: Rows to fit on; ``None`` for the shipped constants.
        zero_shot: Default constants only.
    """
    if zero_shot:
        return _joined(len(rows), [(list(range(len(rows))), MemoryConstants.defaults())], rows)
    whole: MemoryConstants | None = None
    if known is None:
        whole = MemoryConstants.shipped()
        prints = set(whole.fitted_on.get("fingerprints", ()))
        known = [row for row in rows if row.fingerprint in prints]
    else:
        prints = {row.fingerprint for row in known}
        if any(row.fingerprint not in prints for row in rows):
            whole = calibrate(known)
    parts: list[tuple[list[int], MemoryConstants | None]]
    parts = [([i for i, row in enumerate(rows) if row.fingerprint not in prints], whole)]
    parts += _known_parts(rows, known, prints)
    return _joined(len(rows), parts, rows)


def _known_parts(
    rows: Sequence[Row], known: Sequence[Row], prints: set[str]
) -> list[tuple[list[int], MemoryConstants | None]]:
    """Rows that are among the known, fold by fold, with constants that saw no row of the fold."""
    again = [i for i, row in enumerate(rows) if row.fingerprint in prints]
    folds = sorted({fold_of(rows[i].group) for i in again})
    if not folds:
        return []
    held = hold_out(known)
    parts: list[tuple[list[int], MemoryConstants | None]] = []
    for fold in folds:
        c = fit_memory([row for row in known if fold_of(row.group) != fold])
        inside = [i for i in again if fold_of(rows[i].group) == fold]
        parts.append((inside, ranged(c, held, without=fold)))
    return parts


def _joined(
    count: int, parts: Sequence[tuple[list[int], MemoryConstants | None]], rows: Sequence[Row]
) -> MemoryPrediction:
    """Predictions of parts of the rows, each by its constants, in the order of the rows."""
    value, fits = np.zeros(count), np.zeros(count, bool)
    for inside, constants in parts:
        if inside:
            some = [rows[i] for i in inside]
            value[inside], _, _ = peak_memory(some, constants)
            fits[inside] = oom_verdict(some, constants)
    return MemoryPrediction(value_bytes=value, fits=fits)
