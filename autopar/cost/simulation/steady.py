"""The periodic part of a schedule, and the jump over it once the simulation repeats.

Between warm-up and drain a schedule does the same actions again and again for later microbatches.
What happens next depends only on the clocks: when ranks and links are free and messages under way
arrive. Once all of them are a constant later than some periods ago, every later period adds that
constant too, so the rest can be skipped. The step from one period to the next never enlarges a
difference of clocks (it is made of maxima and sums), so clocks that agree within
:data:`TOLERANCE` give an end time within that times the periods skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Order = tuple[tuple[int, int, int], ...]
"""``(rank, node, microbatch)`` of every action."""

TOLERANCE = 1e-13
"""Difference of clocks, as a part of the time now, that counts as rounding."""
LEAST_PERIODS = 4
"""Fewer periods are not worth a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The periodic part of an order.

    Attributes:
        start: Its first action.
        length: Actions per period; each node once for each of ``shift`` microbatches.
        shift: Microbatches per period.
        periods: Whole periods.
        done: Microbatches by node before ``start``.
    """

    start: int
    length: int
    shift: int
    periods: int
    done: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Clocks:
    """What a simulation knows at one moment.

    Attributes:
        free: Time at which each rank has done its last action.
        link_free: The same of each link.
        arrival: Arrival of each message, by slot.
    """

    free: list[float]
    link_free: list[float]
    arrival: list[float]


def needed(node: int, stages: int) -> int:
    """Node that must have done a microbatch before this one can; -1 for the first forward."""
    if node < stages:
        return node - 1
    if node >= 2 * stages:
        return node - stages
    return node + 1 if node < 2 * stages - 1 else stages - 1


def find_steady(order: Order, nodes: int, shifts: Sequence[int]) -> Steady | None:
    """The longest periodic part, with the first shift that gives one of several periods."""
    for shift in shifts:
        length = shift * nodes
        start, repeats = _longest(order, length, shift)
        periods = repeats // length + 1
        if repeats and periods >= LEAST_PERIODS:
            done = [0] * nodes
            for _, node, _ in order[:start]:
                done[node] += 1
            return Steady(
                start=start, length=length, shift=shift, periods=periods, done=tuple(done)
            )
    return None


def _longest(order: Order, length: int, shift: int) -> tuple[int, int]:
    """Start and number of actions that come again ``length`` actions later."""
    breaks = [
        index
        for index, ((_, node, microbatch), (_, later, its)) in enumerate(
            zip(order, order[length:], strict=False)
        )
        if node != later or microbatch + shift != its  # a node is on one rank
    ]
    ends = [-1, *breaks, max(len(order) - length, 0)]
    runs = [(stop - start - 1, -start - 1) for start, stop in itertools.pairwise(ends)]
    repeats, start = max(runs)
    return (-start, repeats) if repeats else (0, 0)


class Watch:
    """Compares clocks at the ends of periods.

    Args:
        steady: The periodic part.
        windows: ``(first slot, sending node, reading node)`` of every kind of message.
    """

    def __init__(self, steady: Steady, windows: Sequence[tuple[int, int, int]]) -> None:
        self.steady = steady
        self.spans = [
            (slot + steady.done[reader], slot + steady.done[sender])
            for slot, sender, reader in windows
            if steady.done[sender] > steady.done[reader]
        ]
        self._reference: list[float] = []
        self._since = 0

    def skip(self, clocks: Clocks, period: int) -> int:
        """Periods after the given one that need no simulation; clocks are moved past them."""
        now = self._read(clocks, period)
        late = self._lateness(now)
        cycle = period - self._since
        if late is None or not cycle:
            if not self._reference or cycle >= len(clocks.free):
                self._reference, self._since = now, period
            return 0
        cycles = (self.steady.periods - 1 - period) // cycle
        if cycles:
            self._move(clocks, period, cycles * cycle, cycles * late)
        return cycles * cycle

    def _read(self, clocks: Clocks, period: int) -> list[float]:
        offset = (period + 1) * self.steady.shift
        values = clocks.free + clocks.link_free
        for first, stop in self.spans:
            values += clocks.arrival[first + offset : stop + offset]
        return values

    def _lateness(self, now: list[float]) -> float | None:
        """Seconds by which all clocks are later than the reference; ``None`` if they differ."""
        if not self._reference:
            return None
        late = now[0] - self._reference[0]
        room = TOLERANCE * now[0]
        for value, before in zip(now, self._reference, strict=True):
            if not -room <= value - before - late <= room:
                return None
        return late

    def _move(self, clocks: Clocks, period: int, periods: int, seconds: float) -> None:
        clocks.free[:] = [t + seconds for t in clocks.free]
        clocks.link_free[:] = [t + seconds for t in clocks.link_free]
        offset = (period + 1) * self.steady.shift
        jump = periods * self.steady.shift
        for first, stop in self.spans:
            moved = [t + seconds for t in clocks.arrival[first + offset : stop + offset]]
            clocks.arrival[first + offset + jump : stop + offset + jump] = moved
