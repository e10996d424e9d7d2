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
is NP-hard, so partial choices are limited to ``MAX_STATES`` of :mod:`.knapsack`;
beyond that those with the largest bounds go and :attr:`Choice.bound` says what they might have
reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.search.stages.knapsack import Counts, Group, Knapsack, Option, efficient

_EQUAL = 1e-12
"""Relative difference below which two sums count as equal."""


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
