"""SearchResult: ranked plans, baselines, rejections, the certificate and the Optuna study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json, write_document
from autopar.plans import Plan
from autopar.results.price import PlanPrice

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from autopar.results.pareto import ParetoSet

SCHEMA = "autopar.search_result"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedPlan:
    """A feasible plan and its price."""

    plan: Plan
    price: PlanPrice

    @property
    def name(self) -> str:
        """Short plan name."""
        return self.plan.name

    def to_dict(self) -> dict[str, Any]:
        """The contract's keys of ``best`` and ``top``."""
        price = self.price.to_dict()
        return {"plan": self.plan.with_predicted(price).to_dict(), "name": self.name, **price}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RankedPlan:
        """Inverse of :meth:`to_dict`."""
        return cls(plan=Plan.from_dict(data["plan"]), price=PlanPrice.from_dict(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a plan is not available.

    Attributes:
        name: Short plan name or baseline name.
        reason: Short key (``memory``, ``batch``, ...), counted in the certificate.
        detail: One sentence with the numbers.
    """

    name: str
    reason: str
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``rejected`` marks it among baselines."""
        return {"rejected": True, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Proof that nothing better was left out.

    Attributes:
        space: Points in the search space.
        rejected: Reason -> number of points rejected before pricing.
        bounded: Points skipped because their lower bound exceeds the best plan.
        priced: Points priced in full.
        gap: (best - smallest lower bound not priced) / best, clamped at 0; 0 = proved optimal.
        partitions_priced: Stage partitions simulated inside priced points.
    """

    space: int
    rejected: dict[str, int]
    bounded: int
    priced: int
    gap: float
    partitions_priced: int = 0


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What ``plan`` returns.

    Attributes:
        best: The recommended plan.
        top: Best plans in order, ``best`` first.
        baselines: Name -> priced plan or rejection (single device, plain DDP, ...).
        certificate: Proof of optimality inside the space.
        search_time_s: Wall time of the search.
        objective: What was minimised.
        explanation: Paragraphs for people.
        history: ``(trial, value_s, best_so_far_s, name)`` of priced points.
        warnings: Assumed constants and skipped options.
        profile: Summary of the profile (task, parameters, FLOPs, hash).
        cluster: Summary of the cluster (name, devices, hash).
        study_name: Name of the Optuna study.
        provenance: Versions, host, command.
        pareto: Plans that no other beats in every objective, when several were asked for;
            ``best`` is then the best in the first of them.
        open_study: Makes or opens :attr:`study`; not stored in the file.
        reasons: Says more than ``explanation`` when called, at the price of more pricing; not
            stored in the file.
    """

    best: RankedPlan
    top: tuple[RankedPlan, ...]
    baselines: dict[str, RankedPlan | Rejection]
    certificate: Certificate
    search_time_s: float
    objective: str
    explanation: tuple[str, ...] = ()
    history: tuple[tuple[int, float, float, str], ...] = ()
    warnings: tuple[str, ...] = ()
    profile: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    study_name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)
    pareto: ParetoSet | None = None
    open_study: Callable[[], optuna.Study] | None = field(default=None, compare=False, repr=False)
    reasons: Callable[[], tuple[str, ...]] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def study(self) -> optuna.Study | None:
        """The Optuna study, one trial per priced point; ``None`` for a result from a file."""
        return self.open_study() if self.open_study is not None else None

    def explain(self) -> str:
        """Why this plan, as text: in full where profile and cluster are at hand."""
        return "\n".join(self.reasons() if self.reasons is not None else self.explanation)

    def to_frame(self) -> pd.DataFrame:
        """One row per ranked plan: name, step time, memory, throughput, breakdown."""
        import pandas as pd

        rows = [
            {
                "name": item.name,
                "step_time_s": item.price.step_time_s.value,
                "peak_memory_bytes": item.price.peak_memory_bytes.value,
                "samples_per_s": item.price.samples_per_s,
                "mfu": item.price.mfu,
                **item.price.breakdown.to_dict(),
            }
            for item in self.top
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the ``data`` of ``plan --json``."""
        return {
            "best": self.best.to_dict(),
            "top": [item.to_dict() for item in self.top],
            "baselines": {name: item.to_dict() for name, item in self.baselines.items()},
            "certificate": asdict(self.certificate),
            "search_time_s": self.search_time_s,
            "objective": self.objective,
            "explanation": list(self.explanation),
            "history": [list(row) for row in self.history],
            "warnings": list(self.warnings),
            "profile": self.profile,
            "cluster": self.cluster,
            "study": self.study_name,
            "provenance": self.provenance,
            **(self.pareto.to_dict() if self.pareto is not None else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "search result") -> SearchResult:
        """Check and build.

        Raises:
            InputError: A field is missing or wrong.
        """
        try:
            return cls(
                best=RankedPlan.from_dict(data["best"]),
                top=tuple(RankedPlan.from_dict(row) for row in data["top"]),
                baselines={n: _baseline(row) for n, row in data["baselines"].items()},
                certificate=Certificate(**data["certificate"]),
                search_time_s=data["search_time_s"],
                objective=data["objective"],
                explanation=tuple(data["explanation"]),
                history=tuple((r[0], r[1], r[2], r[3]) for r in data["history"]),
                warnings=tuple(data["warnings"]),
                profile=data["profile"],
                cluster=data["cluster"],
                study_name=data["study"],
                provenance=data["provenance"],
                pareto=_pareto(data),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad search result field: {type(error).__name__}: {error}",
                hint="make it again with `autopar plan --out FILE`",
            ) from error

    def save(self, path: Path) -> None:
        """Write the search result atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> SearchResult:
        """Read a search result.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))


def _baseline(row: dict[str, Any]) -> RankedPlan | Rejection:
    if row.get("rejected"):
        return Rejection(name=row["name"], reason=row["reason"], detail=row["detail"])
    return RankedPlan.from_dict(row)


def _pareto(data: dict[str, Any]) -> ParetoSet | None:
    if "pareto_proof" not in data:
        return None
    from autopar.results.pareto import ParetoSet  # holds ranked plans, so it imports this module

    return ParetoSet.from_dict(data)
