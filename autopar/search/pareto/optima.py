"""Best plans for one objective at a time: where searches for several objectives start."""

from __future__ import annotations

import math
from dataclasses import replace

from autopar.cost import CostModel
from autopar.search.options import SearchOptions
from autopar.search.pareto.members import Members
from autopar.search.space.build import Space
from autopar.search.walk.best_first import Priced, Walk

_EQUAL = 1e-12
"""Relative difference below which two objectives count as equal."""


def optimum(model: CostModel, options: SearchOptions, space: Space) -> tuple[Priced | None, float]:
    """The best plan of a space for one objective, and a bound that no plan of it beats.

    The bound equals the plan's objective when it is proved; infinite when nothing can fit.
    """
    walk = Walk(model=model, options=replace(options, top=1), space=space)
    walk.start()
    while walk.next() is not None:
        pass
    best = min(walk.priced, key=lambda item: item.value, default=None)
    # The walk ends when no bound is below the best; what it gave up is in ``open_bound``.
    least = math.inf if best is None else best.value
    return best, least if walk.open_bound >= least * (1 - _EQUAL) else walk.open_bound


def by_world(space: Space) -> list[Space]:
    """The space for each number of devices."""
    worlds = sorted({group.world for group in space.groups})
    return [
        replace(space, groups=tuple(g for g in space.groups if g.world == world))
        for world in worlds
    ]


def seed_members(members: Members, space: Space) -> None:
    """The best plan of each objective, over the space and on each number of devices."""
    for part in by_world(space):
        for question in members.questions:
            best, _ = optimum(members.model, question, part)
            if best is not None:
                members.add(best.point, best.cuts, best.levels)
