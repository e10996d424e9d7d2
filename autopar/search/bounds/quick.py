"""Bounds of groups and of their variants, many at once, before any layout is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autopar.core.errors import InputError
from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.search.bounds.batch import Array, Batch, Mask
from autopar.search.bounds.group_bounds import GroupBounds
from autopar.search.bounds.rows import Rows
from autopar.search.options import SearchOptions
from autopar.search.space.build import PointGroup
from autopar.search.space.columns import Columns, alike
from autopar.search.stages.chunks import chunked_cuts
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

    def cuts(self, stages: int) -> tuple[Cuts, ...]:
        """Boundaries of several stages per rank; none where blocks are too few."""
        enough = stages <= len(self.model.profile.blocks)
        return chunked_cuts(self.model.profile, stages) if enough else ()

    def groups(self, columns: Columns) -> tuple[Array, list[str | None]]:
        """Least objective of any variant of each group, and why none can work if so."""
        found = GroupBounds(self, columns)
        found.sharpen(found.possible)
        return found.bounds, [found.reason(code) for code in found.dead.tolist()]

    def all_held(self, columns: Columns) -> Array:
        """Bytes that some rank holds at least: the average of weights, gradients and states."""
        elements = np.array([self.rows.elements(split) for split in columns.splits])[columns.split]
        zero = np.array([each.most_shared for each in columns.sets])[columns.set]
        shards = np.where(zero > 0, columns.dp_shard * columns.cp, 1)
        firsts, which = alike(columns.set, shards)
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

    def objectives(self, columns: Columns, seconds: Array, computing: Array, held: Array) -> Array:
        """Least objectives of groups where steps and a microbatch's computing take some seconds.

        Args:
            columns: The groups.
            seconds: Of a step, groups along the first axis.
            computing: Of a microbatch, likewise.
            held: Bytes that some rank of each group holds.

        Raises:
            InputError: The objective needs figures that a device lacks.
        """
        name, tail = self.options.objective, (1,) * (seconds.ndim - 1)
        if name == "memory":
            least = (held / self.model.memory.high_factor).reshape(-1, *tail)
            return np.broadcast_to(least, seconds.shape)
        if name == "cost":
            rate = self._of_worlds(columns, "usd_per_s", "usd_per_hour")
            return np.asarray(rate.reshape(-1, *tail) * seconds)
        if name == "energy":
            idle = self._of_worlds(columns, "idle_watt", "idle_watt")
            extra = self._of_worlds(columns, "extra_watt", "power_watt and idle_watt")
            busy = extra * columns.world / columns.pp * columns.microbatches
            return np.asarray(
                idle.reshape(-1, *tail) * seconds + busy.reshape(-1, *tail) * computing
            )
        return seconds

    def _of_worlds(self, columns: Columns, name: str, needed: str) -> Array:
        return self.rows.of_worlds(columns, lambda world: _need(getattr(world, name), needed))

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

    def variants(self, groups: Sequence[PointGroup]) -> list[tuple[Array, Mask]]:
        """Per group: least objective of every variant of its table, and which cannot fit."""
        found: dict[int, tuple[Array, Mask]] = {}
        for members, batch in self.by_depth(groups):
            bounds, misfits = batch.bounds(batch.possible), batch.misfits
            for position, index in enumerate(members):
                found[index] = (bounds[position], misfits[position])
        return [found[i] for i in range(len(groups))]

    def by_depth(self, groups: Sequence[PointGroup]) -> Iterator[tuple[list[int], Batch]]:
        """The groups of each pipeline depth, and their positions."""
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group.pp, []).append(index)
        for some in members.values():
            yield some, Batch(self, [groups[i] for i in some])


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
