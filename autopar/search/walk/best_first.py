"""Best-bound-first walk over the points of a space, and the certificate it earns."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.cost.work import Levels
from autopar.results import Certificate
from autopar.search.bounds.group_bounds import GroupBounds
from autopar.search.bounds.quick import QuickBounds
from autopar.search.bounds.sharpen import sharpen
from autopar.search.options import SearchOptions
from autopar.search.space.build import PointGroup, Space
from autopar.search.space.plans import build_plan
from autopar.search.space.point import Point
from autopar.search.stages.goal import Goal
from autopar.search.stages.goals import goal_for
from autopar.search.stages.mixed import Known
from autopar.search.stages.partition import PartitionSearch, Solution
from autopar.search.walk.candidates import Candidate, Entry, Queue
from autopar.search.walk.openings import GROUPS_AT_ONCE, LOOK_AHEAD, Openings

if TYPE_CHECKING:
    from autopar.search.walk.shared import SharedPoints

POLL_S = 0.05
"""Pause before points that other workers have claimed are looked at again."""
RUNNER_UP_ACTIONS = 150_000
"""Simulated actions after which no further runner-up is looked for, about a second."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A priced point: its best boundaries, recompute levels if it left them open, objective."""

    point: Point
    cuts: Cuts
    value: float
    levels: Levels | None = None


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
        shared: What other workers on the same stored study price, ``None`` without a storage.
        known: Objectives of plans found elsewhere, which this walk has to beat.
    """

    model: CostModel
    options: SearchOptions
    space: Space
    rejected: Counter[str] = field(default_factory=Counter)
    priced: list[Priced] = field(default_factory=list)
    open_bound: float = math.inf
    simulations: int = 0
    beaten: list[tuple[float, int, Candidate]] = field(default_factory=list)
    shared: SharedPoints | None = None
    known: tuple[float, ...] = ()
    _inherited: deque[Priced] = field(default_factory=deque)
    _settled: set[Point] = field(default_factory=set)
    _proved: dict[Point, float] = field(default_factory=dict)
    _elsewhere: list[tuple[float, int, Candidate]] = field(default_factory=list)
    _known: Known = field(default_factory=Known)
    _heap: list[tuple[float, int, Candidate | Entry | Queue]] = field(default_factory=list)
    _waiting: int = 0
    _openings: Openings = field(init=False)
    _serial: int = 0
    _spent: int = 0

    @cached_property
    def quick(self) -> QuickBounds:
        """Bounds that need no layout."""
        return QuickBounds(self.model, self.options)

    def start(self) -> None:
        """Bound every group; reject those that cannot fit or have no time for the precision."""
        self.rejected += self.space.rejected
        self._openings = Openings(GroupBounds(self.quick, self.space.columns), self.rejected)

    def _open_groups(self, cutoff: float) -> None:
        """Bound the variants of the next groups while one of them may hold the next point."""
        while len(
            some := self._openings.take(cutoff, self._heap[0][0] if self._heap else math.inf)
        ):
            bounds = self._openings.bounds.bounds[some]
            self._push([self.space.groups[i] for i in some], bounds)

    def _push(self, groups: list[PointGroup], least: npt.NDArray[np.float64]) -> None:
        """Put the variants of groups on the heap; those that another includes wait behind it."""
        queues: dict[int, Queue] = {}
        for members, batch in self.quick.by_depth(groups):
            wider = batch.table.wider
            self.rejected["memory"] += int((batch.misfits & batch.valid).sum())
            open_ = batch.valid & ~batch.misfits
            waits = open_ & (wider >= 0) & open_[:, wider]
            if self.options.objective == "memory":
                waits = np.zeros_like(waits)  # the wider choice is faster, not smaller
            self._waiting += int(waits.sum())
            at_hand = open_ & ~waits
            # What waits is bounded when it need not wait any more: hardly ever.
            bounds = batch.bounds(np.logical_or.reduce(at_hand))
            least_of = np.where(at_hand, np.maximum(bounds, least[members][:, None]), np.inf)
            # What is not at hand comes last.
            order = np.argsort(np.where(at_hand, least_of, np.nan), axis=1, kind="stable")
            for row, (index, count) in enumerate(zip(members, at_hand.sum(axis=1), strict=True)):
                if count:
                    queues[index] = Queue(
                        group=groups[index],
                        order=order[row, :count],
                        bounds=least_of[row],
                        waits=waits[row],
                    )
        for index in sorted(queues):
            queue = queues[index]
            self._offer(float(queue.bounds[queue.order[0]]), queue)

    def _take(self, queue: Queue) -> Entry:
        """The best variant of a group; the others go back on the heap."""
        index = int(queue.order[queue.taken])
        queue.taken += 1
        if queue.left:
            self._offer(float(queue.bounds[queue.order[queue.taken]]), queue)
        wider = queue.group.variants.table.wider
        behind = np.flatnonzero(queue.waits & (wider == index))
        return Entry(
            group=queue.group,
            index=index,
            behind=tuple(behind.tolist()),
        )

    def _sharpen(self, first: Queue, bound: float) -> None:
        """Raise the bounds of a queue, and of those that can beat the best, before it is taken."""
        limit = max(self.best, bound * LOOK_AHEAD)
        queues, others = [first], []
        for entry in self._heap:
            _, _, item = entry
            if (
                isinstance(item, Queue)
                and item.sharp_to <= entry[0] < limit
                and item.group.pp == first.group.pp
                and len(queues) < GROUPS_AT_ONCE
            ):
                queues.append(item)
            else:
                others.append(entry)
        heapq.heapify(others)
        self._heap = others
        found = sharpen(self.quick, [q.group for q in queues], [q.bounds for q in queues], limit)
        for queue, bounds in zip(queues, found, strict=True):
            left = queue.order[queue.taken :]
            queue.bounds, queue.sharp_to, queue.taken = bounds, limit, 0
            queue.order = left[np.argsort(bounds[left], kind="stable")]
            self._offer(float(bounds[queue.order[0]]), queue)

    def _offer(self, bound: float, item: Candidate | Entry | Queue) -> None:
        heapq.heappush(self._heap, (bound, self._serial, item))
        self._serial += 1

    def _release(self, entry: Entry | None) -> None:
        """A point does not fit: the ones it would have included may."""
        if entry is None or not entry.behind:
            return
        ((bounds, _),) = self.quick.variants([entry.group])
        if math.isfinite(self.best):
            (bounds,) = sharpen(self.quick, [entry.group], [bounds], self.best)
        for index in entry.behind:
            self._waiting -= 1
            self._offer(float(bounds[index]), Entry(group=entry.group, index=index, behind=()))

    def goal(self, point: Point) -> Goal:
        """Objective and limits on a point."""
        return goal_for(point, self.model, self.options, self._known)

    @property
    def best(self) -> float:
        """Smallest objective so far."""
        return min((*self.known, *(item.value for item in self.priced)), default=math.inf)

    @property
    def least(self) -> float:
        """Smallest bound of a group before anything is priced."""
        return self._openings.least_priced

    def next(self) -> Priced | None:
        """Price the next point worth it; ``None`` when the best is proved and the top is full."""
        while True:
            if (inherited := self._inherit()) is not None:
                return inherited
            entry = self._pop(self.best)
            if entry is None and not self._revisit():
                return self._next_runner_up()
            if entry is None:
                continue
            _, index, candidate = entry
            found = self._solve(candidate)
            if found is None:
                self._elsewhere.append(entry)
                continue
            self.simulations += found.simulations
            if found.bound < found.value:
                self.open_bound = min(self.open_bound, found.bound)
            if found.cuts is not None:
                return self._accept(candidate, found)
            if math.isinf(found.value) and math.isinf(found.bound):
                self.rejected["memory"] += 1
                self._release(candidate.entry)
            else:
                self.beaten.append((found.bound, index, candidate))

    def _solve(self, candidate: Candidate) -> Solution | None:
        """Best boundaries of a point; ``None`` while another worker looks for them."""
        solver, point = self._solver(candidate), candidate.point
        if self.shared is None:
            return solver.solve(self.best, floor=candidate.bound)
        proved = self._proved.get(point)
        if proved is not None and proved >= self.best:
            return Solution(bound=proved)
        number = self.shared.claim(point)
        if number is None:
            return None
        with self.shared.beating(number):
            found = solver.solve(self.best, floor=candidate.bound)
        plan = None
        if found.cuts is not None:
            plan = build_plan(point, found.cuts, self.model, self.options, found.levels).name
        self.shared.finish(number, point, found, plan)
        return found

    def _inherit(self) -> Priced | None:
        """The next point that another worker priced; bounds that others proved are noted."""
        if self.shared is None:
            return None
        for item in self.shared.absorb():
            if item.cuts is None:
                self._proved[item.point] = max(item.bound, self._proved.get(item.point, 0.0))
            elif item.point not in self._settled:
                self._settled.add(item.point)
                if item.bound < item.value:
                    self.open_bound = min(self.open_bound, item.bound)
                priced = Priced(
                    point=item.point, cuts=item.cuts, value=item.value, levels=item.levels
                )
                self.priced.append(priced)
                self._inherited.append(priced)
        return self._inherited.popleft() if self._inherited else None

    def _revisit(self) -> bool:
        """Look again at points that others had claimed, after a moment; False without any."""
        if not self._elsewhere:
            return False
        time.sleep(POLL_S)
        for entry in self._elsewhere:
            heapq.heappush(self._heap, entry)
        self._elsewhere = []
        return True

    def _next_runner_up(self) -> Priced | None:
        for entry in self.beaten:
            heapq.heappush(self._heap, entry)
        self.beaten = []
        while self._spent < RUNNER_UP_ACTIONS:
            values = sorted((*self.known, *(item.value for item in self.priced)))
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
                return self._accept(candidate, found)
            self.rejected["memory"] += 1
            self._release(candidate.entry)
        return None

    def _candidate(self, entry: Entry, bound: float) -> Candidate:
        variant = entry.group.variants.table.variants[entry.index]
        return Candidate(point=entry.group.point(variant), bound=bound, entry=entry)

    def _accept(self, candidate: Candidate, found: Solution) -> Priced:
        assert found.cuts is not None  # the caller looked
        item = Priced(
            point=candidate.point, cuts=found.cuts, value=found.value, levels=found.levels
        )
        self.priced.append(item)
        return item

    def _solver(self, candidate: Candidate) -> PartitionSearch:
        if candidate.partition is None:
            candidate.partition = PartitionSearch(goal=self.goal(candidate.point))
        return candidate.partition

    def _pop(self, cutoff: float) -> tuple[float, int, Candidate] | None:
        """The open point with the smallest refined bound, if that is below a cutoff."""
        while True:
            self._open_groups(cutoff)
            if not self._heap or self._heap[0][0] >= cutoff:
                return None
            bound, index, item = heapq.heappop(self._heap)
            if isinstance(item, Queue):
                if item.sharp_to <= bound and math.isfinite(self.best):
                    self._sharpen(item, bound)
                    continue
                item = self._take(item)
            candidate = item if isinstance(item, Candidate) else self._candidate(item, bound)
            if candidate.point in self._settled:
                continue
            if candidate.partition is not None:
                return bound, index, candidate
            if self._solver(candidate).goal.layout.cannot_sync is not None:
                self.rejected["sync mode does not fit the ranks"] += 1
                self._release(candidate.entry)
                continue
            refined = self._solver(candidate).lower_bound()
            if math.isinf(refined):
                self.rejected["memory"] += 1
                self._release(candidate.entry)
                continue
            candidate.bound = max(bound, refined)
            heapq.heappush(self._heap, (candidate.bound, index, candidate))

    @property
    def unexplored(self) -> float:
        """No plan that was not priced has a smaller objective."""
        bounds = [bound for bound, _, _ in (*self._heap[:1], *self.beaten)]
        return min((*bounds, self._openings.least, self.open_bound))

    def certificate(self) -> Certificate:
        """What was looked at and what can still be better than the best."""
        best = self.best
        unexplored = self.unexplored
        gap = max(0.0, (best - unexplored) / best) if math.isfinite(best) and best > 0 else 0.0
        return Certificate(
            space=self.space.size,
            rejected={k: n for k, n in sorted(self.rejected.items()) if n},
            bounded=sum(i.left if isinstance(i, Queue) else 1 for _, _, i in self._heap)
            + self._waiting
            + len(self.beaten)
            + self._openings.points,
            priced=len(self.priced),
            gap=gap if gap > 1e-12 else 0.0,
            partitions_priced=self.simulations,
        )
