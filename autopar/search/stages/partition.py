"""Stage boundaries, exactly: bounds by dynamic programming, branch and bound on simulations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autopar.cost.layout import Cuts
from autopar.cost.work import Levels
from autopar.search.stages.chunks import chunked_cuts, equal_blocks, equal_work
from autopar.search.stages.goal import Goal

MAX_ACTIONS = 1_500_000
"""Simulated actions one branch and bound may spend, one to three seconds."""
STEADY_ROUNDS = 4
"""Microbatches per stage that a simulation runs through before it jumps over what repeats itself.

Counted with 32 per stage on 2 to 16 ranks, stages equal or up to 30 % apart: 3 in the median with
1F1B, 2.5 to 7 with zero bubble, up to all of them; GPipe repeats nothing. It sets a budget only.
"""
MAX_VISITS = 150_000
"""Stages one branch and bound may place, times the stages of the layout: about a second."""
_EQUAL = 1e-12
"""Relative difference below which two values count as equal."""


@dataclass(kw_only=True)
class Solution:
    """What a partition search found.

    Attributes:
        cuts: Best boundaries, ``None`` when none beats the cutoff.
        value: Their objective.
        bound: No boundaries of the layout have an objective below this.
        simulations: Partitions simulated.
        levels: Recompute level of every block, where the point left it open.
    """

    cuts: Cuts | None = None
    value: float = math.inf
    bound: float = math.inf
    simulations: int = 0
    levels: Levels | None = None


@dataclass(kw_only=True)
class PartitionSearch:
    """Best stage boundaries of one layout.

    Attributes:
        goal: Objective and limits.
    """

    goal: Goal
    tables: list[npt.NDArray[np.float64]] = field(default_factory=list)
    suffix: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def lower_bound(self) -> float:
        """Minimum over the boundaries of the largest stage bound; ``inf`` when none fits.

        ``suffix[s][i]`` is that minimum for stages ``s, s + 1 ...`` over blocks ``i, i + 1 ...``.
        """
        if self.goal.chunked:
            return self.goal.floor()
        if not self.suffix:
            layout, band = self.goal.layout, self.goal.band
            n, stages = layout.tables.count, layout.stages
            self.tables = [self.goal.stage_table(s) for s in range(stages)]
            after = np.full(n + 1, np.inf)
            after[n] = -np.inf
            self.suffix = [after]
            for table in reversed(self.tables):
                after = np.maximum(table, band.by_end(after)).min(axis=1)
                self.suffix.append(after)
            self.suffix.reverse()
        return max(float(self.suffix[0][0]), self.goal.floor())

    def solve(
        self, cutoff: float = math.inf, *, floor: float = 0.0, first: bool = False
    ) -> Solution:
        """The boundaries with the smallest simulated objective below ``cutoff``.

        Depth first, most promising stage end first; a branch is cut when its bound does not beat
        the best value. Stops at :data:`MAX_ACTIONS` or :data:`MAX_VISITS` and then reports the
        smallest bound left open.

        Args:
            cutoff: Only boundaries with a smaller objective count.
            floor: A bound known from elsewhere.
            first: Stop at the first boundaries that fit, the most promising ones.
        """
        found = Solution(value=cutoff)
        if self.lower_bound() >= cutoff:
            found.bound = cutoff
            return found
        if self.goal.chunked:
            return self._chunked(found)
        search = _Descent(self, found, floor, first)
        if not first:
            for cuts in seeds(self.goal):
                search.leaf(cuts)
        search.visit((0,), -math.inf)
        if search.open_bound < found.value and not first:
            search.improve()
        found.bound = min(found.value, max(search.open_bound, floor))
        if self.goal.open_levels and found.cuts is not None:
            found.levels = self.goal.levels(found.cuts)
        return found

    def _chunked(self, found: Solution) -> Solution:
        """Price every partition of the space."""
        layout = self.goal.layout
        for cuts in chunked_cuts(layout.model.profile, layout.stages):
            value = self.goal.value(cuts)
            found.simulations += 1
            if value < found.value:
                found.value, found.cuts = value, cuts
        found.bound = found.value
        return found


class _Descent:
    """The recursion of one branch and bound."""

    def __init__(
        self, search: PartitionSearch, found: Solution, floor: float, first: bool
    ) -> None:
        layout = search.goal.layout
        self.search = search
        self.found = found
        self.floor = floor
        self.first = first
        self.nodes = 0
        self.open_bound = math.inf
        self.stages = layout.stages
        self.max_nodes = layout.stages + MAX_VISITS // layout.stages
        simulated = min(layout.microbatches, STEADY_ROUNDS * layout.stages)
        self.max_simulations = 1 + MAX_ACTIONS // (2 * layout.stages * simulated)
        self.prefix_bound: Callable[[Cuts], float] = search.goal.prefix_bound

    def visit(self, cuts: Cuts, bound: float) -> None:
        """Try every end of the next stage."""
        stage, start = len(cuts) - 1, cuts[-1]
        row = self.search.tables[stage][start]
        first = start + self.search.goal.band.shortest
        after = self.search.suffix[stage + 1][first : first + len(row)]
        row = row[: len(after)]
        bounds = np.maximum(np.maximum(row, after), bound)
        for width in np.argsort(bounds, kind="stable"):
            value = float(bounds[width])
            if value >= self._cutoff():
                return
            if self._spent():
                self.open_bound = min(self.open_bound, value)
                return
            self.nodes += 1
            extended = (*cuts, first + int(width))
            if stage + 1 == self.stages:
                self.leaf(extended)
                continue
            value = max(value, self.prefix_bound(extended))
            if value < self._cutoff():
                self.visit(extended, value)

    def _cutoff(self) -> float:
        """Bounds from here up are not worth following: the best value, or nothing can beat it."""
        if self.found.cuts is not None and self.found.value <= self.floor * (1 + _EQUAL):
            return -math.inf
        return self.found.value * (1 - _EQUAL)

    def _spent(self) -> bool:
        if self.first and self.found.cuts is not None:
            return True
        return self.nodes >= self.max_nodes or self.found.simulations >= self.max_simulations

    def improve(self) -> None:
        """Local search from the best boundaries: move one block between any two stages.

        The blocks between them shift by one stage. Spends as many simulations as the descent
        may, and only where the descent could not finish.
        """
        budget = self.found.simulations + self.max_simulations
        moved = True
        while moved and self.found.cuts is not None:
            moved = False
            start = self.found.cuts
            wide = [s for s in range(self.stages) if start[s + 1] - start[s] > 1]
            for source, target in itertools.product(wide, range(self.stages)):
                if self.found.simulations >= budget:
                    return
                if source != target and self.leaf(shifted(start, source, target)):
                    moved = True
                    break

    def leaf(self, cuts: Cuts) -> bool:
        """Simulate; True when this is the best so far."""
        self.found.simulations += 1
        value = self.search.goal.value(cuts)
        if value < self.found.value:
            self.found.value, self.found.cuts = value, cuts
            return True
        return False


def shifted(cuts: Cuts, source: int, target: int) -> Cuts:
    """Boundaries after one block left ``source`` and one arrived at ``target``."""
    low, high, step = (source + 1, target, -1) if source < target else (target + 1, source, 1)
    return tuple(c + step if low <= s <= high else c for s, c in enumerate(cuts))


def seeds(goal: Goal) -> list[Cuts]:
    """Plain boundaries to start from: equal time, and equal numbers of blocks."""
    layout = goal.layout
    n, stages = layout.tables.count, layout.stages
    if stages == 1:
        return []
    forward, backward = goal.bounds.block_seconds
    return list(dict.fromkeys([equal_work(forward + backward, stages), equal_blocks(n, stages)]))
