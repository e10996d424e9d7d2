"""RunRecord: one measured run, a folder that is complete by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json, write_document
from autopar.core.stats import median, quantile
from autopar.plans import Plan
from autopar.results.breakdown import CostBreakdown
from autopar.results.timeline import Timeline

SCHEMA = "autopar.run_record"
SCHEMA_VERSION = 1
FILE_NAME = "record.json"
NOTEWORTHY_PACE = 0.25
"""From this change of the host's pace on a run says so; less is noise of the reference pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """One step of the plan against the eager model in one process.

    Attributes:
        passed: All within ``tolerance``, gradients within ``grad_tolerance``.
        loss_rel: |loss - reference| / |reference|.
        grad_rel: Norm of the gradient difference over the reference norm.
        weight_rel: The same for the weights after the optimizer step.
        buffer_rel: The same for buffers (BatchNorm statistics).
        tolerance: Bound used.
        grad_tolerance: That of gradients, where a compression may round them; else ``tolerance``.
        note: What was compared, for sync modes that are not exact.
        rounding_rel: What rounding alone explains of ``grad_rel`` on this model; measured when
            gradients are outside the precision's tolerance. In float32 it tells, and allows
            nothing.
    """

    passed: bool
    loss_rel: float
    grad_rel: float
    weight_rel: float
    buffer_rel: float
    tolerance: float
    grad_tolerance: float | None = None
    note: str = ""
    rounding_rel: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run measured.

    Attributes:
        plan: The plan that ran, with its prediction.
        step_times_s: Time of each measured step (slowest rank), warm-up excluded.
        warmup_step_times_s: Times of the warm-up steps.
        losses: Mean loss of each step, warm-up included.
        breakdown: Median seconds by part on the rank that ends last.
        peak_memory_bytes: Peak resident (CPU) or allocated (CUDA) bytes per rank.
        timeline: Events of one typical measured step, all ranks.
        verify: Result of ``--verify``, if asked.
        bytes_sent: Bytes each rank sent per step, mean over the measured ones.
        warnings: What was skipped or assumed.
        provenance: Versions, host, command.
    """

    plan: Plan
    step_times_s: tuple[float, ...]
    warmup_step_times_s: tuple[float, ...]
    losses: tuple[float, ...]
    breakdown: CostBreakdown
    peak_memory_bytes: tuple[float, ...]
    timeline: Timeline
    verify: VerifyResult | None = None
    bytes_sent: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def step_time_quantiles_s(self) -> dict[str, float]:
        """Median, 10th and 90th percentile of the step time."""
        times = self.step_times_s
        return {
            "median": median(times),
            "p10": quantile(times, 0.1),
            "p90": quantile(times, 0.9),
        }

    @property
    def slowdown(self) -> float | None:
        """What the host took for the same work, over what it took when it was profiled.

        From a reference pass of as many ranks at once, sampled between the steps; ``None`` where
        it was not timed in both. A prediction is for the pace of the profile.
        """
        then, now = self.plan.predicted.get("pace_s"), self.provenance.get("pace_s")
        return now / then if then and now else None

    @property
    def step_error_at_pace(self) -> float | None:
        """Predicted over measured step, minus 1, had the host kept the pace of the profile."""
        step, slowdown = self.plan.predicted.get("step_time_s"), self.slowdown
        if step is None or slowdown is None:
            return None
        return float(step["value"]) * slowdown / self.step_time_quantiles_s["median"] - 1

    def pace_warning(self) -> str | None:
        """A sentence when the host has become much faster or slower since it was profiled."""
        slowdown, error = self.slowdown, self.step_error_at_pace
        if slowdown is None or error is None or abs(slowdown - 1) < NOTEWORTHY_PACE:
            return None
        return (
            f"this host took {slowdown:.2f} times as long for the same work as when it was "
            f"profiled: at that pace the predicted step is {error:+.0%} off; for a prediction of "
            "now profile and plan again"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the schema header."""
        return {
            "plan": self.plan.to_dict(),
            "step_times_s": list(self.step_times_s),
            "warmup_step_times_s": list(self.warmup_step_times_s),
            "losses": list(self.losses),
            "breakdown_s": self.breakdown.to_dict(),
            "peak_memory_bytes": list(self.peak_memory_bytes),
            "timeline": self.timeline.to_dict(),
            "verify": asdict(self.verify) if self.verify else None,
            "bytes_sent": list(self.bytes_sent),
            "warnings": list(self.warnings),
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "run record") -> RunRecord:
        """Check and build.

        Raises:
            InputError: A field is missing or wrong.
        """
        try:
            return cls(
                plan=Plan.from_dict(data["plan"], origin),
                step_times_s=tuple(data["step_times_s"]),
                warmup_step_times_s=tuple(data["warmup_step_times_s"]),
                losses=tuple(data["losses"]),
                breakdown=CostBreakdown.from_dict(data["breakdown_s"]),
                peak_memory_bytes=tuple(data["peak_memory_bytes"]),
                timeline=Timeline.from_dict(data["timeline"]),
                verify=VerifyResult(**data["verify"]) if data["verify"] else None,
                bytes_sent=tuple(data["bytes_sent"]),
                warnings=tuple(data["warnings"]),
                provenance=data["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad run record field: {type(error).__name__}: {error}",
                hint="run the plan again",
            ) from error

    def save(self, folder: Path) -> Path:
        """Write ``record.json`` into the run folder atomically; returns its path."""
        path = Path(folder) / FILE_NAME
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a run folder or its ``record.json``.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))
