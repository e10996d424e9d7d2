"""Scores of predictions: errors by source, and how good the chosen plans would have been."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autopar.core.stats import kendall_tau
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.predictor import Prediction

Array = npt.NDArray[np.float64]

LEAST_PLANS = 5
"""Measured plans a group needs to say something about choosing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyScore:
    """Relative errors of one source.

    Attributes:
        family: Prefix of the row ids.
        rows: Number of rows.
        median: Median of the absolute relative errors.
        mean: Their mean.
        p90: Their 90 % quantile.
        worst: Their largest.
        covered: Part of the rows inside the 90 % range.
    """

    family: str
    rows: int
    median: float
    mean: float
    p90: float
    worst: float
    covered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScore:
    """One set of alternatives: same model, devices and batch.

    Attributes:
        family: Source.
        model: As printed.
        device: As printed.
        devices: How many.
        global_batch: Sequences per step.
        plans: Different measured plans.
        regret: Measured time of the plan the model picks over the best, minus 1.
        rule_regret: The same for the rule "most data parallel, then the largest microbatch".
        in_top3: The best measured plan is among the three that the model likes most.
        kendall_tau: Rank correlation of predicted and measured times.
    """

    family: str
    model: str
    device: str
    devices: int
    global_batch: float
    plans: int
    regret: float
    rule_regret: float
    in_top3: bool
    kendall_tau: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Measured(Protocol):
    """What an error can be told of."""

    @property
    def family(self) -> str:
        """Source."""

    @property
    def measured_s(self) -> float | None:
        """Step time."""


def family_scores(rows: Sequence[Measured], found: Prediction) -> list[FamilyScore]:
    """Errors by source, and over all."""
    measured = np.array([row.measured_s or np.nan for row in rows])
    error = np.abs(found.value_s / measured - 1)
    inside = (measured >= found.low_s) & (measured <= found.high_s)
    families = np.array([row.family for row in rows])
    scores = [
        _score(name, error[families == name], inside[families == name])
        for name in sorted(set(families.tolist()))
    ]
    return [*scores, _score("all", error, inside)] if rows else []


def _score(family: str, error: Array, inside: npt.NDArray[np.bool_]) -> FamilyScore:
    return FamilyScore(
        family=family,
        rows=len(error),
        median=float(np.median(error)),
        mean=float(error.mean()),
        p90=float(np.quantile(error, 0.9)),
        worst=float(error.max()),
        covered=float(inside.mean()),
    )


def choice_scores(rows: Sequence[Row], predicted_s: Array) -> list[ChoiceScore]:
    """How good the picked plans are, for every set of at least :data:`LEAST_PLANS` plans."""
    sets: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        sets.setdefault(row.choice, []).append(index)
    scores = []
    for members in sets.values():
        plans = _plans([rows[i] for i in members], predicted_s[members])
        if len(plans) >= LEAST_PLANS:
            scores.append(_choice(plans))
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class _MeasuredPlan:
    """A plan with the median of its runs."""

    row: Row
    measured_s: float
    predicted_s: float


def _plans(rows: Sequence[Row], predicted_s: Array) -> list[_MeasuredPlan]:
    runs: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        plan = (row.dp, row.tp, row.pp, row.vpp, row.cp, row.ep, row.micro_batch, row.zero)
        key = (*plan, row.zero_ranks, row.recompute, row.sequence_parallel, row.stage_layers)
        runs.setdefault(key, []).append(index)
    return [
        _MeasuredPlan(
            row=rows[indices[0]],
            measured_s=float(np.median([rows[i].measured_s or math.nan for i in indices])),
            predicted_s=float(np.median(predicted_s[indices])),
        )
        for indices in runs.values()
    ]


def _choice(plans: Sequence[_MeasuredPlan]) -> ChoiceScore:
    best = min(plan.measured_s for plan in plans)
    liked = sorted(plans, key=lambda plan: plan.predicted_s)
    rule = max(plans, key=lambda plan: (plan.row.dp, plan.row.micro_batch))
    row = plans[0].row
    return ChoiceScore(
        family=row.family,
        model=row.model,
        device=row.printed.get("gpu", row.platform.device),
        devices=row.devices,
        global_batch=row.global_batch,
        plans=len(plans),
        regret=liked[0].measured_s / best - 1,
        rule_regret=rule.measured_s / best - 1,
        in_top3=any(plan.measured_s == best for plan in liked[:3]),
        kendall_tau=kendall_tau(
            [plan.predicted_s for plan in plans], [plan.measured_s for plan in plans]
        ),
    )
