"""Bounds of per-block choices for many runs of blocks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cost.tables import largest_of_runs
from autopar.search.stages.knapsack import Option, efficient, lower_hull

Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_EQUAL = 1e-12
"""Relative difference below which two sums count as equal."""


@dataclass(frozen=True, kw_only=True)
class _Prices:
    """Prefix sums over the blocks of the least weighed cost, one row per price of a byte."""

    prices: Table
    sums: Table


class RunBounds:
    """Least seconds of any run of consecutive blocks under its own limit.

    The fractional relaxation of a run equals its Lagrangian dual (linear programming duality): the
    largest ``sum_b min_o (s + u * k) - u * limit`` over ``u >= 0``, reached at ``u = 0`` or at a
    slope of some block's convex hull. Every ``u`` gives a valid bound, and the sums over blocks
    are differences of prefix sums, so one pass over the slopes bounds all runs at once.

    Args:
        options: Of each block.
    """

    def __init__(self, options: Sequence[Sequence[Option]]) -> None:
        self.options = [tuple(block) for block in options]
        self.count = len(self.options)

    @cached_property
    def _efficient(self) -> dict[tuple[Option, ...], tuple[Table, Table]]:
        """Bytes and seconds of the options worth having, by what a block can pick."""
        found = {}
        for block in dict.fromkeys(self.options):
            best = [block[i] for i in efficient(block)]
            kept = [option.kept_bytes for option in best]
            seconds = [option.seconds for option in best]
            corners = lower_hull(kept, seconds)
            found[block] = (np.array(kept)[corners], np.array(seconds)[corners])
        return found

    def _prefix(self, values: dict[tuple[Option, ...], float]) -> Table:
        return np.concatenate(([0.0], np.cumsum([values[block] for block in self.options])))

    @cached_property
    def _weighed(self) -> _Prices:
        """Row 0: bytes do not matter. Then one row per slope of a hull, falling price last."""
        slopes = {0.0}
        for kept, seconds in self._efficient.values():
            slopes.update((-np.diff(seconds) / np.diff(kept)).tolist())
        prices = np.array(sorted(slopes))
        least = {
            block: (seconds[None, :] + prices[:, None] * kept[None, :]).min(axis=1)
            for block, (kept, seconds) in self._efficient.items()
        }
        rows = np.array([least[block] for block in self.options]).reshape(self.count, len(prices))
        sums = np.concatenate((np.zeros((1, len(prices))), np.cumsum(rows, axis=0)))
        return _Prices(prices=prices, sums=np.ascontiguousarray(sums.T))

    @cached_property
    def _least_bytes(self) -> Table:
        """Prefix sums of the smallest options."""
        return self._prefix(
            {block: float(kept[0]) for block, (kept, _) in self._efficient.items()}
        )

    @cached_property
    def least_peak(self) -> Table:
        """``[i, j]``: peak bytes that blocks ``i`` to ``j`` cannot avoid."""
        peaks = np.array([min(o.peak_bytes for o in block) for block in self.options])
        return largest_of_runs(peaks)

    def least_needs(self, copies: float = 1.0) -> Table:
        """``[i, j]``: no choice for blocks ``i`` to ``j`` needs fewer bytes."""
        least = self._least_bytes
        return np.asarray(copies * (least[None, :] - least[:, None]) + self.least_peak)

    def tables(self, limits_bytes: Table, copies: float = 1.0) -> tuple[Table, Mask]:
        """:meth:`at` of every run: ``[i, j]`` stands for blocks ``[i, j)``, ``i < j``."""
        boundaries = np.arange(self.count + 1)
        return self.at(boundaries[:, None], boundaries[None, :], limits_bytes, copies)

    def at(
        self,
        starts: npt.NDArray[np.intp],
        stops: npt.NDArray[np.intp],
        limits_bytes: Table,
        copies: float = 1.0,
    ) -> tuple[Table, Mask]:
        """Lower bounds of the seconds of :func:`~autopar.search.stages.mixing.solve_stage`.

        Args:
            starts: First block of each run; any shape that broadcasts with the others.
            stops: Block after the last of each run.
            limits_bytes: Limit of each run.
            copies: Microbatches in flight.

        Returns:
            Seconds, infinite where nothing fits, and where something may fit. Entries of empty or
            reversed runs are infinite and false.
        """
        room = (limits_bytes - self.least_peak[starts, stops]) / copies
        least = self._least_bytes
        needed = least[stops] - least[starts]
        feasible = (needed <= room + np.abs(limits_bytes) * _EQUAL) & (stops > starts)
        weighed = self._weighed
        seconds = np.full(feasible.shape, -np.inf)
        for price, sums in zip(weighed.prices, weighed.sums, strict=True):
            bound = sums[stops] - sums[starts] - price * room
            np.maximum(seconds, bound, out=seconds)
        # Differences of prefix sums round: stay below.
        seconds -= np.abs(weighed.sums).max(axis=0)[-1] * _EQUAL if self.count else 0.0
        return np.where(feasible, np.maximum(seconds, 0.0), np.inf), np.asarray(feasible)
