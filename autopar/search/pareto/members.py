"""Members: priced plans with one value per objective, the material of a Pareto set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.cost.work import Levels
from autopar.search.options import SearchOptions
from autopar.search.pareto.front import Vectors, covered, undominated
from autopar.search.space.plans import layout_for
from autopar.search.space.point import Point
from autopar.search.stages.goal import Goal
from autopar.search.stages.goals import goal_for
from autopar.search.stages.partition import PartitionSearch


@dataclass(frozen=True, kw_only=True)
class Member:
    """One priced plan.

    Attributes:
        point: Its point.
        cuts: Stage boundaries.
        levels: Recompute levels, where the point leaves them open.
        values: One per objective.
    """

    point: Point
    cuts: Cuts
    levels: Levels | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an engine leaves beside the members.

    Attributes:
        complete: Nothing is open.
        resolution: Relative steps in memory that were not told apart.
        open_bounds: Bounds of the points that are neither priced nor ruled out.
    """

    complete: bool
    resolution: float
    open_bounds: Vectors


@dataclass(kw_only=True)
class Members:
    """Prices points for several objectives and keeps the plans that nothing dominates.

    Attributes:
        model: Shared caches.
        options: What is asked; its objective is not used.
        objectives: What to minimise.
        kept: Undominated plans so far.
        priced: Plans priced.
    """

    model: CostModel
    options: SearchOptions
    objectives: tuple[str, ...]
    kept: list[Member] = field(default_factory=list)
    priced: int = 0

    @cached_property
    def questions(self) -> tuple[SearchOptions, ...]:
        """The options with one objective each."""
        return tuple(replace(self.options, objective=name) for name in self.objectives)

    @property
    def vectors(self) -> Vectors:
        """Values of the plans that are kept."""
        return np.array([m.values for m in self.kept]).reshape(-1, len(self.objectives))

    def covers(self, bounds: Vectors) -> npt.NDArray[np.bool_]:
        """Which vectors of lower bounds cannot lead to a plan that is not dominated."""
        return covered(bounds, self.vectors)

    def values(self, point: Point, cuts: Cuts, levels: Levels | None) -> tuple[float, ...]:
        """The objectives of a plan; infinite when it does not fit."""
        layout = layout_for(point, self.model, self.options, levels)
        limit = self.options.max_memory_bytes
        return tuple(
            Goal(layout=layout, objective=name, max_memory_bytes=limit).value(cuts)
            for name in self.objectives
        )

    def add(self, point: Point, cuts: Cuts, levels: Levels | None) -> Member | None:
        """Price a plan and keep it unless it is dominated; ``None`` when it does not fit."""
        values = self.values(point, cuts, levels)
        self.priced += 1
        if not np.isfinite(values).all():
            return None
        member = Member(point=point, cuts=cuts, levels=levels, values=values)
        if not self.covers(np.array([values]))[0]:
            self.kept.append(member)
            self.kept = [self.kept[i] for i in undominated(self.vectors)]
        return member

    def searches(self, point: Point) -> list[PartitionSearch]:
        """One search for boundaries per objective."""
        return [
            PartitionSearch(goal=goal_for(point, self.model, question))
            for question in self.questions
        ]

    def explore(self, point: Point) -> bool:
        """Price the boundaries that are best for each objective; False when bounds rule it out."""
        searches = self.searches(point)
        bounds = np.array([[search.lower_bound() for search in searches]])
        if not np.isfinite(bounds).all() or self.covers(bounds)[0]:
            return False
        for search in searches:
            found = search.solve()
            if found.cuts is not None:
                self.add(point, found.cuts, found.levels)
        return True
