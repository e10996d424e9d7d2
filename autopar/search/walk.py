"""Best-bound-first walk over the points of a space, and the certificate it earns."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.results import Certificate
from autopar.search.goal import Goal
from autopar.search.options import SearchOptions
from autopar.search.partition import PartitionSearch
from autopar.search.plans import layout_for
from autopar.search.quick import QuickBounds
from autopar.search.space import Point, Space

RUNNER_UP_ACTIONS = 150_000
"""Simulated actions after which no further runner-up is looked for, about a second."""


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

    First the best plan is found and proved; then the places behind it are filled with the next
    best points, each with the most promising stage boundaries.

    Attributes:
        model: Shared caches.
        options: What is asked.
        space: The points.
        rejected: Reason -> count; grows with points whose memory never fits.
        priced: Points priced in full, in the order they were.
        open_bound: Smallest bound of boundaries that were given up unproved.
        simulations: Partitions simulated.
        beaten: Points whose boundaries were searched and found no better than the best.
    """

    model: CostModel
    options: SearchOptions
    space: Space
    rejected: Counter[str] = field(default_factory=Counter)
    priced: list[Priced] = field(default_factory=list)
    open_bound: float = math.inf
    simulations: int = 0
    beaten: list[tuple[float, int, Candidate]] = field(default_factory=list)
    _heap: list[tuple[float, int, Candidate]] = field(default_factory=list)
    _spent: int = 0

    @cached_property
    def quick(self) -> QuickBounds:
        """Bounds that need no layout."""
        return QuickBounds(self.model, self.options)

    def start(self) -> None:
        """Bound every point; reject those that cannot fit or have no time for the precision."""
        self.rejected += self.space.rejected
        for index, point in enumerate(self.space.points):
            reason = self.quick.rejection(point)
            if reason is not None:
                self.rejected[reason] += 1
                continue
            candidate = Candidate(point=point, bound=self.quick.bound(point))
            self._heap.append((candidate.bound, index, candidate))
        heapq.heapify(self._heap)

    def goal(self, point: Point) -> Goal:
        """Objective and limits on a point."""
        return Goal(
            layout=layout_for(point, self.model, self.options),
            objective=self.options.objective,
            max_memory_bytes=self.options.max_memory_bytes,
        )

    @property
    def best(self) -> float:
        """Smallest objective so far."""
        return min((item.value for item in self.priced), default=math.inf)

    def next(self) -> Priced | None:
        """Price the next point worth it; ``None`` when the best is proved and the top is full."""
        while (entry := self._pop(self.best)) is not None:
            _, index, candidate = entry
            found = self._solver(candidate).solve(self.best, floor=candidate.bound)
            self.simulations += found.simulations
            if found.bound < found.value:
                self.open_bound = min(self.open_bound, found.bound)
            if found.cuts is not None:
                return self._accept(candidate, found.cuts, found.value)
            if math.isinf(found.value) and math.isinf(found.bound):
                self.rejected["memory"] += 1
            else:
                self.beaten.append((found.bound, index, candidate))
        return self._next_runner_up()

    def _next_runner_up(self) -> Priced | None:
        for entry in self.beaten:
            heapq.heappush(self._heap, entry)
        self.beaten = []
        while self._spent < RUNNER_UP_ACTIONS:
            values = sorted(item.value for item in self.priced)
            full = len(values) >= self.options.top
            if self.options.top == 1 or not values:
                return None
            follower = self._pop(values[self.options.top - 1] if full else math.inf)
            if follower is None:
                return None
            candidate = follower[2]
            self._spent += 2 * candidate.point.stages * candidate.point.microbatches
            found = self._solver(candidate).solve(floor=candidate.bound, first=True)
            self.simulations += found.simulations
            if found.cuts is not None:
                return self._accept(candidate, found.cuts, found.value)
            self.rejected["memory"] += 1
        return None

    def _accept(self, candidate: Candidate, cuts: Cuts, value: float) -> Priced:
        item = Priced(point=candidate.point, cuts=cuts, value=value)
        self.priced.append(item)
        return item

    def _solver(self, candidate: Candidate) -> PartitionSearch:
        if candidate.partition is None:
            candidate.partition = PartitionSearch(goal=self.goal(candidate.point))
        return candidate.partition

    def _pop(self, cutoff: float) -> tuple[float, int, Candidate] | None:
        """The open point with the smallest refined bound, if that is below a cutoff."""
        while self._heap and self._heap[0][0] < cutoff:
            entry = heapq.heappop(self._heap)
            bound, index, candidate = entry
            if candidate.partition is not None:
                return entry
            if self.quick.cannot_fit(candidate.point):
                self.rejected["memory"] += 1
                continue
            refined = self._solver(candidate).lower_bound()
            if math.isinf(refined):
                self.rejected["memory"] += 1
                continue
            candidate.bound = max(bound, refined)
            heapq.heappush(self._heap, (candidate.bound, index, candidate))
        return None

    def certificate(self) -> Certificate:
        """What was looked at and what can still be better than the best."""
        best = self.best
        left = min((bound for bound, _, _ in (*self._heap, *self.beaten)), default=math.inf)
        unexplored = min(left, self.open_bound)
        gap = max(0.0, (best - unexplored) / best) if math.isfinite(best) and best > 0 else 0.0
        return Certificate(
            space=self.space.size,
            rejected=dict(sorted(self.rejected.items())),
            bounded=len(self._heap) + len(self.beaten),
            priced=len(self.priced),
            gap=gap if gap > 1e-12 else 0.0,
            partitions_priced=self.simulations,
        )
