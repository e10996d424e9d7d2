"""Predictions by a model that has not seen the row's group: what errors are told of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from autopar.validation.rows.rows import Row
from autopar.validation.step_time.predictor import Prediction, Predictor

Progress = Callable[[str, int, int], None]

FOLDS = 10


def fold_of(group: str, folds: int = FOLDS) -> int:
    """Fold of a group, the same on every machine."""
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % folds


def held_out(
    rows: Sequence[Row],
    known: Sequence[Row],
    ready: Predictor | None = None,
    progress: Progress | None = None,
) -> tuple[Prediction, list[str]]:
    """Rows the fit knows are predicted fold by fold, without their group; others by all it knows.

    Groups are model, device and count; see :attr:`~autopar.validation.rows.rows.Row.group`.

    Args:
        rows: Rows to predict.
        known: Rows to fit on.
        ready: The model fitted on all known rows, if there is one.
        progress: ``progress(stage, done, total)``.

    Returns:
        The prediction, and how each row was predicted.
    """
    prints = {row.fingerprint for row in known}
    again = [i for i, row in enumerate(rows) if row.fingerprint in prints]
    new = [i for i, row in enumerate(rows) if row.fingerprint not in prints]
    value, low, high = (np.full(len(rows), np.nan) for _ in range(3))
    how = ["new to the fit"] * len(rows)

    def put(indices: list[int], found: Prediction) -> None:
        value[indices], low[indices], high[indices] = found.value_s, found.low_s, found.high_s

    if new:
        predictor = ready if ready is not None else Predictor(known)
        put(new, predictor.predict([rows[i] for i in new]))
    for fold in range(FOLDS):
        held = [i for i in again if fold_of(rows[i].group) == fold]
        if held:
            others = [row for row in known if fold_of(row.group) != fold]
            put(held, Predictor(others).predict([rows[i] for i in held]))
        if progress is not None and again:
            progress("cross-validation", fold + 1, FOLDS)
    for index in again:
        how[index] = "cross-validated"
    return Prediction(value_s=value, low_s=low, high_s=high), how
