"""Bounds of groups and of their variants, many at once, before any layout is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from autopar.calibration.peak import communicator_count
from autopar.core.errors import InputError
from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.search.batch import Array, Batch, Mask
from autopar.search.chunks import chunked_cuts
from autopar.search.columns import Columns, combined, numbered
from autopar.search.options import SearchOptions
from autopar.search.row import Row, fullest_of, fullest_rank
from autopar.search.rows import Indices, Rows
from autopar.search.space import PointGroup
from autopar.search.worlds import World
from autopar.strategies import WHOLE


class QuickBounds:
    """Lower bounds of the objective from sums over blocks.

    Args:
        model: Shared caches.
        options: Objective and limits.
    """

    def __init__(self, model: CostModel, options: SearchOptions) -> None:
        self.model = model
        self.options = options
        self.rows = Rows(model, options)
        chain = model.tables(WHOLE).chain[1:-1]
        everything = model.first_devices(model.cluster.device_count)
        kinds = model.kinds(everything, everything)
        self.contention = min(model.compute.constants(d).gather_exposed for d, _ in kinds)
        self.chained = all(a.at(1) > 0 and b.at(1) > 0 for a, b in chain)
        self.first_peaks: dict[tuple[str, int, int, int], Array] = {}
        """Microbatches in flight per stage of the first rank, at its peaks."""
        self._cuts: dict[int, tuple[Cuts, ...]] = {}

    def cuts(self, stages: int) -> tuple[Cuts, ...]:
        """Boundaries of several stages per rank; none where blocks are too few."""
        if stages not in self._cuts:
            enough = stages <= len(self.model.profile.blocks)
            self._cuts[stages] = chunked_cuts(self.model.profile, stages) if enough else ()
        return self._cuts[stages]

    def groups(self, columns: Columns) -> tuple[Array, list[str | None]]:
        """Least objective of any variant of each group, and why none can work if so."""
        groups = columns.groups
        reasons: list[str | None] = [None] * len(groups)
        dead = self.rows.of_worlds(columns, lambda world: world.why_not is not None).astype(bool)
        for index in np.flatnonzero(dead).tolist():
            reasons[index] = f"no time for {self.options.precision} on a device"
        limits = self.rows.of_worlds(columns, lambda world: world.memory_limit)
        held = self._all_held(columns)
        fit = np.flatnonzero(~dead & (held <= limits))
        total, fullest, kept = self._all_scalars(columns, fit)
        held[fit] += kept / columns.pp[fit]
        for index in np.flatnonzero(~dead & (held > limits)).tolist():
            reasons[index] = "memory"
        bounds = np.zeros(len(groups))
        step = columns.microbatches[fit] * fullest
        bounds[fit] = self._objectives([groups[i] for i in fit.tolist()], step, total, held[fit])
        return bounds, reasons

    def _all_held(self, columns: Columns) -> Array:
        """:meth:`least_held` of every group."""
        elements = np.array([self.rows.elements(split) for split in columns.splits])[columns.split]
        zero = np.array([each.most_shared for each in columns.sets])[columns.set]
        shards = np.where(zero > 0, columns.dp_shard * columns.cp, 1)
        firsts, which = numbered(combined(columns.set, shards))
        each = [
            self.rows.bytes_per_element(
                int(zero[i]), int(shards[i]), columns.groups[i].variants.may_offload
            )
            for i in firsts
        ]
        c = self.model.memory
        inputs = self._all_inputs(columns)
        own = elements * np.array(each)[which]
        served = c.allocator_margin * (own / columns.pp + inputs)
        return np.asarray((served + self._all_framework(columns)) * c.high_factor)

    def _all_framework(self, columns: Columns) -> Array:
        degrees = (columns.replicas, columns.tp, columns.pp, columns.cp, columns.ep, columns.world)
        count = np.sum([degree > 1 for degree in degrees], axis=0)
        context = self.rows.of_worlds(columns, lambda world: world.process_bytes[0])
        each = self.rows.of_worlds(columns, lambda world: world.process_bytes[1])
        return np.asarray(context + each * count)

    def _all_scalars(self, columns: Columns, some: Indices) -> tuple[Array, Array, Array]:
        """Least work of all blocks, of the fullest rank, and least bytes kept, of some groups."""
        regular = self.rows.regular(columns)[some]
        result = np.zeros((len(some), 3))
        result[regular] = self._regular_scalars(columns, some[regular])
        rest = some[~regular]
        self.rows.prepare(columns, rest)
        fields = (columns.world, columns.pp, columns.split, columns.size)
        firsts, which = numbered(combined(*(field[rest] for field in fields)))
        groups = [columns.groups[i] for i in rest[firsts].tolist()]
        found = np.array([_scalars(*self.rows.by_rank(group)) for group in groups])
        result[~regular] = found.reshape(-1, 3)[which]
        total, fullest, kept = result.T
        return total, fullest, kept

    def _regular_scalars(self, columns: Columns, some: Indices) -> Array:
        """:meth:`_all_scalars` of groups on equal nodes ``[group, scalar]``."""
        # What matters of the world is how many devices of a node are busy.
        busy = self.rows.of_worlds(columns, lambda world: world.kinds[0][1])
        fields = [field[some] for field in (busy, columns.split, columns.size, columns.pp)]
        firsts, row = numbered(combined(*fields[:3]))
        places, place = numbered(combined(*(field[firsts] for field in fields[:2])))
        work = np.zeros((len(firsts), len(self.model.profile.blocks)))
        kept = np.zeros(len(firsts))
        for number, first in enumerate(places):
            mine = np.flatnonzero(place == number)
            group, sizes = columns.groups[some[firsts[first]]], fields[2][firsts][mine]
            work[mine], kept[mine] = self.rows.works(group, tuple(sizes.tolist()))
        total, falling = work.sum(axis=1), -np.sort(-work, axis=1)
        fullest = np.zeros(len(some))
        for pp in np.unique(fields[3]).tolist():
            mine = np.flatnonzero(fields[3] == pp)
            fullest[mine] = fullest_of(falling, total, pp)[row[mine]]
        return np.stack((total[row], fullest, kept[row]), axis=1)

    def _objectives(
        self, groups: Sequence[PointGroup], seconds: Array, computing: Array, held: Array
    ) -> Array:
        """Least objectives of steps of some seconds where some rank holds some bytes."""
        if self.options.objective == "memory":
            return held / self.model.memory.high_factor
        if self.options.objective not in ("cost", "energy"):
            return seconds
        pairs = [self.slope(group, self.rows.world(group.world)) for group in groups]
        slopes, floors = np.array(pairs).reshape(-1, 2).T
        return np.asarray(slopes * seconds + floors * computing)

    def least_held(self, group: PointGroup, world: World, elements: float) -> float:
        """Some rank holds at least the average of weights, gradients and states."""
        variants = group.variants
        zero = variants.most_shared
        shards = group.dp_shard * group.cp if zero else 1
        own = elements * self.rows.bytes_per_element(zero, shards, variants.may_offload)
        c = self.model.memory
        served = c.allocator_margin * (own / group.pp + self._input_bytes(group))
        return (served + self._framework_bytes(group, world)) * c.high_factor

    def room(self, columns: Columns) -> Array:
        """Most tensor bytes that fit beside the replica's batch ``[group, pipeline rank]``.

        Groups have equal pipelines.
        """
        c = self.model.memory
        limits = columns.once(
            (columns.world,), lambda group: self.rows.world(group.world).limits(group.pp)
        )
        total = limits / c.high_factor - self._all_framework(columns)[:, None]
        return np.asarray(total / c.allocator_margin - self._all_inputs(columns)[:, None])

    def _all_inputs(self, columns: Columns) -> Array:
        """Bytes of the replica's batch of every group."""
        sizes = self.model.profile.input_bytes * columns.size * columns.microbatches
        return np.asarray(sizes, dtype=float)

    def _input_bytes(self, group: PointGroup) -> float:
        return self.model.profile.input_bytes * group.microbatch_size * group.microbatches

    def _framework_bytes(self, group: PointGroup, world: World) -> float:
        replicas = group.dp_replicate * group.dp_shard
        degrees = (replicas, group.tp, group.pp, group.cp, group.ep)
        context, each = world.process_bytes
        return float(context + each * communicator_count(degrees, group.world))

    def slope(self, group: PointGroup, world: World) -> tuple[float, float]:
        """``objective >= slope x step seconds + floor x computing seconds of a microbatch``.

        Raises:
            InputError: The objective needs figures that a device lacks.
        """
        name = self.options.objective
        if name == "cost":
            return _need(world.usd_per_s, "usd_per_hour"), 0.0
        if name == "energy":
            ranks = group.world / group.pp
            extra = _need(world.extra_watt, "power_watt and idle_watt")
            return _need(world.idle_watt, "idle_watt"), extra * ranks * group.microbatches
        return 1.0, 0.0

    def variants(self, groups: Sequence[PointGroup]) -> list[tuple[Array, Mask]]:
        """Per group: least objective of every variant of its table, and which cannot fit."""
        found: dict[int, tuple[Array, Mask]] = {}
        for members, bounds, misfits in self.by_depth(groups):
            for position, index in enumerate(members):
                found[index] = (bounds[position], misfits[position])
        return [found[i] for i in range(len(groups))]

    def by_depth(self, groups: Sequence[PointGroup]) -> Iterator[tuple[list[int], Array, Mask]]:
        """:meth:`variants` of the groups of each pipeline depth ``[group, variant]``.

        Groups are told by their position.
        """
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group.pp, []).append(index)
        for some in members.values():
            yield some, *Batch(self, [groups[i] for i in some]).bounds()


def _scalars(rows: Sequence[Row], of_rank: npt.NDArray[np.intp]) -> tuple[float, float, float]:
    """Least work of all blocks, of the fullest of unlike ranks, and least bytes kept."""
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


def _need(rate: float | None, name: str) -> float:
    """A figure of the objective.

    Raises:
        InputError: A device lacks it.
    """
    if rate is None:
        raise InputError(
            f"this objective needs {name} of every device",
            hint="add price and power to the cluster or choose another objective",
        )
    return rate
