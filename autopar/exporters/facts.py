"""Facts: everything a plan states, one key each, so that an export can account for all of it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from autopar.plans import Plan, Stage

_OTHERWISE = ("task", "mesh", "stages", "placement", "predicted")
"""Fields that are split into several facts below, or that say what to expect (``predicted``)."""


def facts(plan: Plan) -> dict[str, Any]:
    """What a plan states beyond the defaults: key -> value.

    Keys are ``task``, ``mesh.AXIS``, ``stages`` (the cuts), ``recompute``, ``selective`` and
    ``units`` (op ranges of all stages), ``placement``, and the names of all other fields of
    :class:`Plan`; a field added to the class is a fact without a change here.
    """
    result: dict[str, Any] = {"task": plan.task.target or plan.task.name}
    for axis, degree in plan.mesh.to_dict().items():
        if degree > 1:
            result[f"mesh.{axis}"] = degree
    if len(plan.stages) > 1:
        result["stages"] = [[stage.first_op, stage.stop_op, stage.pp] for stage in plan.stages]
    for key in ("recompute", "selective", "units"):
        ranges = _ranges(plan.stages, key)
        if ranges:
            result[key] = ranges
    if plan.placement != tuple(range(plan.world_size)):
        result["placement"] = list(plan.placement)
    for item in fields(Plan):
        if item.name in _OTHERWISE:
            continue
        value = getattr(plan, item.name)
        if item.default is MISSING or value != item.default:
            result[item.name] = list(value) if isinstance(value, tuple) else value
    return result


def _ranges(stages: tuple[Stage, ...], key: str) -> list[list[int]]:
    return [list(pair) for stage in stages for pair in getattr(stage, key)]


def recomputes_all(plan: Plan, key: str) -> bool:
    """True when ``recompute`` or ``selective`` ranges cover the whole model."""
    return share_recomputed(plan.stages, key) == 1.0


def share_recomputed(stages: tuple[Stage, ...], key: str) -> float:
    """Share of the ops of some stages that a kind of recompute covers, 0 to 1."""
    covered = sum(stop - first for first, stop in _ranges(stages, key))
    return covered / sum(stage.stop_op - stage.first_op for stage in stages)
