"""The goal of a point."""

from __future__ import annotations

from autopar.cost import CostModel
from autopar.search.options import SearchOptions
from autopar.search.space.plans import layout_for
from autopar.search.space.point import Point
from autopar.search.stages.goal import Goal
from autopar.search.stages.mixed import Known, MixedGoal


def goal_for(
    point: Point,
    model: CostModel,
    options: SearchOptions,
    known: Known | None = None,
) -> Goal:
    """Objective and limits on the layout of a point.

    Args:
        point: The choices.
        model: Shared caches.
        options: What is asked.
        known: What points with equal blocks share, filled as it is needed.
    """
    layout = layout_for(point, model, options)
    if point.recompute != "mixed":
        return Goal(
            layout=layout,
            objective=options.objective,
            max_memory_bytes=options.max_memory_bytes,
        )
    return MixedGoal(
        layout=layout,
        objective=options.objective,
        max_memory_bytes=options.max_memory_bytes,
        known=known or Known(),
    )
