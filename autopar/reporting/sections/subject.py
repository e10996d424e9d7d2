"""What a run or plan page is about: the plan with everything known beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import PlanPrice, RunRecord, SearchResult, Timeline


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One plan; what is missing is ``None`` and its part of the page is left out.

    Attributes:
        plan: The plan.
        price: What was predicted for it.
        record: What was measured.
        search: Where it came from.
        profile: The model.
        cluster: The machines.
    """

    plan: Plan
    price: PlanPrice | None = None
    record: RunRecord | None = None
    search: SearchResult | None = None
    profile: GraphProfile | None = None
    cluster: Cluster | None = None

    @cached_property
    def predicted_timeline(self) -> Timeline | None:
        """The simulated step, when the price holds stage costs."""
        if self.price is None or not self.price.stage_costs:
            return None
        from autopar.cost import simulate_plan

        return simulate_plan(self.plan, self.price)

    @cached_property
    def peers(self) -> dict[int, int]:
        """Rank -> rank of replica 0 with the same other coordinates."""
        mesh = self.plan.mesh
        return {
            rank: mesh.rank(**{**mesh.coordinates(rank), "dp_replicate": 0, "dp_shard": 0})
            for rank in range(mesh.world_size)
        }

    @cached_property
    def measured_step_s(self) -> float | None:
        """Median measured step time."""
        if self.record is None or not self.record.step_times_s:
            return None
        return self.record.step_time_quantiles_s["median"]

    @cached_property
    def measured_peak_bytes(self) -> float | None:
        """Largest measured peak over ranks."""
        return max(self.record.peak_memory_bytes, default=None) if self.record else None

    @cached_property
    def step_error(self) -> float | None:
        """Predicted over measured step time, minus 1."""
        if self.price is None or not self.measured_step_s:
            return None
        return self.price.step_time_s.value / self.measured_step_s - 1

    @cached_property
    def memory_error(self) -> float | None:
        """Predicted over measured peak memory, minus 1."""
        if self.price is None or not self.measured_peak_bytes:
            return None
        return self.price.peak_memory_bytes.value / self.measured_peak_bytes - 1


def price_of(plan: Plan) -> PlanPrice | None:
    """The prediction a plan carries.

    Raises:
        InputError: It carries one that cannot be read.
    """
    if not plan.predicted:
        return None
    try:
        return PlanPrice.from_dict(plan.predicted)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"plan '{plan.name}' carries a prediction that cannot be read: {error}",
            hint="make the plan again with `autopar plan`",
        ) from error
