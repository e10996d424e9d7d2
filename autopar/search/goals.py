"""The goal of a point."""

from __future__ import annotations

from autopar.cost import CostModel
from autopar.search.goal import Goal
from autopar.search.mixed import MixedGoal
from autopar.search.options import SearchOptions
from autopar.search.plans import layout_for
from autopar.search.point import Point


def goal_for(point: Point, model: CostModel, options: SearchOptions) -> Goal:
    """Objective and limits on the layout of a point."""
    kind = MixedGoal if point.recompute == "mixed" else Goal
    return kind(
        layout=layout_for(point, model, options),
        objective=options.objective,
        max_memory_bytes=options.max_memory_bytes,
    )
