"""Best-bound-first walk over the points of a space, and the certificate it earns."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field

from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.results import Certificate
from autopar.search.goal import Goal
from autopar.search.options import SearchOptions
from autopar.search.partition import PartitionSearch
from autopar.search.plans import layout_for
from autopar.search.quick import QuickBounds
from autopar.search.space import Point, Space


@dataclass(kw_only=True)
class Candidate:
    """A point on its way through the search.

    Attributes:
        point: The choices.
        bound: No plan of the point has a smaller objective.
        partition: Search over its stage boundaries, once it was looked at.
    """

    point: Point
    bound: float
    partition: PartitionSearch | None = None


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A priced point: its best boundaries and their objective."""

    point: Point
    cuts: Cuts
    value: float


@dataclass(kw_only=True)
class Walk:
    """Best-bound-first walk over the points of a space.

    Attributes:
        model: Shared caches.
        options: What is asked.
        space: The points.
        rejected: Reason -> count; grows with points whose memory never fits.
        priced: Points priced in full, in the order they were.
        open_bound: Smallest bound of anything left unexplored.
        simulations: Partitions simulated.
        examined: Points whose boundaries were searched and found no better than the cutoff.
    """

    model: CostModel
    options: SearchOptions
    space: Space
    rejected: Counter[str] = field(default_factory=Counter)
    priced: list[Priced] = field(default_factory=list)
    open_bound: float = math.inf
    simulations: int = 0
    examined: int = 0
    _heap: list[tuple[float, int, Candidate]] = field(default_factory=list)

    def start(self) -> None:
        """Bound every point; reject those that cannot fit or have no time for the precision."""
        self.rejected += self.space.rejected
        quick = QuickBounds(self.model, self.options)
        for index, point in enumerate(self.space.points):
            reason = quick.rejection(point)
            if reason is not None:
                self.rejected[reason] += 1
                continue
            candidate = Candidate(point=point, bound=quick.bound(point))
            self._heap.append((candidate.bound, index, candidate))
        heapq.heapify(self._heap)

    def goal(self, point: Point) -> Goal:
        """Objective and limits on a point."""
        return Goal(
            layout=layout_for(point, self.model, self.options),
            objective=self.options.objective,
            max_memory_bytes=self.options.max_memory_bytes,
        )

    def cutoff(self) -> float:
        """Objective of the N-th best point so far."""
        best = sorted(item.value for item in self.priced)
        return best[self.options.top - 1] if len(best) >= self.options.top else math.inf

    def next(self) -> Priced | None:
        """Price the next point that may be among the best; ``None`` when none can."""
        while self._heap and self._heap[0][0] < self.cutoff():
            bound, index, candidate = heapq.heappop(self._heap)
            if candidate.partition is None:
                candidate.partition = PartitionSearch(goal=self.goal(candidate.point))
                refined = candidate.partition.lower_bound()
                if math.isinf(refined):
                    self.rejected["memory"] += 1
                else:
                    heapq.heappush(self._heap, (max(bound, refined), index, candidate))
                continue
            found = candidate.partition.solve(self.cutoff())
            self.simulations += found.simulations
            if found.cuts is None:
                if math.isinf(self.cutoff()) and math.isinf(found.bound):
                    self.rejected["memory"] += 1
                else:
                    self.open_bound = min(self.open_bound, found.bound)
                    self.examined += 1
                continue
            if found.bound < found.value:
                self.open_bound = min(self.open_bound, found.bound)
            item = Priced(point=candidate.point, cuts=found.cuts, value=found.value)
            self.priced.append(item)
            return item
        return None

    def certificate(self) -> Certificate:
        """What was looked at and what can still be better than the best."""
        best = min((item.value for item in self.priced), default=math.inf)
        left = min((bound for bound, _, _ in self._heap), default=math.inf)
        unexplored = min(left, self.open_bound)
        gap = max(0.0, (best - unexplored) / best) if math.isfinite(best) and best > 0 else 0.0
        return Certificate(
            space=self.space.size,
            rejected=dict(sorted(self.rejected.items())),
            bounded=len(self._heap) + self.examined,
            priced=len(self.priced),
            gap=gap if gap > 1e-12 else 0.0,
            partitions_priced=self.simulations,
        )
