"""Closed-form lower bounds of the simulated step time; never above it.

Each bound is the weight of one path through the step's dependency graph (program order on a rank,
messages between ranks), and the step takes at least as long as any such path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.core.arrays import distinct_places
from autopar.cost.bounds.prefix import prefix_seconds
from autopar.cost.communication.sync import StageSync
from autopar.cost.layout import Cuts, Layout
from autopar.cost.tables import Table

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Band:
    """Runs of some lengths: entry ``[i, w - shortest]`` stands for blocks ``[i, i + w)``.

    Attributes:
        blocks: Number of blocks.
        width: Longest run.
        shortest: Shortest run; all blocks where they have no boundaries.
    """

    blocks: int
    width: int
    shortest: int = 1

    @cached_property
    def _index(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        rows = np.arange(self.blocks + 1)[:, None]
        stops = rows + np.arange(self.shortest, self.width + 1)
        return np.broadcast_to(rows, stops.shape), stops

    @cached_property
    def runs(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """First block of each run and the block after its last, cut off at the last block."""
        rows, stops = self._index
        return rows, np.minimum(stops, self.blocks)

    @cached_property
    def inside(self) -> npt.NDArray[np.bool_]:
        """True where the run ends at or before the last block."""
        return np.asarray(self._index[1] <= self.blocks)

    def take(self, table: Table) -> Table:
        """The band of a full table."""
        return np.asarray(table[self.runs])

    def by_end(self, values: Vector) -> Table:
        """The band of a value that depends on the end of the run only."""
        return np.asarray(values[self.runs[1]])


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds over the stage boundaries of one layout.

    Attributes:
        layout: Everything but the boundaries.
        band: Stage lengths that are considered.
    """

    layout: Layout
    band: Band

    @cached_property
    def _in_order(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Per boundary: does forward, does backward always cross it in chain order?"""
        chain = self.layout.tables.chain
        forward = np.array([a.at(self.layout.microbatch_size) > 0 for a, _ in chain])
        backward = np.array([b.at(self.layout.microbatch_size) > 0 for _, b in chain])
        return forward, backward & forward

    @cached_property
    def chained(self) -> bool:
        """True when every stage needs the one before, in both directions."""
        forward, backward = self._in_order
        return bool(forward[1:-1].all() and backward[1:-1].all())

    @cached_property
    def block_seconds(self) -> tuple[Vector, Vector]:
        """Forward and backward (with recompute) seconds per block on the fastest ranks."""
        kinds = {id(span): span for span in self.layout.spans}.values()
        pairs = [span.per_block for span in kinds]
        return (
            np.min([forward for forward, _ in pairs], axis=0),
            np.min([backward for _, backward in pairs], axis=0),
        )

    @cached_property
    def fill(self) -> tuple[Vector, Vector]:
        """Per boundary, compute that must precede a stage's first forward, follow its backward.

        Work counts back to the last boundary that the chain does not force in order.
        """
        vectors = []
        for seconds, ordered in zip(self.block_seconds, self._in_order, strict=True):
            sums = np.concatenate(([0.0], np.cumsum(seconds)))
            base = np.zeros_like(sums)
            for i in range(1, len(sums)):
                base[i] = base[i - 1] if ordered[i] else sums[i]
            vectors.append(sums - base)
        return vectors[0], vectors[1]

    @cached_property
    def hops(self) -> tuple[Table, Table]:
        """``[stage, boundary]``: least message time into a stage that starts there, and back."""
        layout = self.layout
        tables = []
        for direction, amounts in enumerate(zip(*layout.tables.chain, strict=True)):
            sizes = np.array([layout.amount_bytes(amount) for amount in amounts])
            values, inverse = distinct_places(sizes)
            table = np.zeros((layout.stages, len(sizes)))
            for stage in range(1, layout.stages):
                ends = (layout.rank_of(stage - 1), layout.rank_of(stage))
                source, target = ends if direction == 0 else ends[::-1]
                seconds = [
                    layout.message_seconds(float(v), source, target) if v > 0 else 0.0
                    for v in values
                ]
                table[stage] = np.array(seconds)[inverse]
            tables.append(table)
        return tables[0], tables[1]

    @cached_property
    def least_hops(self) -> tuple[Vector, Vector]:
        """Per stage, least total message time from stage 0 to it, and back; 0 unless chained."""
        zeros = np.zeros(self.layout.stages)
        if not self.chained or self.layout.stages < 2:
            return zeros, zeros
        sums = []
        for table in self.hops:
            least = table[1:, 1:-1].min(axis=1)
            sums.append(np.concatenate(([0.0], np.cumsum(least))))
        return sums[0], sums[1]

    def tails(self, stage: int) -> Table:
        """Gradient synchronisation and optimizer of a rank that holds a run."""
        rank = self.layout.rank_of(stage)
        kind = self.layout.group_kind(rank)
        if kind not in self._tails:
            shared, sync = self.layout.model.shared, self.layout.syncs[rank]
            key = ("tails", self.layout.split, self.band, self.layout.mesh.pp > 1, sync.key)
            if key not in shared:
                shared[key] = self._tail_of(sync)
            self._tails[kind] = shared[key]
        return self._tails[kind] + self._forced_tie(stage)

    def _tail_of(self, sync: StageSync) -> Table:
        layout, nothing = self.layout, np.zeros_like
        dense, experts = (self.band.take(t) for t in (layout.tables.parameters, self._experts))
        tail = sync.optimizer_seconds(1.0) * dense + sync.optimizer_seconds(0.0, 1.0) * experts
        if layout.mesh.pp > 1:
            tail = tail + _by_value(dense, lambda some: sync.many(some, nothing(some)))
            if experts.any():
                tail = tail + _by_value(experts, lambda some: sync.many(nothing(some), some))
        return np.asarray(tail)

    @cached_property
    def _experts(self) -> Table:
        return self.layout.tables.experts

    @cached_property
    def _tails(self) -> dict[object, Table]:
        return {}

    def _forced_tie(self, stage: int) -> float:
        """Sum over copies of parameters tied between the first and the last block only."""
        layout = self.layout
        last = layout.stages - 1
        if layout.mesh.pp < 2 or stage not in (0, last):
            return 0.0
        tied = layout.tables.tied
        ranks = tuple(sorted({layout.rank_of(0), layout.rank_of(last)}))
        if len(ranks) < 2 or any(blocks != (0, layout.tables.count - 1) for _, _, blocks in tied):
            return 0.0
        return layout.tied_seconds(ranks, sum(size for _, size, _ in tied)) if tied else 0.0

    @cached_property
    def _span_bands(self) -> dict[int, tuple[Table, Table]]:
        """By span identity: forward and backward (with recompute) seconds of every run."""
        take = self.band.take
        return {
            id(span): (take(span.tables[0]), take(span.tables[1]))
            for span in {id(s): s for s in self.layout.spans}.values()
        }

    def stage_table(self, stage: int, extra: Table | None = None) -> Table:
        """Least step time of any plan whose stage ``stage`` is a run of the band.

        Args:
            stage: Virtual stage.
            extra: Seconds that each backward of the run takes besides.
        """
        forward, backward = self._span_bands[id(self.layout.spans[self.layout.rank_of(stage)])]
        if extra is not None:
            backward = backward + extra
        table = np.maximum.reduce(self._paths(stage, forward, backward))
        return np.where(self.band.inside, table + self.layout.overhead_s, np.inf)

    def chunked(self, cuts: Cuts) -> float:
        """Least step time of boundaries that give each rank several stages.

        A rank's first forward waits for the stages before it, then the rank does all its work;
        then, unless weight gradients may be left for the end, backward goes up those stages again.
        """
        layout = self.layout
        costs = layout.stage_costs(cuts)
        splits = layout.model.schedule(layout.schedule).splits_backward
        forward = np.array([c.forward_s for c in costs])
        work = forward + np.array([c.backward_s + c.recompute_s for c in costs])
        tail = np.array([c.exposed_sync_s + c.optimizer_s for c in costs])
        tie = [self._forced_tie(stage) for stage in range(layout.stages)]
        down, up, least = self._chain_messages(cuts)
        least *= layout.microbatches
        before_f = np.concatenate(([0.0], np.cumsum(forward + down)))
        before = before_f if splits else np.concatenate(([0.0], np.cumsum(work + down + up)))
        for rank in range(layout.mesh.pp):
            mine = layout.stages_of(rank)
            own, first = layout.microbatches * work[mine].sum(), min(mine)
            fill = before_f[first] if self.chained else 0.0
            back = before[first] if self.chained else 0.0
            # A way back up ends on the rank of stage 0.
            after = tie[0] if self.chained and not splits else max(tie[s] for s in mine)
            tied = max(tie[s] for s in mine)
            least = max(least, fill + own + tail[mine].sum() + tied, back + own + after)
        return float(least + layout.overhead_s)

    def _chain_messages(self, cuts: Cuts) -> tuple[Vector, Vector, float]:
        """Seconds from each stage to the next and back, and of the busiest link per microbatch."""
        layout = self.layout
        down, up = np.zeros(layout.stages), np.zeros(layout.stages)
        links: dict[tuple[int, int], float] = {}
        for stage in range(layout.stages - 1):
            source, target = layout.rank_of(stage), layout.rank_of(stage + 1)
            forward, backward = layout.tables.chain[cuts[stage + 1]]
            for amount, ends, seconds in (
                (forward, (source, target), down),
                (backward, (target, source), up),
            ):
                size = layout.amount_bytes(amount)
                if size > 0 and source != target:
                    seconds[stage] = layout.message_seconds(size, *ends)
                    links[ends] = links.get(ends, 0.0) + seconds[stage]
        return down, up, max(links.values(), default=0.0)

    def _paths(self, stage: int, forward: Table, backward: Table) -> list[Table]:
        """Weights of the paths through a stage, one stage per rank."""
        layout, m = self.layout, self.layout.microbatches
        before, after = self.fill
        hop_f, hop_b = self.least_hops
        arrive = (before + hop_f[stage])[:, None]
        if self.splits:
            return self._split_paths(stage, forward, backward)
        leave = np.maximum((after + hop_b[stage] + self.first_tail)[:, None], self.tails(stage))
        around = arrive + forward + backward + leave
        below = self.band.by_end(self.below(stage))
        paths = [around + (m - 1) * (forward + backward)]
        if layout.schedule == "gpipe":
            paths.append(paths[0] + below)
        elif layout.schedule == "1f1b":
            warm = min(m, layout.mesh.pp - stage)
            paths.append(around + below + (m - 1) * backward + (m - warm) * forward)
        if self.chained and stage > 0:
            paths += [around + (m - 1) * hop[stage][:, None] for hop in self.hops]
        return paths

    def _split_paths(self, stage: int, forward: Table, backward: Table) -> list[Table]:
        """The same where weight gradients may wait until a rank has nothing else to do."""
        m = self.layout.microbatches
        arrive = (self.fill[0] + self.least_hops[0][stage])[:, None]
        tails, work = self.tails(stage), forward + backward
        paths = [arrive + m * work + tails]
        if self.layout.schedule == "zero_bubble":
            # The first backward comes back from the last stage; warm forwards ran before it.
            warm = min(m, self.layout.mesh.pp - stage)
            below = self.band.by_end(self.below(stage))
            paths.append(arrive + below + m * work - (warm - 1) * forward + tails)
        if self.chained and stage > 0:
            down, up = (hop[stage][:, None] for hop in self.hops)
            paths += [arrive + (m - 1) * down + work + tails, arrive + forward + (m - 1) * up]
        return paths

    @cached_property
    def splits(self) -> bool:
        """True when weight gradients are actions of their own."""
        return self.layout.model.schedule(self.layout.schedule).splits_backward

    @cached_property
    def _block_returns(self) -> Vector:
        """Seconds per block on the fastest ranks until its gradient can go up."""
        if not self.splits:
            return self.block_seconds[1]
        kinds = {id(span): span for span in self.layout.spans}.values()
        return np.asarray(np.min([s.per_block[1] - np.diff(s.weight) for s in kinds], axis=0))

    def below(self, stage: int) -> Vector:
        """Per end of a stage, round trip below it: forward to the last stage and back."""
        forward, backward = self.block_seconds[0], self._block_returns
        sums = np.concatenate(([0.0], np.cumsum(forward + backward)))
        if not self.chained:
            return np.zeros_like(sums)
        hop_f, hop_b = self.least_hops
        return np.asarray(sums[-1] - sums + hop_f[-1] - hop_f[stage] + hop_b[-1] - hop_b[stage])

    @cached_property
    def first_tail(self) -> float:
        """Least tail of the rank of stage 0, which ends last when backward drains in order."""
        if not self.chained or self.layout.stages != self.layout.mesh.pp:
            return 0.0
        return float(self.first_tails.min())

    @cached_property
    def first_tails(self) -> Vector:
        """Tails of the rank of stage 0 by the number of its blocks, less one."""
        return np.asarray(np.where(self.band.inside[0], self.tails(0)[0], np.inf))

    def prefix(self, cuts: Cuts) -> float:
        """Least step time when the first ``len(cuts) - 1`` stages end at ``cuts``."""
        return prefix_seconds(self, cuts)

    def weight(self, stage: int, start: int, stop: int) -> float:
        """Seconds of a stage's weight gradients where they are actions of their own, else 0."""
        sums = self.layout.spans[self.layout.rank_of(stage)].weight
        return sums[stop] - sums[start] if self.splits else 0.0

    def span(self, stage: int, start: int, stop: int) -> tuple[float, float]:
        """Forward and backward (with recompute) seconds of a stage for one microbatch."""
        span = self.layout.spans[self.layout.rank_of(stage)]
        again = span.recompute[stop] - span.recompute[start]
        return (
            span.forward[stop] - span.forward[start],
            span.backward[stop] - span.backward[start] + again,
        )


def _by_value(sizes: Table, seconds: Callable[[Vector], Vector]) -> Table:
    """A function of each entry, called with the different values."""
    values, inverse = distinct_places(sizes)
    return np.asarray(seconds(np.maximum(0.0, values))[inverse])
