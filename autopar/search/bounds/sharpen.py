"""Nearly exact bounds of points with several stages per rank: their schedule is simulated.

The space has one or two sets of stage boundaries for such a point, so what is open is only what
the simulation takes besides: messages off the chain, latencies inside buckets, experts. All points
of one schedule, depth and number of microbatches are simulated together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autopar.core.arrays import distinct
from autopar.cost.simulation.many import ends_of_many
from autopar.cost.simulation.simulate import Program
from autopar.search.bounds.batch import Array, Batch, Indices, Mask
from autopar.search.bounds.chunked import by_rank, runs
from autopar.search.space.build import PointGroup

if TYPE_CHECKING:
    from autopar.search.bounds.quick import QuickBounds

MOST_ACTIONS = 1_500
"""Actions of a schedule, per point that shares it, up to which it is simulated; longer ones have
small bubbles, which the closed bounds know well enough."""
_ROUNDING = 1 - 1e-12
"""Sums in another order than the price's may differ in the last digits."""


def sharpen(
    quick: QuickBounds, groups: Sequence[PointGroup], bounds: Sequence[Array], limit: float
) -> list[Array]:
    """The bounds of every variant, those below a limit raised to what the schedule takes.

    Args:
        quick: What the bounds are of.
        groups: Of one pipeline depth.
        bounds: By group, of every variant of its table.
        limit: Bounds from here on stay as they are.
    """
    before = np.array(bounds)
    exact = quick.chained and quick.options.objective != "memory"
    if not exact or groups[0].pp == 1:
        return list(before)
    valid = np.array([group.variants.valid for group in groups])
    found = _to_simulate(quick, groups, valid & (before < limit))
    if not found:
        return list(before)
    some = distinct(np.concatenate([rows for _, rows, _ in found]))
    batch = Batch(quick, [groups[i] for i in some.tolist()])
    seconds = np.zeros((len(some), before.shape[1]))
    for program, rows, columns in found:
        places = np.searchsorted(some, rows)
        seconds[places, columns] = _Cases(batch, program, places, columns).least_seconds()
    before[some] = np.maximum(before[some], batch.objectives(seconds * _ROUNDING))
    return list(before)


def _to_simulate(
    quick: QuickBounds, groups: Sequence[PointGroup], wanted: Mask
) -> list[tuple[Program, Indices, Indices]]:
    """Schedules that are short for the points that share them, and group and variant of each."""
    found = []
    pp, counts = groups[0].pp, np.array([group.microbatches for group in groups])
    for (schedule, chunks), columns in groups[0].variants.table.schedules:
        stages = pp * chunks
        if chunks == 1 or not quick.cuts(stages):
            continue
        for m in distinct(counts).tolist():
            rows, picked = np.nonzero(wanted[:, columns] & (counts == m)[:, None])
            if len(rows) and 3 * stages * m <= MOST_ACTIONS * len(rows):
                program = quick.model.program(schedule, pp, stages, m)
                found.append((program, rows, columns[picked]))
    return found


class _Cases:
    """Points that share a compiled schedule.

    Args:
        batch: Their groups.
        program: The schedule.
        rows: Group of each case.
        columns: Variant of each case.
    """

    def __init__(self, batch: Batch, program: Program, rows: Indices, columns: Indices) -> None:
        self.batch = batch
        self.program = program
        self.rows = rows
        self.columns = columns

    def least_seconds(self) -> Array:
        """Least step seconds over the stage boundaries of the space ``[case]``."""
        every = self.batch.quick.cuts(self.program.stages)
        durations = np.concatenate([self._durations(cuts) for cuts in every], axis=1)
        hops = np.tile(self._hops(), len(every))
        ends = np.split(ends_of_many(self.program, durations, hops), len(every), axis=1)
        found = [self._step(cuts, free) for cuts, free in zip(every, ends, strict=True)]
        return np.asarray(np.minimum.reduce(found))

    def _step(self, cuts: tuple[int, ...], free: Array) -> Array:
        """Seconds where ranks have run their last actions at ``free`` ``[rank, case]``."""
        batch, program = self.batch, self.program
        rank_of = np.array(program.rank_of)
        elements = by_rank(runs(batch.parameter_sums, cuts), rank_of, program.ranks)
        tail = elements[:, self.rows] * batch.per_element[self.rows, self.columns]
        ends = (int(rank_of[0]), int(rank_of[-1]))
        tie = batch.tie(ends)[self.rows]
        both = free[list(ends)].max(axis=0) + tie
        return np.asarray(np.maximum((free + tail).max(axis=0), both))

    def _durations(self, cuts: tuple[int, ...]) -> Array:
        """Seconds ``[node, case]``."""
        batch, model = self.batch, self.batch.quick.model
        sharing, level = batch.sharing[self.columns], batch.time_level[self.columns]
        overhead = model.cluster.overhead
        rank_of = np.array(self.program.rank_of)
        forward = batch.ranks.runs("forward_sums", cuts, rank_of)[:, self.rows, sharing, 0]
        work = batch.ranks.runs("work_sums", cuts, rank_of)[:, self.rows, sharing, level]
        backward = work - forward
        forward, backward = (
            forward + overhead.forward_action_s,
            backward + overhead.backward_action_s,
        )
        if not self.program.splits:
            return np.concatenate((forward, backward))
        weight = batch.ranks.runs("weight_sums", cuts, rank_of)[:, self.rows]
        return np.concatenate((forward, backward - weight, weight))

    def _hops(self) -> Array:
        """Seconds of a message from each stage to the next ``[stage, case]``."""
        batch, rank_of = self.batch, np.array(self.program.rank_of)
        steps = np.diff(batch.hops_s, axis=1)[self.rows].T
        low = np.minimum(rank_of[1:], rank_of[:-1])
        hops = steps[np.minimum(low, len(steps) - 1)]
        gap = np.abs(np.diff(rank_of))
        hops[gap == 0] = 0.0
        if (gap > 1).any():
            hops[gap > 1] = batch.around_s[self.rows]
        return np.asarray(hops)
