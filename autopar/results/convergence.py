"""ConvergenceResult: what changes the mathematics, measured by short runs on the real task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.core.io import check_schema, read_json, write_document
from autopar.graph import Convergence

SCHEMA = "autopar.convergence"
SCHEMA_VERSION = 1
ESTIMATES = ("multiplier", "time_to_loss_s")
Status = Literal["measured", "not reached", "too rare", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvergenceRow:
    """One sync mode on the task.

    Attributes:
        name: Canonical sync name.
        semantics: ``exact``, ``lossy``, ``periodic`` or ``stale``.
        status: ``measured``, ``not reached`` (the loss, with some seed), ``too rare`` (averages
            as far apart as the loss is) or ``not run``.
        reason: Why it was not measured.
        steps: Steps to the loss, by seed; ``None`` where it was not reached.
        multiplier: Steps over those of ``all_reduce`` with the same seed: median, least and most.
        time_to_loss_s: Seconds of those steps on this host: median, least and most.
        step_time_s: Mean step over all runs.
        bytes_per_step: Bytes that the busiest rank sends, mean over steps.
    """

    name: str
    semantics: str
    status: Status
    reason: str | None = None
    steps: tuple[float | None, ...] = ()
    multiplier: Estimate | None = None
    time_to_loss_s: Estimate | None = None
    step_time_s: float | None = None
    bytes_per_step: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvergenceRow:
        """Inverse of :meth:`to_dict`."""
        body = {f.name: data[f.name] for f in fields(cls)}
        for name in ESTIMATES:
            body[name] = Estimate.from_dict(body[name]) if body[name] else None
        return cls(**{**body, "steps": tuple(body["steps"])})


@dataclass(frozen=True, kw_only=True)
class ConvergenceResult:
    """What the probe runs of a task measured.

    Attributes:
        task: Task name.
        key: Marks the task: the same for its profiles.
        ranks: Ranks of every run.
        global_batch: Samples per step.
        target_loss: Smoothed training loss that steps are counted to.
        window: Losses in a smoothed loss.
        probe_steps: Steps of the runs with ``all_reduce``.
        seeds: Runs per mode.
        rows: One per mode, ``all_reduce`` first.
        warnings: What was assumed.
        provenance: Versions, host, command.
    """

    task: str
    key: str
    ranks: int
    global_batch: int
    target_loss: float
    window: int
    probe_steps: int
    seeds: int
    rows: tuple[ConvergenceRow, ...]
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def convergence(self) -> Convergence:
        """What planning uses of it: modes that change the mathematics."""
        changing = [row for row in self.rows if row.semantics != "exact"]
        return Convergence(
            ranks=self.ranks,
            global_batch=self.global_batch,
            target_loss=self.target_loss,
            seeds=self.seeds,
            multipliers={row.name: row.multiplier for row in changing if row.multiplier},
            missed={
                row.name: row.reason or row.status
                for row in changing
                if row.status in ("not reached", "too rare")
            },
        )

    def joined(self, earlier: ConvergenceResult) -> ConvergenceResult:
        """With the rows of an earlier result of the same runs for modes that this one lacks."""
        same = ("key", "ranks", "global_batch", "target_loss", "window", "probe_steps", "seeds")
        if any(getattr(self, name) != getattr(earlier, name) for name in same):
            return self
        known = {row.name for row in self.rows}
        kept = tuple(
            row for row in earlier.rows if row.name not in known and row.status != "not run"
        )
        return replace(self, rows=(*self.rows, *kept))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        rows = [row.to_dict() for row in self.rows]
        return {**body, "rows": rows, "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "convergence") -> ConvergenceResult:
        """Check and build.

        Raises:
            InputError: A field is missing or wrong.
        """
        try:
            body = {f.name: data[f.name] for f in fields(cls)}
            rows = tuple(ConvergenceRow.from_dict(row) for row in data["rows"])
            return cls(**{**body, "rows": rows, "warnings": tuple(data["warnings"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad convergence field: {type(error).__name__}: {error}",
                hint="run `autopar bench TARGET --convergence` again",
            ) from error

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> ConvergenceResult:
        """Read a file.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))
