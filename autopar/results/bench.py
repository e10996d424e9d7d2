"""BenchResult: many plans of one task, predicted beside measured, and how good the choice was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json, write_document
from autopar.core.stats import kendall_tau, median, quantile
from autopar.plans import Plan

SCHEMA = "autopar.bench"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One plan that was priced and run.

    Attributes:
        plan: The plan.
        predicted_s: Predicted step time.
        measured_s: Measured step time, ``None`` when the run failed: the lower quartile over the
            steps of all launches, as other programs only ever add time.
        predicted_memory_bytes: Predicted peak over ranks.
        measured_memory_bytes: Measured peak over ranks, ``None`` when the run failed.
        predicted_low_s: Lower end of the predicted range, if known.
        predicted_high_s: Upper end of the predicted range, if known.
        measured_median_s: Median over the same steps.
        failure: Why the run failed, one line.
        slowdown: What the host took for the same work beside the runs, over what it took when it
            was profiled; ``None`` when unknown.
    """

    plan: Plan
    predicted_s: float
    measured_s: float | None
    predicted_memory_bytes: float
    measured_memory_bytes: float | None
    predicted_low_s: float | None = None
    predicted_high_s: float | None = None
    measured_median_s: float | None = None
    failure: str | None = None
    slowdown: float | None = None

    @property
    def name(self) -> str:
        """Short plan name."""
        return self.plan.name

    @property
    def rel_error(self) -> float | None:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else None

    @property
    def rel_error_at_pace(self) -> float | None:
        """The same had the host kept the pace it had when it was profiled."""
        error = self.rel_error
        if error is None or self.slowdown is None:
            return None
        return (1 + error) * self.slowdown - 1

    def to_dict(self) -> dict[str, Any]:
        """The contract's keys of ``rows``."""
        return {
            "name": self.name,
            "plan": self.plan.to_dict(),
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
            "rel_error": self.rel_error,
            "rel_error_at_pace": self.rel_error_at_pace,
            "predicted_memory_bytes": self.predicted_memory_bytes,
            "measured_memory_bytes": self.measured_memory_bytes,
            "predicted_low_s": self.predicted_low_s,
            "predicted_high_s": self.predicted_high_s,
            "measured_median_s": self.measured_median_s,
            "failure": self.failure,
            "slowdown": self.slowdown,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BenchRow:
        """Inverse of :meth:`to_dict`."""
        derived = ("name", "rel_error", "rel_error_at_pace")
        body = {key: value for key, value in data.items() if key not in derived}
        return cls(**{**body, "plan": Plan.from_dict(data["plan"])})


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What ``bench`` measured.

    Attributes:
        task: Task name.
        cluster: Cluster name.
        rows: One per plan; the planner's choice is the one with the smallest prediction.
        warnings: What was skipped or assumed.
        provenance: Versions, host, command.
    """

    task: str
    cluster: str
    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[BenchRow, ...]:
        """Rows whose run finished."""
        return tuple(row for row in self.rows if row.measured_s)

    @property
    def abs_rel_errors(self) -> tuple[float, ...]:
        """|predicted / measured - 1| of the rows that finished."""
        return tuple(abs(row.rel_error) for row in self.measured if row.rel_error is not None)

    @property
    def median_abs_rel_error(self) -> float | None:
        """Median over finished rows, ``None`` when there is none."""
        return median(self.abs_rel_errors) if self.abs_rel_errors else None

    @property
    def p90_abs_rel_error(self) -> float | None:
        """90th percentile over finished rows, ``None`` when there is none."""
        return quantile(self.abs_rel_errors, 0.9) if self.abs_rel_errors else None

    @property
    def median_abs_rel_error_at_pace(self) -> float | None:
        """The median had the host kept its pace; ``None`` where that is not known of all rows."""
        errors = [row.rel_error_at_pace for row in self.measured]
        if not errors or None in errors:
            return None
        return median([abs(error) for error in errors if error is not None])

    @property
    def kendall_tau(self) -> float | None:
        """Rank agreement of predicted and measured times."""
        predicted, measured = _columns(self.measured)
        return kendall_tau(predicted, measured)

    @property
    def chosen(self) -> BenchRow | None:
        """The row the model thinks fastest, whether or not its run finished."""
        return min(self.rows, key=lambda row: row.predicted_s, default=None)

    @property
    def regret(self) -> float | None:
        """Measured time of the chosen plan over the best measured time, minus 1.

        ``None`` when the chosen plan did not finish: no figure would do it justice.
        """
        chosen = self.chosen
        if chosen is None or not chosen.measured_s:
            return None
        return chosen.measured_s / min(_columns(self.measured)[1]) - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the ``data`` of ``bench --json``, without ``report``."""
        return {
            "task": self.task,
            "cluster": self.cluster,
            "rows": [row.to_dict() for row in self.rows],
            "median_abs_rel_error": self.median_abs_rel_error,
            "p90_abs_rel_error": self.p90_abs_rel_error,
            "median_abs_rel_error_at_pace": self.median_abs_rel_error_at_pace,
            "kendall_tau": self.kendall_tau,
            "regret": self.regret,
            "warnings": list(self.warnings),
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "bench result") -> BenchResult:
        """Check and build; the summary figures are computed again.

        Raises:
            InputError: A field is missing or wrong.
        """
        try:
            return cls(
                task=data["task"],
                cluster=data["cluster"],
                rows=tuple(BenchRow.from_dict(row) for row in data["rows"]),
                warnings=tuple(data["warnings"]),
                provenance=data["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad bench field: {type(error).__name__}: {error}",
                hint="run `autopar bench` again",
            ) from error

    def save(self, path: Path) -> None:
        """Write the bench file atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> BenchResult:
        """Read a bench file.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))


def _columns(rows: Sequence[BenchRow]) -> tuple[list[float], list[float]]:
    pairs = [(row.predicted_s, row.measured_s) for row in rows if row.measured_s]
    return [p for p, _ in pairs], [m for _, m in pairs]
