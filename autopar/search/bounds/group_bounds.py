"""Lower bounds of groups, made sharper only where a group comes near the best plan.

Three steps, each dearer than the one before: the model's products at full efficiency on all
devices; the seconds of the blocks; what follows the last backward, the way of one microbatch
down the pipeline and back, and the slowest link.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.core.arrays import distinct
from autopar.search.bounds.row import Row, fullest_of, fullest_rank
from autopar.search.bounds.rows import BlockSums
from autopar.search.bounds.tails import Tails
from autopar.search.bounds.worlds import World
from autopar.search.space.columns import Columns, alike
from autopar.search.space.variants import TAIL_CODES, VariantTable
from autopar.strategies import WHOLE

if TYPE_CHECKING:
    from autopar.search.bounds.quick import QuickBounds

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
TOO_LARGE, UNTIMED = 1, 2
"""Why a group is dead: memory, or no time for the precision on one of its devices."""
SHARPEST = 2
"""Steps after which a bound stays as it is."""
_ROUNDING = 1 - 1e-12
"""Sums in another order than the price's may differ in the last digits."""


class GroupBounds:
    """Least objectives of the variants of each group, as far as they are known.

    Args:
        quick: What the bounds are of.
        columns: The groups.

    Attributes:
        bounds: Least objective of any variant.
        dead: Why no variant can work, see :meth:`reason`; 0 where one may.
        steps: How often each bound was made sharper.
    """

    def __init__(self, quick: QuickBounds, columns: Columns) -> None:
        self.quick, self.columns = quick, columns
        self.rows, self.options = quick.rows, quick.options
        count = len(columns.groups)
        self.bounds = np.zeros(count)
        self.steps = np.zeros(count, dtype=np.intp)
        self.dead = np.zeros(count, dtype=np.intp)
        self._sums = BlockSums.empty(count)
        self._held = quick.all_held(columns)
        self._limits = self.rows.of_worlds(columns, lambda world: world.memory_limit)
        untimed = self.rows.of_worlds(columns, lambda world: world.why_not is not None)
        self.dead[untimed.astype(bool)] = UNTIMED
        self._reject(self.possible)
        if self.options.objective in ("time", "time-to-target"):
            self.bounds = self._ideal() * _ROUNDING

    @property
    def possible(self) -> Indices:
        """Groups that may have a plan."""
        return np.flatnonzero(self.dead == 0)

    def reason(self, code: int) -> str | None:
        """What an entry of :attr:`dead` stands for."""
        return (None, "memory", f"no time for {self.options.precision} on a device")[code]

    def sharpen(self, some: Indices) -> None:
        """The next step for some groups; it may find that one cannot fit."""
        first = some[self.steps[some] == 0]
        second = some[self.steps[some] == 1]
        if len(first):
            self._price(first)
        if len(second) and self.options.objective != "memory":
            self._refine(second[self._regular[second]])
        self.steps[some] += 1

    def _reject(self, some: Indices) -> None:
        self.dead[some[self._held[some] > self._limits[some]]] = TOO_LARGE

    def _ideal(self) -> Array:
        """Products at full efficiency, divided over all devices without loss."""
        model, c = self.quick.model, self.columns

        def per_sample(world: World) -> float:
            if not world.regular:
                return 0.0
            return model.compute.least_sample_seconds(model.work(WHOLE), world.kinds[0][0])

        samples = c.replicas * c.size * c.microbatches
        return np.asarray(samples * self.rows.of_worlds(c, per_sample) / c.world)

    def _price(self, some: Indices) -> None:
        """Bounds from the seconds of the blocks, and what cannot fit with their activations."""
        self._sums.put(some, self._sums_of(some))
        self._held[some] += self._sums.kept[some] / self.columns.pp[some]
        self._reject(some)
        step = self.columns.microbatches[some] * self._sums.fullest[some]
        self._raise(some, step * _ROUNDING)

    def _raise(self, some: Indices, step: Array) -> None:
        """Steps of some groups take some seconds at least."""
        total, held = self._sums.total[some], self._held[some]
        found = self.quick.objectives(self.columns.take(some), step, total, held)
        self.bounds[some] = np.maximum(self.bounds[some], found)

    @cached_property
    def _regular(self) -> Mask:
        return self.rows.regular(self.columns)

    def _sums_of(self, some: Indices) -> BlockSums:
        """Sums over the blocks, those with equal rows looked at once."""
        found = BlockSums.empty(len(some))
        regular = self._regular[some]
        found.put(np.flatnonzero(regular), self._regular_sums(some[regular]))
        rest = some[~regular]
        self.rows.prepare(self.columns, rest)
        c = self.columns
        fields = (c.world, c.pp, c.split, c.size)
        firsts, which = alike(*(field[rest] for field in fields))
        places = np.flatnonzero(~regular)
        for number, first in enumerate(rest[firsts].tolist()):
            rows, of_rank = self.rows.by_rank(c.groups[first])
            mine = places[which == number]
            found.total[mine], found.fullest[mine], found.kept[mine] = _scalars(rows, of_rank)
        return found

    def _regular_sums(self, some: Indices) -> BlockSums:
        """:meth:`_sums_of` groups on equal nodes."""
        c = self.columns
        if not len(some):
            return BlockSums.empty(0)
        place = self.rows.places(c)[some]
        split, size, pp = (field[some] for field in (c.split, c.size, c.pp))
        firsts, row = alike(place, split, size)
        places, number = alike(place[firsts], split[firsts])
        sums = BlockSums.empty(len(firsts))
        work = np.zeros((len(firsts), len(self.quick.model.profile.blocks)))
        device, _ = self.rows.world(c.groups[some[0]].world).kinds[0]
        splits = [c.splits[i] for i in distinct(split).tolist()]
        self.quick.model.prepare(splits, distinct(size).tolist(), device)
        for place_number, first in enumerate(places):
            mine = np.flatnonzero(number == place_number)
            sizes = tuple(size[firsts][mine].tolist())
            work[mine], found = self.rows.works(c.groups[some[firsts[first]]], sizes)
            sums.put(mine, found)
        result = sums.take(row)
        falling = -np.sort(-work, axis=1)
        for ranks in distinct(pp).tolist():
            mine = np.flatnonzero(pp == ranks)
            result.fullest[mine] = fullest_of(falling, sums.total, ranks)[row[mine]]
        return result

    def _refine(self, some: Indices) -> None:
        """Bounds with tails and with the way of one microbatch, of groups on equal nodes."""
        if not len(some):
            return
        columns, sums = self.columns.take(some), self._sums.take(some)
        m, pp = columns.microbatches, columns.pp
        optimizer, both = self._least_tails(columns)
        # Buckets may hide, but do not start before the last backward.
        hidden = (m - 1) * sums.total + sums.forward + both
        single = np.maximum(m * sums.total + optimizer, hidden)
        piped = m * sums.total / pp + both
        if self.quick.chained:
            for ranks in distinct(pp[pp > 1]).tolist():
                mine = np.flatnonzero(pp == ranks)
                way = self._ways(columns.take(mine), sums.take(mine))
                piped[mine] = np.maximum(piped[mine], way)
        self._raise(some, np.where(pp == 1, single, piped) * _ROUNDING)

    def _ways(self, columns: Columns, sums: BlockSums) -> Array:
        """One microbatch down and up, weight gradients left out; all messages of a link."""
        hops, slowest = self.rows.links.all_hops(columns, sums.message_bytes)
        way = sums.total - sums.weight + 2 * hops[:, -1]
        return np.asarray(np.maximum(way, columns.microbatches * slowest))

    def _least_tails(self, columns: Columns) -> tuple[Array, Array]:
        """Optimizer, and optimizer with synchronisation, of the variant with the least."""
        there = np.zeros((len(columns.sets), TAIL_CODES), dtype=bool)
        for number in distinct(columns.set).tolist():
            some = columns.sets[number]
            there[number, some.table.tail_codes[some.valid]] = True
        codes = np.flatnonzero(there.any(axis=0))
        zero, offload, plain = VariantTable.of_tail_codes(codes)
        tails = Tails(rows=self.rows, columns=columns, zero=zero, offload=offload, plain=plain)
        mine = there[columns.set][:, codes]
        optimizer, both = (
            np.where(mine, seconds, np.inf).min(axis=1)
            for seconds in (tails.optimizer, tails.both)
        )
        return optimizer, both


def _scalars(rows: list[Row], of_rank: Indices) -> tuple[float, float, float]:
    """Least work of all blocks, of the fullest of the ranks, and least bytes kept."""
    if len(rows) == 1:
        work = rows[0].work
        fullest = float(fullest_rank(work, len(of_rank)))
        return float(work.sum()), fullest, min(rows[0].kept_sums)
    works = [row.work for row in rows]
    least = np.minimum.reduce(works)
    speeds = np.array([1 / max(float(work.sum()), 1e-300) for work in works])
    weighed = [work * speed for work, speed in zip(works, speeds, strict=True)]
    mean = float(np.minimum.reduce(weighed).sum() / speeds[of_rank].sum())
    return float(least.sum()), max(mean, float(least.max())), min(rows[0].kept_sums)
