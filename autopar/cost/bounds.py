"""Closed-form lower bounds of the simulated step time; never above it.

Each bound is the weight of one path through the step's dependency graph (program order on a rank,
messages between ranks), and the step takes at least as long as any such path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cost.layout import Cuts, Layout
from autopar.cost.tables import Table

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds over all stage boundaries of one layout.

    Attributes:
        layout: Everything but the boundaries.
    """

    layout: Layout

    @cached_property
    def _in_order(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Per boundary: does forward, does backward always cross it in chain order?"""
        chain = self.layout.model.tables.chain
        forward = np.array([a.at(self.layout.microbatch_size) > 0 for a, _ in chain])
        backward = np.array([b.at(self.layout.microbatch_size) > 0 for _, b in chain])
        return forward, backward & forward

    @cached_property
    def chained(self) -> bool:
        """True when every stage needs the one before, in both directions."""
        forward, backward = self._in_order
        return bool(forward[1:-1].all() and backward[1:-1].all())

    @cached_property
    def _blocks(self) -> tuple[Vector, Vector]:
        """Forward and backward (with recompute) seconds per block on the fastest ranks."""
        n = self.layout.model.tables.count
        kinds = {id(span): span for span in self.layout.spans}.values()
        forward = [[s.forward[b][b + 1] for b in range(n)] for s in kinds]
        backward = [
            [s.backward[b][b + 1] + s.recompute[b][b + 1] for b in range(n)] for s in kinds
        ]
        return np.min(forward, axis=0), np.min(backward, axis=0)

    @cached_property
    def fill(self) -> tuple[Vector, Vector]:
        """Per boundary, compute that must precede a stage's first forward, follow its backward.

        Work counts back to the last boundary that the chain does not force in order.
        """
        vectors = []
        for seconds, ordered in zip(self._blocks, self._in_order, strict=True):
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
        chain = layout.model.tables.chain
        forward = np.zeros((layout.stages, len(chain)))
        backward = np.zeros_like(forward)
        memo: dict[tuple[float, int, int], float] = {}
        for stage in range(1, layout.stages):
            source, target = layout.rank_of(stage - 1), layout.rank_of(stage)
            for i in range(1, len(chain) - 1):
                sizes = [layout.amount_bytes(amount) for amount in chain[i]]
                ends = ((source, target), (target, source))
                for table, size, (a, b) in zip((forward, backward), sizes, ends, strict=True):
                    key = (size, a, b)
                    if size > 0 and key not in memo:
                        memo[key] = layout.message_seconds(size, a, b)
                    table[stage, i] = memo.get(key, 0.0)
        return forward, backward

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
        """Gradient synchronisation and optimizer of a rank that holds ``[i, j)``."""
        layout = self.layout
        rank = layout.rank_of(stage)
        sizes = layout.model.tables.parameters
        if layout.mesh.pp == 1:
            sync = np.zeros_like(sizes)
        else:
            values, inverse = np.unique(sizes, return_inverse=True)
            seconds = np.array([layout.sync_seconds(rank, float(v)) for v in values])
            sync = seconds[inverse].reshape(sizes.shape)
        tail = sync + sizes * layout.optimizer_s_per_byte[rank]
        return np.asarray(tail + self._forced_ties(stage))

    def _forced_ties(self, stage: int) -> Table:
        """Sum over copies of parameters tied between the first and the last block."""
        layout = self.layout
        n, last = layout.model.tables.count, layout.stages - 1
        table = np.zeros((n + 1, n + 1))
        if layout.mesh.pp < 2 or stage not in (0, last):
            return table
        size = sum(
            bytes_ for _, bytes_, blocks in layout.model.tables.tied if blocks == (0, n - 1)
        )
        others = any(blocks != (0, n - 1) for _, _, blocks in layout.model.tables.tied)
        if size > 0 and not others:
            table += layout.tied_seconds((0, layout.mesh.pp - 1), size)
        return table

    def stage_table(self, stage: int) -> Table:
        """Least step time of any plan whose stage ``stage`` is ``[i, j)``; entries with j <= i are inf."""
        layout = self.layout
        span = layout.spans[layout.rank_of(stage)]
        forward = np.asarray(span.forward)
        backward = np.asarray(span.backward) + np.asarray(span.recompute)
        m = layout.microbatches
        before, after = self.fill
        hop_f, hop_b = self.least_hops
        arrive = (before + hop_f[stage])[:, None]
        own_tail = self.tails(stage) if layout.stages == layout.mesh.pp else 0.0 * forward
        leave = np.maximum((after + hop_b[stage] + self._first_tail)[:, None], own_tail)
        if layout.stages != layout.mesh.pp:
            least = float(np.sum([v.min() for v in self._blocks]))
            others = (layout.stages // layout.mesh.pp - 1) * m * least
            table = m * (forward + backward) + others + self._first_tail
        else:
            paths = [arrive + m * (forward + backward) + leave]
            below = self._below(stage)
            if layout.schedule == "gpipe":
                paths.append(arrive + m * (forward + backward) + below + leave)
            else:
                warm = min(m, layout.mesh.pp - stage)
                steady = (m - 1) * backward + (m - warm) * forward
                paths.append(arrive + forward + below + backward + steady + leave)
            if self.chained and stage > 0:
                for hop in (self.hops[0][stage], self.hops[1][stage]):
                    paths.append(arrive + (m - 1) * hop[:, None] + forward + backward + leave)
            table = np.maximum.reduce(paths)
        rows, columns = np.indices(table.shape)
        return np.where(columns > rows, table + layout.overhead_s, np.inf)

    def _below(self, stage: int) -> Table:
        """Round trip below a stage that ends at ``j``: forward to the last stage and back."""
        n = self.layout.model.tables.count
        if not self.chained:
            return np.zeros((n + 1, n + 1))
        forward, backward = self._blocks
        sums = np.concatenate(([0.0], np.cumsum(forward + backward)))
        hop_f, hop_b = self.least_hops
        hops = hop_f[-1] - hop_f[stage] + hop_b[-1] - hop_b[stage]
        return np.asarray(np.broadcast_to((sums[-1] - sums + hops)[None, :], (n + 1, n + 1)))

    @cached_property
    def _first_tail(self) -> float:
        """Least tail of the rank of stage 0, which ends last when backward drains in order."""
        if not self.chained or self.layout.stages != self.layout.mesh.pp:
            return 0.0
        last = self.layout.model.tables.count - self.layout.stages + 1
        return float(self.tails(0)[0, 1 : last + 1].min())

    def prefix(self, cuts: Cuts) -> float:
        """Least step time when the first ``len(cuts) - 1`` stages end at ``cuts``."""
        del cuts
        return 0.0

    def quick(self) -> float:
        """A bound over all stage boundaries in a few operations.

        Some rank holds at least the average work, and some rank the largest block.
        """
        forward, backward = self._blocks
        work = forward + backward
        each = max(float(work.sum()) / self.layout.mesh.pp, float(work.max()))
        bound = self.layout.microbatches * each
        return bound + self.layout.overhead_s
