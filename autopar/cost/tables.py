"""What a run of blocks ``[i, j)`` holds and exchanges, for every ``i < j`` at once.

All tables are ``(n + 1) x (n + 1)`` arrays over block boundaries, in bytes; entries with
``j <= i`` mean nothing. Byte tables come as ``(fixed, per sample)`` pairs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.graph import Amount, BlockEdge, GraphProfile

Table = npt.NDArray[np.float64]
AffineTable = tuple[Table, Table]


class Tables:
    """Byte tables of a profile; independent of microbatch size and placement.

    Args:
        profile: What is trained.
        byte_scale: Stored bytes per profiled byte (another precision).
    """

    def __init__(self, profile: GraphProfile, byte_scale: float) -> None:
        self.profile = profile
        self.byte_scale = byte_scale
        self.count = len(profile.blocks)

    @cached_property
    def tied(self) -> tuple[tuple[str, float, tuple[int, ...]], ...]:
        """``(name, bytes, blocks)`` of the parameters that several blocks read."""
        readers: dict[str, list[int]] = defaultdict(list)
        for block in self.profile.blocks:
            for name in block.parameters:
                readers[name].append(block.index)
        return tuple(
            (name, self.profile.parameters[name][1] * self.byte_scale, tuple(blocks))
            for name, blocks in readers.items()
            if len(blocks) > 1
        )

    @cached_property
    def parameters(self) -> Table:
        """Parameter bytes, a parameter tied inside the run once."""
        table = prefix_differences(
            [b.parameter_bytes * self.byte_scale for b in self.profile.blocks]
        )
        for _, size, blocks in self.tied:
            for first, second in itertools.pairwise(blocks):
                table[: first + 1, second + 1 :] -= size
        return table

    @cached_property
    def distinct_parameters(self) -> tuple[Table, npt.NDArray[np.intp]]:
        """Different values of :attr:`parameters`, and the index of each entry's value."""
        values, inverse = np.unique(np.maximum(self.parameters, 0.0), return_inverse=True)
        return values, inverse.reshape(self.parameters.shape)

    @cached_property
    def saved(self) -> AffineTable:
        """Activation bytes kept for backward without recompute."""
        return self._summed([block.saved_bytes for block in self.profile.blocks])

    @cached_property
    def boundaries(self) -> AffineTable:
        """Bytes kept when every block is recomputed."""
        return self._summed([block.boundary_bytes for block in self.profile.blocks])

    def mixed(self, recompute: tuple[bool, ...], samples: int) -> Table:
        """Bytes kept per microbatch when only some blocks are recomputed."""
        return prefix_differences(
            [
                (block.boundary_bytes if again else block.saved_bytes).at(samples)
                * self.byte_scale
                for block, again in zip(self.profile.blocks, recompute, strict=True)
            ]
        )

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

    def largest(self, values: list[float]) -> Table:
        """Maximum of a per-block value over each run."""
        table = np.zeros((self.count + 1, self.count + 1))
        array = np.asarray(values)
        for start in range(self.count):
            table[start, start + 1 :] = np.maximum.accumulate(array[start:])
        return table

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
        tables[0][rows, columns] += size.fixed * self.byte_scale
        tables[1][rows, columns] += size.per_sample * self.byte_scale

    def _summed(self, amounts: list[Amount]) -> AffineTable:
        return (
            prefix_differences([a.fixed * self.byte_scale for a in amounts]),
            prefix_differences([a.per_sample * self.byte_scale for a in amounts]),
        )


def prefix_differences(values: list[float]) -> Table:
    """``table[i, j] = sum(values[i:j])``."""
    sums = np.concatenate(([0.0], np.cumsum(np.asarray(values, dtype=np.float64))))
    return np.asarray(sums[None, :] - sums[:, None])
