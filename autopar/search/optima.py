"""Best plans for one objective at a time: where searches for several objectives start."""

from __future__ import annotations

from dataclasses import replace

from autopar.cost import CostModel
from autopar.search.members import Members
from autopar.search.options import SearchOptions
from autopar.search.space import Space
from autopar.search.walk import Priced, Walk

_EQUAL = 1e-12
"""Relative difference below which two objectives count as equal."""


def optimum(model: CostModel, options: SearchOptions, space: Space) -> tuple[Priced | None, bool]:
    """The best plan of a space for one objective, and whether it is proved."""
    walk = Walk(model=model, options=replace(options, top=1), space=space)
    walk.start()
    while walk.next() is not None:
        pass
    best = min(walk.priced, key=lambda item: item.value, default=None)
    # The walk ends when no bound is below the best; what it gave up is in ``open_bound``.
    return best, best is None or walk.open_bound >= best.value * (1 - _EQUAL)


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
