"""Bounds of groups and of their variants, many at once, before any layout is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.core.errors import InputError
from autopar.cost import CostModel
from autopar.cost import constants as k
from autopar.search.chunks import chunked_cuts
from autopar.search.options import SearchOptions
from autopar.search.rows import Row, Rows, World
from autopar.search.space import PointGroup
from autopar.search.variants import RECOMPUTE, VariantSet
from autopar.strategies import WHOLE

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
LEVELS_OF = {"none": 0, "selective": 1, "full": 2}
SHARING = (0, 2, 3)
"""ZeRO levels that change what happens inside a microbatch; level 1 is like 0."""


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
        kinds = model.kinds(*(model.first_devices(model.cluster.device_count),) * 2)
        self.contention = min(model.compute.constants(d).gather_exposed for d, _ in kinds)
        self.chained = all(a.at(1) > 0 and b.at(1) > 0 for a, b in chain)

    def groups(self, groups: Sequence[PointGroup]) -> tuple[Array, list[str | None]]:
        """Least objective of any variant of each group, and why none can work if so."""
        bounds = np.zeros(len(groups))
        reasons: list[str | None] = []
        scalars: dict[tuple[int, int], tuple[float, float, float, float]] = {}
        for index, group in enumerate(groups):
            world = self.rows.world(group.world)
            if world.why_not is not None:
                reasons.append(f"no time for {self.options.precision} on a device")
                continue
            row = self.rows.row(group)
            key = (id(row), group.pp)
            if key not in scalars:
                scalars[key] = self._scalars(row, group.pp)
            total, fullest, least_kept, parameters = scalars[key]
            seconds = group.microbatches * fullest
            held = self._least_held(group, world, row, parameters) + least_kept / group.pp
            reasons.append("memory" if held > world.memory_limit else None)
            bounds[index] = self._objective(group, world, seconds, total, held)
        return bounds, reasons

    @staticmethod
    def _scalars(row: Row, ranks: int) -> tuple[float, float, float, float]:
        """Work of all blocks and of the fullest rank, least bytes kept, parameters."""
        work = row.seconds.forward + row.seconds.backward
        kept = min(float(level.sum()) for level in row.kept)
        return float(work.sum()), float(fullest_rank(work, ranks)), kept, row.total_parameters

    def _least_held(self, group: PointGroup, world: World, row: Row, parameters: float) -> float:
        """Some rank holds at least the average of weights, gradients and states."""
        sizes = self.model.sizes
        zero = max((v.zero for v in group.variants.variants), default=0)
        shards = group.dp_shard * group.cp if zero else 1
        per_element = min(
            sum(sizes.held(zero, shards, offload))
            for offload in {v.offload == "on" for v in group.variants.variants}
        )
        own = parameters * per_element / group.pp
        return (own + self._shared_bytes(group, world)) * (1 + k.MEMORY_MARGIN.value)

    def _shared_bytes(self, group: PointGroup, world: World) -> float:
        """Bytes every rank has: framework and the replica's batch."""
        samples = group.microbatch_size * group.microbatches
        return world.framework_bytes + self.model.profile.input_bytes * samples

    def _objective(
        self, group: PointGroup, world: World, seconds: float, computing: float, held: float
    ) -> float:
        """The objective when a step takes ``seconds`` and some rank holds ``held`` bytes."""
        name = self.options.objective
        if name == "memory":
            return held / (1 + k.MEMORY_MARGIN.value)
        slope, floor = self._slope(group, world, computing)
        return slope * seconds + floor

    def _slope(self, group: PointGroup, world: World, computing: float) -> tuple[float, float]:
        """``objective >= slope x step + floor``.

        Raises:
            InputError: The objective needs figures that a device lacks.
        """
        name = self.options.objective
        if name == "cost":
            return _need(world.usd_per_s, "usd_per_hour"), 0.0
        if name == "energy":
            ranks = group.world / group.pp
            extra = _need(world.extra_watt, "power_watt and idle_watt")
            return (
                _need(world.idle_watt, "idle_watt"),
                extra * ranks * group.microbatches * computing,
            )
        return 1.0, 0.0

    def variants(self, groups: Sequence[PointGroup]) -> list[tuple[Array, npt.NDArray[np.bool_]]]:
        """Per group: least objective of every variant, and which cannot fit in memory."""
        by_set: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            by_set.setdefault(id(group.variants), []).append(index)
        found: dict[int, tuple[Array, npt.NDArray[np.bool_]]] = {}
        for members in by_set.values():
            batch = _Batch(self, [groups[i] for i in members])
            bounds, misfits = batch.bounds()
            for position, index in enumerate(members):
                found[index] = (bounds[position], misfits[position])
        return [found[i] for i in range(len(groups))]


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """Seconds per block ``[group, sharing, level, block]``.

    Attributes:
        forward: Forward.
        work: Forward, backward and recompute.
    """

    forward: Array
    work: Array


