"""Bounds of points with several stages per rank: the space has a few boundaries for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.core.arrays import distinct
from autopar.schedules import AbstractSchedule

if TYPE_CHECKING:
    from autopar.search.bounds.batch import Batch

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the steps of some boundaries consist of.

    Attributes:
        own: All work of each rank, and the forwards and messages before its first
            ``[rank, group, sharing, level]``.
        around: All work of each rank, and the way to it and back up.
        elements: Dense elements on each rank ``[rank, group]``.
    """

    own: Array
    around: Array
    elements: Array


class ChunkedBounds:
    """Bounds over the partitions of the space.

    Args:
        batch: Groups of one pipeline depth.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._known: dict[object, list[_Parts]] = {}
        self._held: dict[object, tuple[Array, Array]] = {}
        self._seconds: dict[object, Array] = {}
        counts = batch.m.astype(np.intp)
        self._by_count = [(m, np.flatnonzero(counts == m)) for m in distinct(counts).tolist()]

    def seconds(self, schedule: str, chunks: int, columns: Indices) -> Array:
        """Least step seconds ``[group, column]``.

        Fill before a rank's first forward, all its work, then the way back up or its own tail;
        see :meth:`autopar.cost.bounds.step.Bounds.chunked`.
        """
        batch = self.batch
        found = batch.quick.model.schedule(schedule)
        rank_of = ranks_of(found, batch.pp, batch.pp * chunks)
        # Schedules that place stages alike have equal bounds.
        alike = (batch.table.zero, batch.table.offload, batch.time_level, batch.table.plain)
        key = (
            tuple(rank_of.tolist()),
            found.splits_backward,
            *(of_variant[columns].tobytes() for of_variant in alike),
        )
        if key not in self._seconds:
            self._seconds[key] = self._least_seconds(found, rank_of, columns)
        return self._seconds[key]

    def _least_seconds(
        self, schedule: AbstractSchedule, rank_of: Indices, columns: Indices
    ) -> Array:
        batch, chunks = self.batch, len(rank_of) // self.batch.pp
        sharing, level = batch.sharing[columns], batch.time_level[columns]
        tails = batch.per_element[:, columns]
        ends = (int(rank_of[0]), int(rank_of[-1]))
        tie = batch.tie(ends)[:, None, None]
        at_ends = np.zeros((batch.pp, 1, 1, 1))
        at_ends[list(ends)] = 1.0
        own_tie = tie * at_ends
        best = np.full((len(batch.groups), len(columns)), np.inf)
        for part in self._parts(schedule, rank_of):
            # A way back up ends on the rank of stage 0, which then sums tied parameters.
            back = schedule.splits_backward or not batch.quick.chained
            around = part.around + (own_tie if back else tie)
            own = (part.own + own_tie)[:, :, sharing, level]
            first = (own + part.elements[:, :, None] * tails).max(axis=0)
            second = around.max(axis=0)[:, sharing, level]
            best = np.minimum(best, np.maximum(first, second))
        # A link carries the messages of all chunks of every microbatch.
        return np.asarray(np.maximum(best, chunks * (batch.m * batch.message_s)[:, None]))

    def _parts(self, schedule: AbstractSchedule, rank_of: Indices) -> list[_Parts]:
        """By partition; schedules that place stages alike share them."""
        key = (tuple(rank_of.tolist()), schedule.splits_backward)
        if key not in self._known:
            every = self.batch.quick.cuts(len(rank_of))
            self._known[key] = [self._part(c, rank_of, schedule.splits_backward) for c in every]
        return self._known[key]

    def _part(self, cuts: tuple[int, ...], rank_of: Indices, splits: bool) -> _Parts:
        batch = self.batch
        firsts = np.array([int(np.argmax(rank_of == r)) for r in range(batch.pp)])
        work = batch.ranks.runs("work_sums", cuts, rank_of)
        own = batch.m[:, None, None] * by_rank(work, rank_of, batch.pp)
        elements = by_rank(runs(batch.parameter_sums, cuts), rank_of, batch.pp)
        if not batch.quick.chained:
            return _Parts(own=own, around=own, elements=elements)
        hops = batch.hops_s.T[firsts, :, None, None]
        down = before(batch.ranks.runs("forward_sums", cuts, rank_of), firsts) + hops
        back = down if splits else before(work, firsts) + 2 * hops
        return _Parts(own=down + own, around=back + own, elements=elements)

    def misfit(self, schedule: str, chunks: int, columns: Indices) -> Mask:
        """``[group, column]``: the first rank, which has most in flight, cannot hold its part."""
        batch = self.batch
        found = batch.quick.model.schedule(schedule)
        stages = batch.pp * chunks
        mine = list(found.stages_of(0, batch.pp, stages))
        level = batch.kept_level[columns]
        misfit = np.ones((len(batch.groups), len(columns)), dtype=bool)
        for cuts in batch.quick.cuts(stages):
            stage_bytes, elements = self._bytes(cuts, mine)
            parameters = elements[:, None] * batch.bytes_per_element[:, columns]
            # Peaks need not be known where all microbatches at once would fit.
            most = (stage_bytes.sum(axis=0) * batch.m[:, None])[:, level] + parameters
            peaks = self._all_peaks(found, stages, (most > batch.room[:, :1]).any(axis=1))
            held = peaks[:, 0, :, None] * stage_bytes[0]
            for local in range(1, len(mine)):
                held += peaks[:, local, :, None] * stage_bytes[local]
            misfit &= held.max(axis=0)[:, level] + parameters > batch.room[:, :1]
        return misfit

    def _bytes(self, cuts: tuple[int, ...], mine: Sequence[int]) -> tuple[Array, Array]:
        """Of the first rank: kept bytes ``[stage, group, level]``, elements ``[group]``."""
        key = (cuts, tuple(mine))
        if key not in self._held:
            untied = runs(self._untied_sums, cuts)[mine].sum(axis=0)
            self._held[key] = (runs(self._kept_sums, cuts)[mine], untied)
        return self._held[key]

    def _all_peaks(self, schedule: AbstractSchedule, stages: int, some: Mask) -> Array:
        """Microbatches in flight on the first rank ``[peak, stage, group]``, of some groups."""
        wanted = set(self.batch.m[some].tolist())
        known = [
            (self._peaks(schedule, stages, m), which) for m, which in self._by_count if m in wanted
        ]
        most = max((len(peaks) for peaks, _ in known), default=1)
        found = np.zeros((most, stages // self.batch.pp, len(some)))
        for peaks, which in known:
            found[: len(peaks), :, which] = peaks[:, :, None]
        return found

    @cached_property
    def _kept_sums(self) -> Array:
        return prefix_sums(self.batch.of_rows(lambda row: row.kept))

    @cached_property
    def _untied_sums(self) -> Array:
        return prefix_sums(self.batch.of_rows(lambda row: row.untied_parameters))

    def _peaks(self, schedule: AbstractSchedule, stages: int, microbatches: int) -> Array:
        pp, known = self.batch.pp, self.batch.quick.first_peaks
        key = (schedule.name, pp, stages, microbatches)
        if key not in known:
            if schedule.check(pp, stages, microbatches) is not None:
                known[key] = np.ones((1, stages // pp))
            else:
                known[key] = np.array(self.batch.quick.model.in_flight(*key, 0), dtype=float)
        return known[key]


def ranks_of(schedule: AbstractSchedule, ranks: int, stages: int) -> Indices:
    """Pipeline rank of every stage."""
    return np.array([schedule.rank_of(s, ranks) for s in range(stages)])


def by_rank(values: Array, rank_of: Indices, ranks: int) -> Array:
    """Sums over the stages of each rank, along the first axis; ranks have equally many."""
    stages = np.argsort(rank_of, kind="stable").reshape(ranks, -1)
    total = values[stages[:, 0]]
    for column in stages.T[1:]:
        total += values[column]
    return np.asarray(total)


def before(values: Array, firsts: Indices) -> Array:
    """Sums over the stages before some stages, along the first axis."""
    some = values[: int(firsts.max()) + 1]
    return np.asarray((np.cumsum(some, axis=0) - some)[firsts])


def prefix_sums(values: Array) -> Array:
    """Sums over the blocks before each boundary, blocks last before and boundaries first after.

    Long axes come last, so that one operation works on all groups.
    """
    sums = np.zeros((values.shape[-1] + 1, *values.shape[:-1]))
    np.cumsum(np.moveaxis(values, -1, 0), axis=0, out=sums[1:])
    return sums


def runs(sums: Array, cuts: tuple[int, ...]) -> Array:
    """Sums over the runs between boundaries, from prefix sums, along the first axis."""
    ends = sums[list(cuts)]
    return np.asarray(ends[1:] - ends[:-1])
