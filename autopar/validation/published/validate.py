"""Price every row of a CSV by a model that has not seen its group, and score it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopar.validation.memory.oom import unjudged
from autopar.validation.memory.unseen import predict_memory
from autopar.validation.published import exchange
from autopar.validation.published.exchange import ExchangeRow, exchange_row
from autopar.validation.rows.completion import complete
from autopar.validation.rows.rows import Row, Unpriced
from autopar.validation.rows.table import read_entries
from autopar.validation.step_time.held_out import Progress, held_out
from autopar.validation.step_time.predictor import Prediction, Predictor
from autopar.validation.step_time.score import (
    ChoiceScore,
    FamilyScore,
    choice_scores,
    family_scores,
)
from autopar.validation.step_time.shipped import seen, shipped_predictor


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Predictions beside measurements.

    Attributes:
        rows: Rows that were priced.
        unpriced: Rows that were not, with the reason.
        prediction: Step seconds.
        how: Per row ``cross-validated``, ``new to the fit`` or ``zero-shot``.
        families: Scores by source, of rows with a measured step time.
        choices: Scores of sets of alternatives.
        fits: Per row, whether its plan fits in memory.
        peak_bytes: Per row, predicted peak memory.
        exchange: Rows of data parallel benchmarks that state neither device nor sequence length.
        exchange_prediction: Their step seconds.
    """

    rows: tuple[Row, ...]
    unpriced: tuple[Unpriced, ...]
    prediction: Prediction
    how: tuple[str, ...]
    families: tuple[FamilyScore, ...]
    choices: tuple[ChoiceScore, ...]
    fits: tuple[bool, ...]
    peak_bytes: tuple[float, ...]
    exchange: tuple[ExchangeRow, ...] = ()
    exchange_prediction: Prediction | None = None

    @property
    def outcomes(self) -> dict[str, Any]:
        """How often "fits" and "out of memory" were right, over rows that can be judged."""
        skipped = unjudged(self.rows)
        known = [
            (row.out_of_memory, fits)
            for row, fits in zip(self.rows, self.fits, strict=True)
            if row.id not in skipped and (row.out_of_memory or row.measured_s)
        ]
        failed = [fits for out, fits in known if out]
        ran = [fits for out, fits in known if not out]
        parts = [1 - statistics.mean(failed)] if failed else []
        parts += [statistics.mean(ran)] if ran else []
        return {
            "failed": len(failed),
            "failed_found": sum(not fits for fits in failed),
            "ran": len(ran),
            "ran_found": sum(ran),
            "balanced_accuracy": statistics.mean(parts) if parts else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """The ``data`` of ``scripts/validate_published --json``."""
        return {
            "rows": [
                *(self._row(i) for i in range(len(self.rows))),
                *(self._exchange_row(i) for i in range(len(self.exchange))),
            ],
            "unpriced": [asdict(row) for row in self.unpriced],
            "families": [asdict(score) for score in self.families],
            "groups": [score.to_dict() for score in self.choices],
            "choosing": choosing(self.choices),
            "out_of_memory": self.outcomes,
        }

    def _row(self, index: int) -> dict[str, Any]:
        row, found = self.rows[index], self.prediction
        predicted = float(found.value_s[index])
        memory = row.measured_memory_bytes
        return {
            "id": row.id,
            "family": row.family,
            "group": row.group,
            "predicted_s": predicted,
            "low_s": float(found.low_s[index]),
            "high_s": float(found.high_s[index]),
            "measured_s": row.measured_s,
            "rel_error": predicted / row.measured_s - 1 if row.measured_s else None,
            "how": self.how[index],
            "feasible": self.fits[index],
            "out_of_memory": row.out_of_memory,
            "predicted_memory_bytes": self.peak_bytes[index],
            "measured_memory_bytes": memory,
            "memory_rel_error": self.peak_bytes[index] / memory - 1 if memory else None,
            "assumed": list(row.assumed),
        }

    def _exchange_row(self, index: int) -> dict[str, Any]:
        row, found = self.exchange[index], self.exchange_prediction
        assert found is not None  # set wherever there are rows
        predicted = float(found.value_s[index])
        return {
            "id": row.id,
            "family": row.family,
            "group": row.group,
            "predicted_s": predicted,
            "low_s": float(found.low_s[index]),
            "high_s": float(found.high_s[index]),
            "measured_s": row.measured_s,
            "rel_error": predicted / row.measured_s - 1 if row.measured_s else None,
            "how": "gradient exchange formula",
            "assumed": ["device and sequence length not stated: one fitted rate per model"],
        }


def choosing(choices: Sequence[ChoiceScore]) -> dict[str, Any]:
    """Summary of the sets of alternatives."""
    if not choices:
        return {"groups": 0}
    regrets, rules = [c.regret for c in choices], [c.rule_regret for c in choices]
    taus = [c.kendall_tau for c in choices if c.kendall_tau is not None]
    return {
        "groups": len(choices),
        "regret_mean": statistics.mean(regrets),
        "regret_p90": float(np.quantile(regrets, 0.9)),
        "best_in_top3": statistics.mean(c.in_top3 for c in choices),
        "kendall_tau_median": statistics.median(taus) if taus else None,
        "rule_regret_mean": statistics.mean(rules),
        "rule_regret_p90": float(np.quantile(rules, 0.9)),
    }


def validate(
    path: Path,
    *,
    fit_path: Path | None = None,
    zero_shot: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Price and score a CSV.

    Args:
        path: Rows to price.
        fit_path: Rows to calibrate on; the shipped calibration when ``None``. A row that is in
            both, or that the shipped fit saw, is priced by a fit that saw nothing of its group.
        zero_shot: Default constants and the catalogue only.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: A file is missing, no table, or lacks a needed column.
    """
    rows, unpriced, exchanges = _read(path)
    by_exchange = _exchange(exchanges, fit_path, zero_shot=zero_shot)
    fitted = None if zero_shot or fit_path is None else complete(read_entries(fit_path))[0]
    if zero_shot:
        found, how = Predictor(()).predict(rows), ["zero-shot"] * len(rows)
    elif fitted is not None:
        found, how = held_out(rows, [row for row in fitted if row.measured_s], None, progress)
    else:
        known = [row for row in rows if row.measured_s and seen(row)]
        found, how = held_out(rows, known, shipped_predictor(), progress)
    measured = [i for i, row in enumerate(rows) if row.measured_s]
    some = [rows[i] for i in measured]
    part = Prediction(
        value_s=found.value_s[measured], low_s=found.low_s[measured], high_s=found.high_s[measured]
    )
    memory = predict_memory(rows, fitted, zero_shot=zero_shot)
    return Validation(
        rows=tuple(rows),
        unpriced=tuple(unpriced),
        prediction=found,
        how=tuple(how),
        families=tuple(_family_scores(some, part, exchanges, by_exchange)),
        choices=tuple(choice_scores(some, part.value_s)),
        fits=tuple(bool(fits) for fits in memory.fits),
        peak_bytes=tuple(float(peak) for peak in memory.value_bytes),
        exchange=tuple(exchanges),
        exchange_prediction=by_exchange,
    )


def _read(path: Path) -> tuple[list[Row], list[Unpriced], list[ExchangeRow]]:
    """Rows that the formula prices, rows without a price, rows for the exchange formula."""
    entries = read_entries(path)
    rows, unpriced = complete(entries)
    left = {row.id for row in unpriced}
    exchanges = [r for e in entries if e.id in left and (r := exchange_row(e)) is not None]
    priced = {row.id for row in exchanges}
    return rows, [row for row in unpriced if row.id not in priced], exchanges


def _exchange(
    rows: Sequence[ExchangeRow], fit_path: Path | None, *, zero_shot: bool
) -> Prediction:
    """Rows of data parallel benchmarks, held out as the others are."""
    if zero_shot:
        return exchange.ExchangeModel().predict(rows)
    if fit_path is not None:
        known = [r for e in read_entries(fit_path) if (r := exchange_row(e)) and r.measured_s]
        return exchange.hold_out(rows, known, exchange.fit_exchange(known))
    model, prints = exchange.load()
    return exchange.hold_out(rows, [r for r in rows if r.fingerprint in prints], model)


def _family_scores(
    rows: Sequence[Row],
    found: Prediction,
    exchanges: Sequence[ExchangeRow],
    by_exchange: Prediction,
) -> list[FamilyScore]:
    """Errors by source over both kinds of rows."""
    some = [i for i, row in enumerate(exchanges) if row.measured_s]
    ends = [
        np.concatenate([getattr(found, name), getattr(by_exchange, name)[some]])
        for name in ("value_s", "low_s", "high_s")
    ]
    return family_scores(
        [*rows, *(exchanges[i] for i in some)],
        Prediction(value_s=ends[0], low_s=ends[1], high_s=ends[2]),
    )