class _Batch:
    """Groups with the same variants, so the same ``pp`` and microbatch count."""

    def __init__(self, quick: QuickBounds, groups: Sequence[PointGroup]) -> None:
        self.quick = quick
        self.groups = groups
        self.set: VariantSet = groups[0].variants
        self.pp, self.m = groups[0].pp, groups[0].microbatches
        self.rows = [quick.rows.row(group) for group in groups]
        self.worlds = [quick.rows.world(group.world) for group in groups]
        self.rates = [quick.rows.rates(group) for group in groups]

    @cached_property
    def totals(self) -> _Totals:
        """All sharing levels and recompute levels."""
        sizes = self.quick.model.sizes
        parameters = np.array([row.parameters for row in self.rows])
        gather = parameters * self._rate("gather") * sizes.weight
        scatter = parameters * self._rate("scatter") * sizes.gradient
        share = (self.m - 1) / self.m
        adding = np.array([row.accumulate for row in self.rows]) * share
        forward = self._stack("forward")
        backward = self._stack("backward")
        full, selective = self._stack("full"), self._stack("selective")
        forwards, works = [], []
        for zero in SHARING:
            f = self._beside(forward, gather) if zero == 3 else forward
            beside = scatter + (gather if zero == 3 else 0.0)
            b = self._beside(backward, beside) if zero else backward
            both = f + b + adding
            again = self._beside(full, gather) if zero == 3 else full
            forwards.append(np.stack([f, f, f], axis=1))
            works.append(np.stack([both, both + selective, both + again], axis=1))
        return _Totals(forward=np.stack(forwards, axis=1), work=np.stack(works, axis=1))

    def _beside(self, compute: Array, collective: Array) -> Array:
        """A collective beside compute, as :func:`autopar.cost.blocks.block_seconds` prices it."""
        longer, shorter = np.maximum(compute, collective), np.minimum(compute, collective)
        return np.asarray(longer + self.quick.contention * shorter)

    def _stack(self, name: str) -> Array:
        return np.array([getattr(row.seconds, name) for row in self.rows])

    def _rate(self, name: str) -> Array:
        return np.array([rate[name] for rate in self.rates])[:, None]

    def bounds(self) -> tuple[Array, npt.NDArray[np.bool_]]:
        """``[group, variant]``: least objective, and memory that cannot suffice."""
        shape = (len(self.groups), len(self.set.variants))
        seconds, misfits = np.zeros(shape), np.zeros(shape, dtype=bool)
        again = np.zeros(shape)
        sharing = np.searchsorted(SHARING, np.where(self.set.zero == 1, 0, self.set.zero))
        time_level = np.where(
            self.set.recompute == RECOMPUTE.index("mixed"), 0, self.set.recompute
        )
        kept_level = np.minimum(self.set.recompute, LEVELS_OF["full"])
        tails = self._tails()
        for (schedule, chunks), columns in self.set.schedules:
            mine = (sharing[columns], time_level[columns])
            if chunks > 1:
                seconds[:, columns] = self._chunked(schedule, chunks, *mine, columns)
            else:
                seconds[:, columns] = self._step(schedule)[:, mine[0], mine[1]]
                if self.pp > 1 and self.quick.chained:
                    tailed = self._tailed(*mine, columns)
                    seconds[:, columns] = np.maximum(seconds[:, columns], tailed)
            misfits[:, columns] = self._misfit(schedule, chunks, kept_level[columns], columns)
            again[:, columns] = self._mixed_again(schedule, chunks, columns)
        if self.pp == 1:
            seconds = self._overlapped(seconds, sharing, time_level, tails) + self.m * again
        else:
            work = self.totals.work.sum(axis=3)[:, sharing, time_level] + again
            seconds = np.maximum(seconds, self.m * work / self.pp + tails)
        return self._objectives(seconds, sharing, time_level), misfits

    def _overlapped(
        self,
        seconds: Array,
        sharing: Indices,
        level: Indices,
        tails: Array,
    ) -> Array:
        """One stage per replica: buckets may hide, but not start before the last backward."""
        optimizer = self._optimizer()
        forward = self.totals.forward.sum(axis=3)[:, sharing, level]
        work = self.totals.work.sum(axis=3)[:, sharing, level]
        hidden = (self.m - 1) * work + forward + tails
        return np.maximum(seconds + optimizer, hidden)

    def _optimizer(self) -> Array:
        """Least optimizer seconds ``[group, variant]`` of an average rank."""
        zero, offload = self.set.zero, self.set.offload
        elements = np.array([row.total_parameters for row in self.rows]) / self.pp
        per_element = np.array([world.optimizer_s for world in self.worlds])
        shards = self._shards[:, None]
        own = np.where(zero[None, :] >= 1, elements[:, None] / shards, elements[:, None])
        return np.asarray(own * per_element[:, offload.astype(int)])

    def _tails(self) -> Array:
        """Least synchronisation and optimizer seconds ``[group, variant]`` of an average rank."""
        dense = np.array([row.parameters.sum() for row in self.rows])
        total = np.array([row.total_parameters for row in self.rows])
        experts = np.array([row.experts.sum() for row in self.rows])
        elements = np.maximum(0.0, np.minimum(dense, total - experts))[:, None] / self.pp
        return np.asarray(elements * self._sync_per_element + self._optimizer())

    @cached_property
    def _sync_per_element(self) -> Array:
        """Least synchronisation seconds per dense element ``[group, variant]``."""
        sizes = self.quick.model.sizes
        zero = self.set.zero[None, :]
        own = self._rate("replicas") * sizes.gradient / self._shards[:, None]
        scatter = self._rate("scatter") * sizes.gradient
        gather = self._rate("gather") * sizes.weight
        return np.where(
            zero == 0,
            self._rate("all_reduce") * sizes.gradient,
            own + np.where(zero == 1, scatter, 0.0) + np.where(zero <= 2, gather, 0.0),
        )

    @cached_property
    def _shards(self) -> Array:
        return np.array([g.dp_shard * g.cp if g.dp_shard > 1 else 1 for g in self.groups])

    def _tail_per_element(self) -> Array:
        """Synchronisation and optimizer seconds per dense element ``[group, variant]``."""
        per_element = np.array([world.optimizer_s for world in self.worlds])
        shares = np.where(self.set.zero[None, :] >= 1, self._shards[:, None], 1.0)
        own = per_element[:, self.set.offload.astype(int)] / shares
        return np.asarray(self._sync_per_element + own)

    def _objectives(self, seconds: Array, sharing: Indices, level: Indices) -> Array:
        name = self.quick.options.objective
        if name == "memory":
            held = [
                self.quick._objective(
                    g, w, 0.0, 0.0, self.quick._least_held(g, w, row, row.total_parameters)
                )
                for g, w, row in zip(self.groups, self.worlds, self.rows, strict=True)
            ]
            return np.repeat(np.array(held)[:, None], seconds.shape[1], axis=1)
        if name in ("time", "time-to-target"):
            return seconds
        computing = self.totals.work.sum(axis=3)[:, sharing, level]
        result = np.empty_like(seconds)
        for i, (group, world) in enumerate(zip(self.groups, self.worlds, strict=True)):
            slope, floor = self.quick._slope(group, world, 1.0)
            result[i] = slope * seconds[i] + floor * computing[i]
        return result

    def _step(self, schedule: str) -> Array:
        """Least step seconds ``[group, sharing, level]`` of one stage per rank, without tails."""
        work, forward = self.totals.work, self.totals.forward
        total, fullest = work.sum(axis=3), self._fullest
        m, p = self.m, self.pp
        even = m * fullest
        if p == 1:
            return np.asarray(m * total)
        if not self.quick.chained:
            return np.asarray(even)
        if schedule == "gpipe":
            return np.asarray(total + (m - 1) * fullest)
        if schedule != "1f1b":
            return np.asarray(even)
        part = np.divide(forward, work, out=np.zeros_like(work), where=work > 0).max(axis=3)
        # Rank q runs min(m, p - q) forwards before its first backward, which needs the whole way
        # down and back: total + (m - 1) x_q - (warm_q - 1) f_q <= T for every rank; the x_q sum
        # to the total.
        warm = np.minimum(m, p - np.arange(p)) - 1
        weights = (m - 1) - part[..., None] * warm
        safe = np.where(weights > 0, weights, 1.0)
        rounds = np.where((weights > 0).all(axis=3), 1.0 / (1.0 / safe).sum(axis=3), 0.0)
        some = fullest * np.maximum(weights.min(axis=3), 0.0)
        return np.maximum(even, total + np.maximum(total * rounds, some))

    @cached_property
    def _fullest(self) -> Array:
        """Least work of the fullest rank ``[group, sharing, level]``."""
        return fullest_rank(self.totals.work, self.pp)

    def _tailed(
        self,
        sharing: Indices,
        level: Indices,
        columns: Indices,
    ) -> Array:
        """Least step seconds ``[group, column]`` of one stage per rank, its own tail counted.

        Rank q waits for the forwards before it, does ``m x_q`` and then its tail, which is at
        least ``least x_q``; with ``f_q <= part x_q`` the forwards sum to
        ``F <= T (1 - (1 - part / (m + least))^p)``.
        """
        work = self.totals.work[:, sharing, level]
        forward = self.totals.forward[:, sharing, level]
        there = work > 0
        part = np.divide(forward, work, out=np.zeros_like(work), where=there).max(axis=2)
        elements = np.array([row.untied_parameters for row in self.rows])[:, None, :]
        ratio = np.divide(elements, work, out=np.full_like(work, np.inf), where=there).min(axis=2)
        rounds = self.m + ratio * self._tail_per_element()[:, columns]
        filled = 1 - (1 - np.minimum(part / rounds, 1.0)) ** self.pp
        some = rounds * self._fullest[:, sharing, level]
        return np.maximum(some, forward.sum(axis=2) / np.maximum(filled, 1e-300))

    def _chunked(
        self,
        schedule: str,
        chunks: int,
        sharing: Indices,
        level: Indices,
        columns: Indices,
    ) -> Array:
        """Least step seconds ``[group, column]`` of several stages per rank.

        Fill before a rank's first forward, all its work, then the way back up or its own tail;
        see :meth:`autopar.cost.bounds.Bounds.chunked`.
        """
        found = self.quick.model.schedule(schedule)
        stages = self.pp * chunks
        rank_of = np.array([found.rank_of(s, self.pp) for s in range(stages)])
        firsts = np.array([int(np.argmax(rank_of == r)) for r in range(self.pp)])
        work_of = self.totals.work[:, sharing, level]
        forward_of = self.totals.forward[:, sharing, level]
        elements_of = np.array([row.parameters for row in self.rows])
        per_element = self._tail_per_element()[:, columns]
        best: Array | None = None
        for cuts in chunked_cuts(self.quick.model.profile, stages):
            work = _runs(work_of, cuts)
            mine = self.m * _by_rank(work, rank_of, self.pp)
            elements = _by_rank(_runs(elements_of, cuts), rank_of, self.pp)
            tail = elements[:, None, :] * per_element[:, :, None]
            down = _before(_runs(forward_of, cuts), firsts) if self.quick.chained else 0.0
            back = (
                _before(work, firsts) if self.quick.chained and not found.splits_backward else 0.0
            )
            value = np.maximum(down + mine + tail, back + mine).max(axis=-1)
            best = value if best is None else np.minimum(best, value)
        assert best is not None  # there is at least one partition
        return best

    def _misfit(
        self,
        schedule: str,
        chunks: int,
        level: Indices,
        columns: Indices,
    ) -> npt.NDArray[np.bool_]:
        """``[group, column]``: memory cannot suffice whatever the boundaries."""
        if chunks > 1:
            return self._chunked_misfit(schedule, chunks, level, columns)
        kept = np.array([[row.kept[x].sum() for x in range(3)] for row in self.rows])[:, level]
        return np.asarray(kept > self._room_for_kept(schedule, columns))

    @cached_property
    def _room(self) -> Array:
        """Bytes of a rank for parameters and activations ``[group, 1]``."""
        margin = 1 + k.MEMORY_MARGIN.value
        return np.array(
            [
                w.memory_limit / margin - self.quick._shared_bytes(g, w)
                for g, w in zip(self.groups, self.worlds, strict=True)
            ]
        )[:, None]

    def _room_for_kept(self, schedule: str, columns: Indices) -> Array:
        """Most bytes per microbatch that all ranks can keep ``[group, column]``.

        On every rank ``kept_r flights_r + parameters_r <= room``; divided by the microbatches in
        flight and summed over the ranks.
        """
        live = self.quick.model.in_flight(schedule, self.pp, self.pp, self.m)
        flights = np.array([max(peaks)[0] for peaks in live], dtype=float)
        parameters = self._parameter_bytes[:, columns]
        return np.asarray(self._room * (1.0 / flights).sum() - parameters / flights.max())

    def _mixed_again(self, schedule: str, chunks: int, columns: Indices) -> Array:
        """Least recompute seconds per microbatch ``[group, column]`` that memory forces."""
        mixed = self.set.recompute[columns] == RECOMPUTE.index("mixed")
        if chunks > 1 or not mixed.any():
            return np.zeros((len(self.groups), len(columns)))
        kept = np.array([row.kept[0].sum() for row in self.rows])[:, None]
        price = np.array([row.seconds_per_byte for row in self.rows])[:, None]
        excess = np.maximum(0.0, kept - self._room_for_kept(schedule, columns))
        return np.where(mixed[None, :], excess * price, 0.0)

    def _chunked_misfit(
        self,
        schedule: str,
        chunks: int,
        level: Indices,
        columns: Indices,
    ) -> npt.NDArray[np.bool_]:
        """The first rank, which has the most in flight, with the partitions of the space."""
        found = self.quick.model.schedule(schedule)
        stages = self.pp * chunks
        mine = list(found.stages_of(0, self.pp, stages))
        peaks = np.array(found.rank_peaks(0, self.pp, stages, self.m), dtype=float)
        kept = np.array([row.kept for row in self.rows])
        untied = np.array([row.untied_parameters for row in self.rows])
        share = np.array([[max(row.total_parameters, 1.0)] for row in self.rows])
        per_element = self._parameter_bytes[:, columns] / share
        misfit: npt.NDArray[np.bool_] | None = None
        for cuts in chunked_cuts(self.quick.model.profile, stages):
            held = (_runs(kept, cuts)[..., mine] @ peaks.T).max(axis=-1)[:, level]
            elements = _runs(untied, cuts)[..., mine].sum(axis=-1)[:, None]
            over = held + elements * per_element > self._room
            misfit = over if misfit is None else misfit & over
        assert misfit is not None  # there is at least one partition
        return misfit

    @cached_property
    def _parameter_bytes(self) -> Array:
        """Weights, gradients and states of all pipeline ranks together ``[group, variant]``."""
        sizes = self.quick.model.sizes
        table = {
            (zero, offload, shards): sum(sizes.held(zero, shards, offload))
            for shards in {g.dp_shard * g.cp if g.dp_shard > 1 else 1 for g in self.groups}
            for zero in range(4)
            for offload in (False, True)
        }
        return np.array(
            [
                [
                    row.total_parameters * table[v.zero, v.offload == "on", shards]
                    for v in self.set.variants
                ]
                for row, shards in (
                    (row, g.dp_shard * g.cp if g.dp_shard > 1 else 1)
                    for row, g in zip(self.rows, self.groups, strict=True)
                )
            ]
        )


def fullest_rank(work: Array, ranks: int) -> Array:
    """Least work of the fullest rank, along the last axis.

    At least the average; and of the ``j ranks + 1`` largest blocks some rank holds ``j + 1``.
    """
    falling = -np.sort(-work, axis=-1)
    picked = falling[..., ::ranks]
    counts = np.arange(1, picked.shape[-1] + 1)
    return np.maximum((picked * counts).max(axis=-1), work.sum(axis=-1) / ranks)


def _by_rank(values: Array, rank_of: Indices, ranks: int) -> Array:
    """Sums over the stages of each rank, along the last axis."""
    return np.stack([values[..., rank_of == r].sum(axis=-1) for r in range(ranks)], axis=-1)


def _before(values: Array, firsts: Indices) -> Array:
    """Sums over the stages before some stages."""
    return np.asarray((np.cumsum(values, axis=-1) - values)[..., firsts])


def _runs(values: Array, cuts: tuple[int, ...]) -> Array:
    """Sums over the runs between boundaries, along the last axis."""
    ends = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    picked = ends[..., list(cuts)]
    return np.asarray(np.diff(picked, axis=-1))


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
