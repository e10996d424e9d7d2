"""Which groups of a space come next: by rising bound, sharpened as far as it matters."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from autopar.search.bounds.group_bounds import SHARPEST, GroupBounds, Indices

GROUPS_AT_ONCE = 512
"""Groups whose variants are bounded together."""
FEW_GROUPS = 128
"""Groups up to which one more hardly adds to the time that bounding their variants takes.

Of 16 to 256, searches of ``scripts/bench_search`` on 16 to 64 devices take least: 16 saves 3 % on
the two of GPT and costs 20 % on BERT, 256 costs 18 to 43 %.
"""
FEW_SHARPENED = 256
"""The same of making their own bounds sharper: 64 to 1024 differ by less than runs do."""
LOOK_AHEAD = 1.05
"""Groups with bounds up to this factor of the next one are bounded with it."""


class Openings:
    """The groups whose variants were not bounded yet.

    Args:
        bounds: Of the groups.
        rejected: Reason -> count of points; grows with groups of which no variant can work.
    """

    def __init__(self, bounds: GroupBounds, rejected: Counter[str]) -> None:
        self.bounds = bounds
        self._rejected = rejected
        columns = bounds.columns
        counts = np.array([some.count for some in columns.sets], dtype=np.int64)
        self._counts = counts[columns.set]
        self._left = np.arange(len(columns.groups))
        self._sort()
        self._sharpen(self._left[bounds.bounds[self._left] == 0.0])

    @property
    def least(self) -> float:
        """Smallest bound of a group; infinite without any."""
        return float(self.bounds.bounds[self._left[0]]) if len(self._left) else math.inf

    @property
    def least_priced(self) -> float:
        """:attr:`least`, from the seconds of blocks."""
        while len(self._left) and self.bounds.steps[self._left[0]] == 0:
            bounds = self.bounds.bounds[self._left]
            self._sharpen(self._left[bounds == bounds[0]])
        return self.least

    @property
    def points(self) -> int:
        """Points of the groups."""
        return int(self._counts[self._left].sum())

    def take(self, cutoff: float, at_hand: float) -> Indices:
        """The next groups, none when no group can hold the next point.

        Args:
            cutoff: Only groups with smaller bounds count.
            at_hand: Bound of the best variant that is at hand; it may be looked at only after
                every group with a smaller bound.
        """
        while self.least < min(cutoff, at_hand):
            bounds = self.bounds.bounds[self._left]
            reach = max(self.least * LOOK_AHEAD, at_hand if math.isfinite(at_hand) else 0.0)
            worth = self._left[bounds < cutoff]
            count = int((bounds[: len(worth)] <= reach).sum())
            near = worth[: max(count, FEW_GROUPS)]
            if (self.bounds.steps[near] == SHARPEST).all():
                self._left = self._left[len(near[:GROUPS_AT_ONCE]) :]
                return near[:GROUPS_AT_ONCE]
            some = worth[: max(count, FEW_SHARPENED)]
            self._sharpen(some[self.bounds.steps[some] < SHARPEST])
        return self._left[:0]

    def _sharpen(self, some: Indices) -> None:
        self.bounds.sharpen(some)
        self._sort()

    def _sort(self) -> None:
        """By bound, then by place in the space; what cannot work is rejected."""
        dead = self.bounds.dead[self._left]
        left, gone = self._left[dead == 0], self._left[dead > 0]
        points = np.bincount(self.bounds.dead[gone], weights=self._counts[gone])
        for code in np.flatnonzero(points).tolist():
            self._rejected[self.bounds.reason(code) or ""] += int(points[code])
        self._left = left[np.lexsort((left, self.bounds.bounds[left]))]
