"""Seconds of any run of blocks, as differences of sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autopar.cost.computation.blocks import BlockSeconds
from autopar.cost.tables import Table, prefix_differences
from autopar.cost.work import FULL, SELECTIVE, Levels, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSeconds:
    """Seconds of one run of blocks for one microbatch; fields as in :class:`SpanSeconds`."""

    forward: float
    backward: float
    weight: float
    recompute: float
    forward_collective: float
    backward_collective: float
    recompute_collective: float


@dataclass(frozen=True, kw_only=True)
class SpanSeconds:
    """Seconds of any run of blocks ``[i, j)`` for one microbatch, as sums ``ends[j] - ends[i]``.

    Collectives inside the blocks are part of each phase; ``_collective`` sums say how much.

    Attributes:
        forward: Sums of forward over the blocks before each boundary.
        backward: The same of backward, with adding to earlier gradients.
        weight: The same of the part of backward that only weight gradients need.
        recompute: The same of forward done again.
        forward_collective: Communication in ``forward``.
        backward_collective: Communication in ``backward``.
        recompute_collective: Communication in ``recompute``.
    """

    forward: list[float]
    backward: list[float]
    weight: list[float]
    recompute: list[float]
    forward_collective: list[float]
    backward_collective: list[float]
    recompute_collective: list[float]

    def between(self, first: int, stop: int) -> PhaseSeconds:
        """Seconds of the blocks ``first`` to ``stop - 1``."""
        return PhaseSeconds(
            **{name: sums[stop] - sums[first] for name, sums in self._by_name.items()}
        )

    @cached_property
    def _by_name(self) -> dict[str, list[float]]:
        return {name: getattr(self, name) for name in PhaseSeconds.__slots__}

    @property
    def total(self) -> float:
        """All phases of the whole model."""
        return self.forward[-1] + self.backward[-1] + self.recompute[-1]

    @cached_property
    def per_block(self) -> tuple[Vector, Vector]:
        """Forward seconds, and backward with recompute, of every block."""
        again = np.diff(self.backward) + np.diff(self.recompute)
        return np.diff(self.forward), np.asarray(again)

    @cached_property
    def tables(self) -> tuple[Table, Table]:
        """Forward seconds, and backward with recompute, of every run as tables ``[i, j]``."""
        forward, backward = self.per_block
        return prefix_differences(forward), prefix_differences(backward)


def recompute_seconds(blocks: BlockSeconds, levels: Levels) -> tuple[Vector, Vector]:
    """Extra seconds of each block at its recompute level, and exposed communication in them."""
    rows = np.asarray(levels)
    seconds = np.where(rows == FULL, blocks.full, np.where(rows == SELECTIVE, blocks.selective, 0))
    return seconds, np.where(rows == FULL, blocks.full_collective, 0.0)
