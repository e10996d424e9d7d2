"""Per-block choices inside a stage, exactly: a multiple-choice knapsack.

Each block of a stage picks one option, such as recompute none, selective or full. Options differ
in the seconds they add and in the bytes they keep. A stage has a limit::

    minimise    sum_b seconds(b)
    subject to  copies * sum_b kept_bytes(b) + max_b peak_bytes(b) <= limit_bytes

``kept_bytes`` stay for each of the ``copies`` microbatches in flight, ``peak_bytes`` exist while
one block runs.

**Why a stage may be solved alone.** A step is the longest path through the schedule's actions, so
it never falls when an action takes longer. Where the options of a stage change the length of one
kind of action (recompute: of backward), least total seconds make that action shortest for every
path at once. With fixed stage boundaries and one stage per rank nothing else couples the stages:
solving each alone gives the best step. Three cases are weaker, and there the least seconds are
still a lower bound of the rank's work: options that change forward *and* backward (a path may
hold one more often than the other); several stages on one rank, which share its limit (solve the
union of their blocks); gradient reduction that overlaps backward, where it matters which block
takes the time. For the last case blocks with equal options are given their slow options first
block first: backward reaches those last, so no gradient waits for them.

**Why the answer is the optimum.**

1. An option with no fewer seconds, kept and peak bytes than another never helps: exchange them.
2. Blocks with equal options are interchangeable: only the *number* of them per option matters.
3. The peak of the best choice is the ``peak_bytes`` of some option, so trying each such value
   ``p`` (options above it left out, limit ``limit_bytes - p``) leaves a knapsack without peaks.
4. For any multiplier ``u >= 0``, weighting bytes by ``u`` gives the bound
   ``L(u) = sum_b min_o (s + u * k) - u * limit``; at the slope where the greedy filling of the
   convex hulls stops, ``L`` is the value of the fractional relaxation. A choice costs at least
   ``L`` plus the excess of each of its options over that minimum (their *regret*). Numbers of
   blocks whose regrets exceed ``best known - L`` are left out.
5. What remains is enumerated group by group. A partial choice goes when another one has no more
   bytes and seconds (it can be completed alike), when it cannot fit, or when its seconds plus the
   fractional relaxation of the other groups reach the best known.

Kellerer, Pferschy and Pisinger, *Knapsack Problems* (2004), chapter 11, has all five. The problem
is NP-hard, so partial choices are limited to :data:`MAX_STATES`; beyond that those with the
largest bounds go and :attr:`Choice.bound` says what they might have reached.
"""

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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What every block of a stage picks.

    Attributes:
        picks: Index of the option of each block.
        seconds: Sum of the seconds.
        need_bytes: Bytes needed of the limit.
        bound: No choice has fewer seconds; equals ``seconds`` (to rounding) when proved best.
    """

    picks: tuple[int, ...]
    seconds: float
    need_bytes: float
    bound: float


def solve_stage(
    options: Sequence[Sequence[Option]], limit_bytes: float, copies: float = 1.0
) -> Choice | None:
    """The choice with the fewest seconds that fits, ``None`` when nothing fits.

    Args:
        options: Of each block; equal ones are grouped.
        limit_bytes: For kept and peak bytes together.
        copies: Microbatches in flight.
    """
    blocks: dict[tuple[Option, ...], list[int]] = {}
    for index, block in enumerate(options):
        blocks.setdefault(tuple(block), []).append(index)
    # Sums here and sums of the caller may round differently: stay clear of the limit.
    limit_bytes -= abs(limit_bytes) * _EQUAL
    lowest = max((min(o.peak_bytes for o in kinds) for kinds in blocks), default=0.0)
    peaks = sorted({lowest, *(o.peak_bytes for kinds in blocks for o in kinds)})
    problems = []
    for peak in peaks:
        if lowest <= peak <= limit_bytes:
            groups = [Group.of(kinds, tuple(members), peak) for kinds, members in blocks.items()]
            knapsack = Knapsack(groups=groups, room_bytes=(limit_bytes - peak) / copies)
            if knapsack.fits:
                problems.append((knapsack.relaxation, knapsack))
    best: list[Counts] | None = None
    cutoff, bound, owner = math.inf, math.inf, None
    for relaxed, knapsack in sorted(problems, key=lambda item: item[0]):
        if relaxed >= cutoff * (1 - _EQUAL):
            break
        found, reached = knapsack.solve(cutoff)
        bound = min(bound, reached)
        if found is not None:
            best, owner = found, knapsack
            cutoff = knapsack.seconds(found)
    if best is None or owner is None:
        return None
    return _choice(options, owner.picks(best), copies, bound)


def least_bytes(options: Sequence[Sequence[Option]], copies: float = 1.0) -> Choice:
    """The choice that needs the fewest bytes; of those, one with few seconds.

    For each peak that may be the largest, every block keeps as little as options up to it allow.

    Args:
        options: Of each block.
        copies: Microbatches in flight.
    """
    lowest = max((min(o.peak_bytes for o in block) for block in options), default=0.0)
    best: Choice | None = None
    for peak in sorted({lowest, *(o.peak_bytes for block in options for o in block)}):
        if peak >= lowest:
            picks = tuple(efficient(block, peak)[0] for block in options)
            choice = _choice(options, picks, copies, 0.0)
            if best is None or (choice.need_bytes, choice.seconds) < (
                best.need_bytes,
                best.seconds,
            ):
                best = choice
    assert best is not None  # ``lowest`` itself is tried
    return best


def _choice(
    options: Sequence[Sequence[Option]], picks: tuple[int, ...], copies: float, bound: float
) -> Choice:
    chosen = [block[pick] for block, pick in zip(options, picks, strict=True)]
    seconds = math.fsum(o.seconds for o in chosen)
    kept = math.fsum(o.kept_bytes for o in chosen)
    peak = max((o.peak_bytes for o in chosen), default=0.0)
    return Choice(
        picks=picks,
        seconds=seconds,
        need_bytes=copies * kept + peak,
        bound=min(bound, seconds),
    )


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
