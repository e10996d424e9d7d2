"""What a run of blocks ``[i, j)`` holds and exchanges, for every ``i < j`` at once.

All tables are ``(n + 1) x (n + 1)`` arrays over block boundaries, in bytes; entries with
``j <= i`` mean nothing. Byte tables come as ``(fixed, per sample)`` pairs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cost.work import StageWork
from autopar.graph import Amount, BlockEdge

Table = npt.NDArray[np.float64]
AffineTable = tuple[Table, Table]


class Tables:
    """Byte and parameter tables of a profile whose blocks are divided in one way.

    Independent of microbatch size and placement.

    Args:
        work: What each block holds on one rank.
        activation_scale: Stored activation bytes per profiled byte (another precision).
    """

    def __init__(self, work: StageWork, activation_scale: float) -> None:
        self.work = work
        self.profile = work.profile
        self.scale = activation_scale
        self.edge_scale = activation_scale * work.edge_share
        self.count = len(work.profile.blocks)

    @cached_property
    def tied(self) -> tuple[tuple[str, float, tuple[int, ...]], ...]:
        """``(name, elements on a rank, blocks)`` of the parameters that several blocks read."""
        return tuple(
            (name, self.work.elements_of(name), blocks)
            for name, blocks in self.work.strategies.shared_parameters
        )

    @cached_property
    def parameters(self) -> Table:
        """Parameter elements on a rank, experts left out, a tied one inside the run once."""
        table = prefix_differences(self.work.parameters)
        for _, size, blocks in self.tied:
            for first, second in itertools.pairwise(blocks):
                table[: first + 1, second + 1 :] -= size
        return np.maximum(table, 0.0)

    @cached_property
    def experts(self) -> Table:
        """Expert parameter elements on a rank."""
        return np.maximum(prefix_differences(self.work.experts), 0.0)

    @cached_property
    def received(self) -> AffineTable:
        """Bytes of the different tensors that enter from earlier blocks."""
        tables = self._zeros()
        for producer, consumers, edge in self._tensors:
            for start in range(producer + 1, consumers[-1] + 1):
                first = next(c for c in consumers if c >= start)
                self._add(tables, edge.size_bytes, slice(start, start + 1), slice(first + 1, None))
        return tables

    @cached_property
    def sent(self) -> AffineTable:
        """Bytes of the different tensors that later blocks read."""
        tables = self._zeros()
        for producer, consumers, edge in self._tensors:
            rows, columns = slice(0, producer + 1), slice(producer + 1, consumers[-1] + 1)
            self._add(tables, edge.size_bytes, rows, columns)
        return tables

    @cached_property
    def chain(self) -> tuple[tuple[Amount, Amount], ...]:
        """Per boundary ``i``: bytes from block ``i - 1`` to block ``i``, gradient bytes back."""
        forward = [Amount()] * (self.count + 1)
        backward = [Amount()] * (self.count + 1)
        for edge in self.profile.block_edges:
            if edge.consumer == edge.producer + 1:
                forward[edge.consumer] += edge.size_bytes
                if edge.needs_gradient:
                    backward[edge.consumer] += edge.size_bytes
        return tuple(zip(forward, backward, strict=True))

    def largest(self, values: Sequence[float] | npt.NDArray[np.float64]) -> Table:
        """Maximum of a per-block value over each run."""
        return largest_of_runs(np.asarray(values, dtype=np.float64))

    @cached_property
    def _tensors(self) -> tuple[tuple[int, tuple[int, ...], BlockEdge], ...]:
        """``(producer block, consumer blocks, edge)`` per tensor that leaves its block."""
        groups: dict[int, list[BlockEdge]] = defaultdict(list)
        for edge in self.profile.block_edges:
            groups[edge.tensor].append(edge)
        return tuple(
            (edges[0].producer, tuple(sorted({e.consumer for e in edges})), edges[0])
            for edges in groups.values()
        )

    def exchanges(self, stage_of: list[int]) -> dict[tuple[int, int], tuple[Amount, Amount]]:
        """Bytes per ``(producer stage, consumer stage)``: activations, and gradients back.

        Args:
            stage_of: Stage of every block.
        """
        found: dict[tuple[int, int], tuple[Amount, Amount]] = {}
        sent: dict[tuple[int, int], bool] = {}
        for edge in self.profile.block_edges:
            source, target = stage_of[edge.producer], stage_of[edge.consumer]
            if source == target:
                continue
            seen = sent.get((edge.tensor, target))
            forward, backward = found.get((source, target), (Amount(), Amount()))
            if seen is None:
                forward += edge.size_bytes
            if edge.needs_gradient and not seen:
                backward += edge.size_bytes
            sent[edge.tensor, target] = bool(seen) or edge.needs_gradient
            found[source, target] = (forward, backward)
        return found

    def _zeros(self) -> AffineTable:
        shape = (self.count + 1, self.count + 1)
        return np.zeros(shape), np.zeros(shape)

    def _add(self, tables: AffineTable, size: Amount, rows: slice, columns: slice) -> None:
        tables[0][rows, columns] += size.fixed * self.edge_scale
        tables[1][rows, columns] += size.per_sample * self.edge_scale


def largest_of_runs(values: npt.NDArray[np.float64]) -> Table:
    """``table[i, j] = max(values[i:j])``, 0 for empty runs; values are not negative."""
    count = len(values)
    table = np.zeros((count + 1, count + 1))
    # Nothing counts before the first block of the run.
    inside = np.triu(np.broadcast_to(values, (count, count)))
    np.maximum.accumulate(inside, axis=1, out=table[:-1, 1:])
    return table


def prefix_differences(values: Sequence[float] | npt.NDArray[np.float64]) -> Table:
    """``table[i, j] = sum(values[i:j])``."""
    sums = np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))
    return np.asarray(sums[None, :] - sums[:, None])
