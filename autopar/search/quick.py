"""Bounds of groups and of their variants, many at once, before any layout is built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autopar.calibration.peak import communicator_count
from autopar.core.errors import InputError
from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.search.batch import Array, Batch, Mask, fullest_rank
from autopar.search.chunks import chunked_cuts
from autopar.search.options import SearchOptions
from autopar.search.rows import Row, Rows
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
        self._scalars: dict[object, tuple[float, float, float]] = {}

    def cuts(self, stages: int) -> tuple[Cuts, ...]:
        """Boundaries of several stages per rank; none where blocks are too few."""
        if stages not in self._cuts:
            enough = stages <= len(self.model.profile.blocks)
            self._cuts[stages] = chunked_cuts(self.model.profile, stages) if enough else ()
        return self._cuts[stages]

    def groups(self, groups: Sequence[PointGroup]) -> tuple[Array, list[str | None]]:
        """Least objective of any variant of each group, and why none can work if so."""
        self.rows.prepare(groups)
        bounds = np.zeros(len(groups))
        reasons: list[str | None] = []
        for index, group in enumerate(groups):
            world = self.rows.world(group.world)
            if world.why_not is not None:
                reasons.append(f"no time for {self.options.precision} on a device")
                continue
            elements = self.rows.elements(group.split)
            held = self.least_held(group, world, elements)
            if held > world.memory_limit:
                reasons.append("memory")
                continue
            rows, of_rank = self.rows.by_rank(group)
            key = (group.pp, *map(id, rows), of_rank.tobytes() if len(rows) > 1 else b"")
            if key not in self._scalars:
                self._scalars[key] = _scalars(rows, of_rank, group.pp)
            total, fullest, least_kept = self._scalars[key]
            held += least_kept / group.pp
            reasons.append("memory" if held > world.memory_limit else None)
            step = group.microbatches * fullest
            bounds[index] = self.objective(group, world, step, total, held)
        return bounds, reasons

    def least_held(self, group: PointGroup, world: World, elements: float) -> float:
        """Some rank holds at least the average of weights, gradients and states."""
        variants = group.variants
        zero = variants.most_shared
        shards = group.dp_shard * group.cp if zero else 1
        own = elements * self.rows.bytes_per_element(zero, shards, variants.may_offload)
        c = self.model.memory
        served = c.allocator_margin * (own / group.pp + self._input_bytes(group))
        return (served + self._framework_bytes(group, world)) * c.high_factor

    def room(self, group: PointGroup, world: World) -> Array:
        """Most tensor bytes that fit beside the replica's batch, per pipeline rank."""
        c = self.model.memory
        total = world.limits(group.pp) / c.high_factor - self._framework_bytes(group, world)
        return np.asarray(total / c.allocator_margin - self._input_bytes(group))

    def _input_bytes(self, group: PointGroup) -> float:
        return self.model.profile.input_bytes * group.microbatch_size * group.microbatches

    def _framework_bytes(self, group: PointGroup, world: World) -> float:
        replicas = group.dp_replicate * group.dp_shard
        degrees = (replicas, group.tp, group.pp, group.cp, group.ep)
        context, each = world.process_bytes
        return float(context + each * communicator_count(degrees, group.world))

    def objective(
        self, group: PointGroup, world: World, seconds: float, computing: float, held: float
    ) -> float:
        """The objective when a step takes ``seconds`` and some rank holds ``held`` bytes."""
        if self.options.objective == "memory":
            return held / self.model.memory.high_factor
        slope, floor = self.slope(group, world)
        return slope * seconds + floor * computing

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
        by_depth: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            by_depth.setdefault(group.pp, []).append(index)
        found: dict[int, tuple[Array, Mask]] = {}
        for members in by_depth.values():
            bounds, misfits = Batch(self, [groups[i] for i in members]).bounds()
            for position, index in enumerate(members):
                found[index] = (bounds[position], misfits[position])
        return [found[i] for i in range(len(groups))]


def _scalars(
    rows: Sequence[Row], of_rank: npt.NDArray[np.intp], ranks: int
) -> tuple[float, float, float]:
    """Least work of all blocks, of the fullest rank, and least bytes kept."""
    works = [row.seconds.forward + row.seconds.backward for row in rows]
    kept = min(float(level.sum()) for level in rows[0].kept)
    least = np.minimum.reduce(works)
    if len(rows) == 1:
        return float(least.sum()), float(fullest_rank(least, ranks)), kept
    speeds = np.array([1 / max(float(work.sum()), 1e-300) for work in works])
    weighed = [work * speed for work, speed in zip(works, speeds, strict=True)]
    mean = float(np.minimum.reduce(weighed).sum() / speeds[of_rank].sum())
    return float(least.sum()), max(mean, float(least.max())), kept


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
