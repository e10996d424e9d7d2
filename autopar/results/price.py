"""PlanPrice: everything the cost model says about one plan; enough to simulate it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopar.core.estimate import Estimate
from autopar.core.io import field_values
from autopar.results.breakdown import CostBreakdown, MemoryBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Seconds of one virtual stage for one microbatch.

    Attributes:
        forward_s: Forward.
        backward_s: Backward, recompute not included.
        weight_s: Part of ``backward_s`` that only weight gradients need.
        recompute_s: Extra forward before the backward.
        gradient_sync_s: Full time of the stage's gradient synchronisation.
        exposed_sync_s: Part of it that does not hide behind backward.
        optimizer_s: Optimizer step over the stage's parameters.
        forward_collective_s: Part of ``forward_s`` that is exposed communication between ops.
        backward_collective_s: The same of ``backward_s``.
        recompute_collective_s: The same of ``recompute_s``.
        receive_s: Taking in what the forward reads, where ranks receive it when they need it.
        backward_receive_s: The same of the backward.
    """

    forward_s: float
    backward_s: float
    weight_s: float = 0.0
    recompute_s: float = 0.0
    gradient_sync_s: float = 0.0
    exposed_sync_s: float = 0.0
    optimizer_s: float = 0.0
    forward_collective_s: float = 0.0
    backward_collective_s: float = 0.0
    recompute_collective_s: float = 0.0
    receive_s: float = 0.0
    backward_receive_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Tensors one stage sends another for each microbatch.

    Attributes:
        producer: Virtual stage that makes them.
        consumer: Virtual stage that reads them, ``consumer > producer``.
        forward_s: Time of the activations.
        backward_s: Time of their gradients; 0 when none needs one.
        size_bytes: Bytes of the activations.
        at_need: The reader takes them in when it needs them, as part of its stage's cost; else
            they travel while it computes.
    """

    producer: int
    consumer: int
    forward_s: float
    backward_s: float
    size_bytes: float
    at_need: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TiedSync:
    """Gradient sum over the copies of parameters that stages on several ranks read.

    Attributes:
        ranks: Pipeline ranks that hold a copy; they wait for each other.
        seconds: Time of the sum.
    """

    ranks: tuple[int, ...]
    seconds: float


EXACT = Estimate(value=1.0, low=1.0, high=1.0, source="analytic")
"""Exact synchronisation takes the steps it takes."""


@dataclass(frozen=True, kw_only=True)
class PlanPrice:
    """Prediction for one plan on one cluster.

    Attributes:
        step_time_s: Time of one optimizer step.
        peak_memory_bytes: Largest peak over ranks.
        samples_per_s: Global batch over step time.
        mfu: Model FLOPs over step time x world size x peak; ``None`` without a peak for the
            device and dtype.
        energy_joule: Energy of a step, ``None`` without power figures.
        cost_usd: Price of a step, ``None`` without prices.
        breakdown: Seconds on the critical rank.
        memory: Per pipeline coordinate.
        capacity_bytes: Memory of the smallest device used.
        stage_costs: Per virtual stage.
        transfers: Between virtual stages.
        step_overhead_s: Seconds per step outside the schedule's actions.
        tied_syncs: Gradient sums over copies of tied parameters, after each stage's own.
        steps_multiplier: Steps to the same loss over those of exact synchronisation.
        pace_s: Seconds of a reference pass on the host while it was profiled, if they are known.
        assumptions: Constants assumed rather than measured, for the report.
    """

    step_time_s: Estimate
    peak_memory_bytes: Estimate
    samples_per_s: float
    mfu: float | None
    energy_joule: Estimate | None
    cost_usd: Estimate | None
    breakdown: CostBreakdown
    memory: tuple[MemoryBreakdown, ...]
    capacity_bytes: float
    stage_costs: tuple[StageCost, ...]
    transfers: tuple[Transfer, ...]
    step_overhead_s: float = 0.0
    tied_syncs: tuple[TiedSync, ...] = ()
    steps_multiplier: Estimate = EXACT
    pace_s: float | None = None
    assumptions: tuple[str, ...] = field(default=())

    @property
    def worst_memory(self) -> MemoryBreakdown:
        """Memory of the fullest rank."""
        return max(self.memory, key=lambda m: m.total_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        optional = {"energy_joule": self.energy_joule, "cost_usd": self.cost_usd}
        return {
            "step_time_s": self.step_time_s.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes.to_dict(),
            "samples_per_s": self.samples_per_s,
            "mfu": self.mfu,
            **{k: e.to_dict() if e else None for k, e in optional.items()},
            "breakdown_s": self.breakdown.to_dict(),
            "memory_breakdown_bytes": self.worst_memory.to_dict(),
            "memory_by_stage_rank_bytes": [m.to_dict() for m in self.memory],
            "capacity_bytes": self.capacity_bytes,
            "stage_costs": [field_values(cost) for cost in self.stage_costs],
            "transfers": [field_values(transfer) for transfer in self.transfers],
            "step_overhead_s": self.step_overhead_s,
            "steps_multiplier": self.steps_multiplier.to_dict(),
            "pace_s": self.pace_s,
            "tied_syncs": [
                {"ranks": list(t.ranks), "seconds": t.seconds} for t in self.tied_syncs
            ],
            "assumptions": list(self.assumptions),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PlanPrice:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: The data is not a price.
        """

        def estimate(key: str) -> Estimate | None:
            return Estimate.from_dict(data[key]) if data[key] else None

        return cls(
            step_time_s=Estimate.from_dict(data["step_time_s"]),
            peak_memory_bytes=Estimate.from_dict(data["peak_memory_bytes"]),
            samples_per_s=data["samples_per_s"],
            mfu=data["mfu"],
            energy_joule=estimate("energy_joule"),
            cost_usd=estimate("cost_usd"),
            breakdown=CostBreakdown.from_dict(data["breakdown_s"]),
            memory=tuple(MemoryBreakdown.from_dict(m) for m in data["memory_by_stage_rank_bytes"]),
            capacity_bytes=data["capacity_bytes"],
            stage_costs=tuple(StageCost(**row) for row in data["stage_costs"]),
            transfers=tuple(Transfer(**row) for row in data["transfers"]),
            step_overhead_s=data["step_overhead_s"],
            tied_syncs=tuple(
                TiedSync(ranks=tuple(row["ranks"]), seconds=row["seconds"])
                for row in data.get("tied_syncs", ())
            ),
            steps_multiplier=Estimate.from_dict(data["steps_multiplier"])
            if "steps_multiplier" in data
            else EXACT,
            pace_s=data.get("pace_s"),
            assumptions=tuple(data["assumptions"]),
        )
