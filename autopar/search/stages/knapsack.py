"""The knapsack of :mod:`.mixing` without peaks: relaxation, pruning, enumeration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Counts = npt.NDArray[np.intp]

MAX_STATES = 200_000
"""Partial choices kept at once; about 10 MB and 0.1 s."""
_BEAM = 64
"""Partial choices of the quick first pass that finds a good choice to compare with."""
_PRODUCTS = 1_000_000
"""Combinations looked at in one piece."""
_EQUAL = 1e-12
"""Relative difference below which two sums count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a block.

    Attributes:
        seconds: Time it adds.
        kept_bytes: Bytes kept per microbatch in flight.
        peak_bytes: Bytes that exist while the block runs.
    """

    seconds: float
    kept_bytes: float
    peak_bytes: float = 0.0


def efficient(options: Sequence[Option], peak_bytes: float = math.inf) -> list[int]:
    """Options that no other beats in seconds and kept bytes, by rising kept bytes.

    Args:
        options: Of one block.
        peak_bytes: Options with a larger peak are left out.
    """
    order = sorted(
        (i for i, option in enumerate(options) if option.peak_bytes <= peak_bytes),
        key=lambda i: (options[i].kept_bytes, options[i].seconds, i),
    )
    found: list[int] = []
    for index in order:
        if not found or options[index].seconds < options[found[-1]].seconds:
            found.append(index)
    return found


def lower_hull(kept: Sequence[float], seconds: Sequence[float]) -> list[int]:
    """Corners of the convex hull of efficient options, given by rising kept bytes."""
    corners: list[int] = []
    for index in range(len(kept)):
        while len(corners) > 1:
            a, b = corners[-2:]
            over_b = (seconds[b] - seconds[a]) * (kept[index] - kept[a])
            if over_b < (seconds[index] - seconds[a]) * (kept[b] - kept[a]):
                break
            corners.pop()
        corners.append(index)
    return corners


@dataclass(frozen=True, kw_only=True)
class Group:
    """Blocks with equal options.

    Attributes:
        members: Indices of the blocks.
        indices: Efficient options, by rising kept bytes.
        kept: Their bytes per microbatch in flight.
        seconds: Their seconds.
    """

    members: tuple[int, ...]
    indices: tuple[int, ...]
    kept: Vector
    seconds: Vector

    @classmethod
    def of(cls, options: Sequence[Option], members: tuple[int, ...], peak_bytes: float) -> Group:
        """Blocks whose options may have a peak up to a value."""
        indices = efficient(options, peak_bytes)
        return cls(
            members=members,
            indices=tuple(indices),
            kept=np.array([options[i].kept_bytes for i in indices]),
            seconds=np.array([options[i].seconds for i in indices]),
        )

    @cached_property
    def hull(self) -> list[int]:
        """Corners of the convex hull."""
        return lower_hull(self.kept.tolist(), self.seconds.tolist())

    @cached_property
    def increments(self) -> list[tuple[float, float, int]]:
        """``(bytes, seconds saved, corner before)`` along the hull, for one block."""
        return [
            (float(self.kept[b] - self.kept[a]), float(self.seconds[a] - self.seconds[b]), a)
            for a, b in zip(self.hull, self.hull[1:], strict=False)
        ]

    def columns(self, price: float, allowance: float) -> Counts:
        """Numbers of blocks per option whose regret at a price of bytes is within an allowance.

        Returns:
            One row per way, one column per efficient option.
        """
        weighed = self.seconds + price * self.kept
        regret = weighed - weighed.min()
        base, n = int(regret.argmin()), len(self.members)
        rows = np.zeros((1, len(regret)), dtype=np.intp)
        spent = np.zeros(1)
        for option in np.argsort(-regret):
            if option == base:
                continue
            most = n if regret[option] * n <= allowance else int(allowance / regret[option])
            number = np.arange(most + 1)
            total = spent[:, None] + regret[option] * number
            used = rows.sum(axis=1)[:, None] + number
            source, count = np.nonzero((total <= allowance) & (used <= n))
            rows, spent = rows[source], total[source, count]
            rows[:, option] = count
        rows[:, base] = n - rows.sum(axis=1)
        return rows


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """Least seconds of some groups with fractions of options, by bytes: convex, piecewise linear.

    Attributes:
        kept: Bytes at the corners, rising.
        seconds: Seconds there, falling.
    """

    kept: Vector
    seconds: Vector

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Relaxation:
        """Concatenates the hulls of the groups, steepest part first."""
        groups = list(groups)
        parts = [
            (len(g.members) * size, len(g.members) * saved, saved / size)
            for g in groups
            for size, saved, _ in g.increments
        ]
        parts.sort(key=lambda part: -part[2])
        least = sum(len(g.members) * float(g.kept[0]) for g in groups)
        slowest = sum(len(g.members) * float(g.seconds[0]) for g in groups)
        return cls(
            kept=np.cumsum([least, *(size for size, _, _ in parts)]),
            seconds=slowest - np.cumsum([0.0, *(saved for _, saved, _ in parts)]),
        )

    def at(self, room_bytes: Vector) -> Vector:
        """Least seconds in some bytes; infinite where they do not suffice."""
        found = np.interp(room_bytes, self.kept, self.seconds)
        return np.where(room_bytes < self.kept[0] * (1 - _EQUAL), np.inf, found)

    def price(self, room_bytes: float) -> float:
        """Seconds saved by one more byte."""
        corner = int(np.searchsorted(self.kept, room_bytes, side="right"))
        if corner == 0 or corner == len(self.kept):
            return 0.0
        size = self.kept[corner] - self.kept[corner - 1]
        return float((self.seconds[corner - 1] - self.seconds[corner]) / size)


@dataclass(kw_only=True)
class _States:
    """Partial choices: totals, and where each came from."""

    kept: Vector
    seconds: Vector
    trail: list[tuple[Counts, Counts]] = field(default_factory=list)

    def counts(self, state: int) -> list[Counts]:
        """Numbers of blocks per option, group by group, that led to a state."""
        found = []
        for parents, rows in reversed(self.trail):
            found.append(rows[state])
            state = int(parents[state])
        return found[::-1]


@dataclass(frozen=True, kw_only=True)
class Knapsack:
    """Groups of blocks that share some bytes.

    Attributes:
        groups: With at least one option each.
        room_bytes: For the kept bytes of one microbatch.
    """

    groups: list[Group]
    room_bytes: float

    @cached_property
    def _hull(self) -> Relaxation:
        return Relaxation.of(self.groups)

    @property
    def fits(self) -> bool:
        """True when the smallest options fit."""
        return float(self._hull.kept[0]) <= self.room_bytes

    @cached_property
    def relaxation(self) -> float:
        """Value of the fractional relaxation."""
        return float(self._hull.at(np.array([self.room_bytes]))[0])

    def greedy(self) -> list[Counts]:
        """A choice that fits: the steepest parts of the hulls, whole blocks at a time."""
        counts = [np.zeros(len(g.kept), dtype=np.intp) for g in self.groups]
        parts = []
        for which, group in enumerate(self.groups):
            counts[which][0] = len(group.members)
            for (size, saved, before), after in zip(group.increments, group.hull[1:], strict=True):
                parts.append((-saved / size, which, before, after, size))
        room = self.room_bytes - float(self._hull.kept[0])
        for _, which, before, after, size in sorted(parts):
            moved = min(int(counts[which][before]), max(0, int(room / size)))
            counts[which][before] -= moved
            counts[which][after] += moved
            room -= moved * size
        return counts

    def seconds(self, counts: list[Counts]) -> float:
        """Seconds of a choice."""
        return sum(
            float(row @ group.seconds) for row, group in zip(counts, self.groups, strict=True)
        )

    def solve(self, cutoff: float = math.inf) -> tuple[list[Counts] | None, float]:
        """The best choice below a cutoff, and a bound that no choice below the cutoff beats."""
        best: list[Counts] | None = None
        value, filled = cutoff, self.greedy()
        if self.seconds(filled) < cutoff:
            best, value = filled, self.seconds(filled)
        bound = self.relaxation
        for states in (_BEAM, MAX_STATES):
            if bound >= value * (1 - _EQUAL):
                break
            found, reached, dropped = self._enumerate(value, states)
            if found is not None:
                best, value = found, reached
            bound = min(value, max(bound, dropped))
        return best, bound

    def _enumerate(self, cutoff: float, most: int) -> tuple[list[Counts] | None, float, float]:
        """Best choice below the cutoff, its seconds, and the least bound that was dropped."""
        price = self._hull.price(self.room_bytes)
        allowance = cutoff - self.relaxation
        columns = [group.columns(price, allowance) for group in self.groups]
        order = sorted(range(len(columns)), key=lambda g: len(columns[g]))
        states = _States(kept=np.zeros(1), seconds=np.zeros(1))
        dropped = math.inf
        for place, which in enumerate(order):
            rest = Relaxation.of(self.groups[g] for g in order[place + 1 :])
            lost = self._extend(states, self.groups[which], columns[which], rest, cutoff, most)
            dropped = min(dropped, lost)
            if not len(states.kept):
                return None, math.inf, dropped
        winner = int(states.seconds.argmin())
        ordered = states.counts(winner)
        counts = [ordered[order.index(g)] for g in range(len(order))]
        return counts, float(states.seconds[winner]), dropped

    def _extend(
        self,
        states: _States,
        group: Group,
        rows: Counts,
        rest: Relaxation,
        cutoff: float,
        most: int,
    ) -> float:
        """Add a group to all partial choices in place; returns the least bound dropped."""
        kept, seconds = rows @ group.kept, rows @ group.seconds
        piece = max(1, _PRODUCTS // len(rows))
        found: list[tuple[Vector, Vector, Counts, Counts]] = []
        for start in range(0, len(states.kept), piece):
            part = slice(start, start + piece)
            totals = (states.kept[part, None] + kept).ravel()
            times = (states.seconds[part, None] + seconds).ravel()
            bounds = times + rest.at(self.room_bytes - totals)
            alive = np.flatnonzero(bounds < cutoff * (1 - _EQUAL))
            alive = alive[undominated(totals[alive], times[alive])]
            parents, row = np.divmod(alive, len(rows))
            found.append((totals[alive], times[alive], parents + start, row))
        totals, times, parents, row = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        keep = undominated(totals, times)
        lost = math.inf
        if len(keep) > most:
            bounds = times[keep] + rest.at(self.room_bytes - totals[keep])
            ranked = np.argsort(bounds, kind="stable")
            lost = float(bounds[ranked[most]])
            keep = keep[np.sort(ranked[:most])]
        states.kept, states.seconds = totals[keep], times[keep]
        states.trail.append((parents[keep], rows[row[keep]]))
        return lost

    def picks(self, counts: list[Counts]) -> tuple[int, ...]:
        """Option of every block: in a group, slow options first block first."""
        chosen = [0] * sum(len(group.members) for group in self.groups)
        for row, group in zip(counts, self.groups, strict=True):
            # Efficient options by rising bytes have falling seconds.
            options = [i for i, n in zip(group.indices, row, strict=True) for _ in range(n)]
            for member, option in zip(group.members, options, strict=True):
                chosen[member] = option
        return tuple(chosen)


def undominated(kept: Vector, seconds: Vector) -> Counts:
    """Indices of the pairs that no other pair beats in both."""
    order = np.lexsort((seconds, kept))
    least = np.minimum.accumulate(seconds[order])
    first = np.ones(len(order), dtype=bool)
    first[1:] = seconds[order][1:] < least[:-1]
    return np.asarray(order[first])
