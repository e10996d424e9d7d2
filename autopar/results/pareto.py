"""ParetoSet: the plans that no other plan beats in every objective."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from autopar.results.search import RankedPlan


@dataclass(frozen=True, kw_only=True)
class ParetoPlan:
    """One plan of the set.

    Attributes:
        values: Objective -> seconds, bytes, joules or USD of a step.
        ranked: Plan and price.
    """

    values: dict[str, float]
    ranked: RankedPlan

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "values": self.values,
            **self.ranked.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ParetoPlan:
        """Inverse of :meth:`to_dict`."""
        return cls(values=data["values"], ranked=RankedPlan.from_dict(data))


@dataclass(frozen=True, kw_only=True)
class ParetoProof:
    """How far the set can be trusted.

    Attributes:
        engine: ``sweep``, ``exhaustive`` or ``nsga2``.
        complete: True when no plan of the space is better in every objective than the set allows.
        resolution: Relative steps in memory that ``sweep`` cannot tell apart: a plan that is left
            out needs at most this part less memory than one of the set that is no slower.
        space: Points in the plan space.
        priced: Points priced in full.
        open: Points neither priced nor ruled out.
        hypervolume: Volume the set dominates below its worst values times 1.1, as a part of the
            box between those and the best values.
        hypervolume_bound: No set has more, as far as bounds of the open points say.
    """

    engine: str
    complete: bool
    resolution: float
    space: int
    priced: int
    open: int
    hypervolume: float
    hypervolume_bound: float

    @property
    def gap(self) -> float:
        """Part of the possible hypervolume that the set may miss."""
        bound = self.hypervolume_bound
        return max(0.0, 1 - self.hypervolume / bound) if bound > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ParetoSet:
    """What a search for several objectives returns.

    Attributes:
        objectives: In the order asked.
        plans: By the first objective, best first.
        knee: Index of the plan nearest to all best values at once.
        proof: How far the set can be trusted.
        search_time_s: Wall time.
    """

    objectives: tuple[str, ...]
    plans: tuple[ParetoPlan, ...]
    knee: int
    proof: ParetoProof
    search_time_s: float

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ParetoSet:
        """Inverse of :meth:`to_dict`; other keys are passed over."""
        proof = data["pareto_proof"]
        names = {field.name for field in fields(ParetoProof)}
        return cls(
            objectives=tuple(proof["objectives"]),
            plans=tuple(ParetoPlan.from_dict(row) for row in data["pareto"]),
            knee=proof["knee"],
            proof=ParetoProof(**{k: v for k, v in proof.items() if k in names}),
            search_time_s=proof["search_time_s"],
        )

    def to_dict(self) -> dict[str, Any]:
        """``pareto`` and ``pareto_proof`` of ``plan --json``."""
        return {
            "pareto": [plan.to_dict() for plan in self.plans],
            "pareto_proof": {
                **asdict(self.proof),
                "gap": self.proof.gap,
                "objectives": list(self.objectives),
                "knee": self.knee,
                "search_time_s": self.search_time_s,
            },
        }
