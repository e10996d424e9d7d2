"""Arrays over the groups of a space: what bounds need, looked up once per way to divide work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cluster import Device
from autopar.cost import CostModel
from autopar.cost.blocks import BlockSeconds, Surroundings
from autopar.cost.groups import Group
from autopar.cost.layout import BUCKET_BYTES
from autopar.cost.ranks import RankGroups, Shapes
from autopar.cost.work import FULL, NONE, SELECTIVE
from autopar.plans import Mesh
from autopar.search.options import SearchOptions
from autopar.search.space import PointGroup
from autopar.search.worlds import Kinds, World
from autopar.strategies import WHOLE, Split

Array = npt.NDArray[np.float64]
LARGE = 1e13
"""Bytes at which the latency of a collective no longer counts."""
RATES = ("scatter", "gather", "bucket_all_reduce", "bucket_scatter", "bucket_replicas")
"""Names of the rates of a group."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Blocks divided in one way for one microbatch size, on the fastest device.

    Attributes:
        seconds: Per block, without ZeRO-2 and ZeRO-3 collectives.
        accumulate: Seconds per block of adding to earlier gradients, for many microbatches.
        parameters: Elements per block on a rank, experts left out.
        untied_parameters: The same without parameters that several blocks read.
        experts: Expert elements per block.
        total_parameters: Different elements on all pipeline ranks, experts included.
        message_bytes: Fewest bytes that pass a boundary between blocks, either way.
        kept: Bytes per microbatch of every block by recompute level.
    """

    seconds: BlockSeconds
    accumulate: Array
    parameters: Array
    untied_parameters: Array
    experts: Array
    total_parameters: float
    message_bytes: float
    kept: tuple[Array, Array, Array]

    @cached_property
    def again(self) -> tuple[Array, Array]:
        """Kept bytes that recompute can save and the least seconds for them, both rising.

        In between the line is a lower bound (fractional knapsack).
        """
        return _cheapest(self.seconds, self.kept)


class Rows:
    """Looks up rows and collective rates of groups.

    Args:
        model: Shared caches.
        options: What is asked.
    """

    def __init__(self, model: CostModel, options: SearchOptions) -> None:
        self.model = model
        self.options = options
        self._worlds: dict[int, World] = {}
        self._rows: dict[object, Row] = {}
        self._known: dict[object, Row] = {}
        self._elements: dict[int, float] = {}
        self._held: dict[tuple[int, int, tuple[bool, ...]], float] = {}
        self._group_rates: dict[object, dict[str, float]] = {}
        self._ranks: dict[object, RankGroups] = {}
        self._rates: dict[object, float] = {}
        self._hops: dict[object, tuple[Array, float]] = {}
        self._link_kinds: dict[
            tuple[int, int], tuple[list[tuple[int, int]], npt.NDArray[np.intp]]
        ] = {}
        self._classes: dict[
            object, tuple[list[tuple[Kinds, Surroundings]], npt.NDArray[np.intp]]
        ] = {}
        self._class_rows: dict[object, list[Row]] = {}

    def world(self, size: int) -> World:
        """Facts of the first ``size`` devices."""
        if size not in self._worlds:
            self._worlds[size] = World(self.model, self.options, size)
        return self._worlds[size]

    def ranks(self, group: PointGroup) -> RankGroups:
        """Groups of the mesh axes; the pipeline does not matter for their first shapes."""
        key = (
            group.world,
            group.dp_replicate,
            group.dp_shard,
            group.cp,
            group.tp,
            group.ep,
            1 if self.world(group.world).regular else group.pp,
        )
        if key not in self._ranks:
            world = self.world(group.world)
            self._ranks[key] = RankGroups(
                mesh=Mesh(
                    dp_replicate=group.dp_replicate,
                    dp_shard=group.dp_shard,
                    cp=group.cp,
                    tp=group.tp,
                    pp=group.pp,
                    ep=group.ep,
                ),
                placement=world.placement,
                communication=world.communication,
            )
        return self._ranks[key]

    def prepare(self, groups: Sequence[PointGroup]) -> None:
        """Price the blocks of equal splits for all their microbatch sizes at once."""
        model = self.model
        known: dict[object, list[tuple[Kinds, Surroundings]]] = {}
        wanted: dict[object, tuple[Split, Device, int, Surroundings, dict[int, None]]] = {}
        for group in groups:
            world = self.world(group.world)
            if world.why_not is not None:
                continue
            place = (group.world, 0 if world.regular else group.pp, id(group.split))
            if place not in known:
                regular = [(world.kinds, self._around(group))] if world.regular else None
                known[place] = regular or self._classes_of(group)[0]
            for kinds, around in known[place]:
                for device, busy in kinds:
                    key = (id(group.split), device.name, busy, around)
                    entry = wanted.setdefault(key, (group.split, device, busy, around, {}))
                    entry[-1][group.microbatch_size] = None
        for split, device, busy, around, sizes in wanted.values():
            model.prepare(split, tuple(sizes), device, busy, around)

    def row(self, group: PointGroup) -> Row:
        """The least of every part over the kinds of pipeline ranks."""
        world = self.world(group.world)
        if not world.regular:
            rows, _ = self.by_rank(group)
            if len(rows) == 1:
                return rows[0]
            key = tuple(map(id, rows))
            if key not in self._known:
                self._known[key] = _least_row(rows)
            return self._known[key]
        # Equal nodes: what matters of the world is how many devices of a node are busy.
        known = (id(group.split), group.microbatch_size, world.kinds[0][1])
        if known not in self._known:
            self._known[known] = self._row(group, world.kinds, self._around(group))
        return self._known[known]

    def by_rank(self, group: PointGroup) -> tuple[list[Row], npt.NDArray[np.intp]]:
        """Different rows of the pipeline ranks, and which one each rank has."""
        if self.world(group.world).regular:
            return [self.row(group)], np.zeros(group.pp, dtype=np.intp)
        classes, of_rank = self._classes_of(group)
        key = (id(classes), group.microbatch_size)
        if key not in self._class_rows:
            self._class_rows[key] = [self._row(group, *each) for each in classes]
        return self._class_rows[key], of_rank

    def _classes_of(
        self, group: PointGroup
    ) -> tuple[list[tuple[Kinds, Surroundings]], npt.NDArray[np.intp]]:
        """Kinds of devices and groups around them that occur, and which ones each rank has."""
        key = (group.world, group.pp, id(group.split))
        if key not in self._classes:
            world, stage = self.world(group.world), group.world // group.pp
            ranks = self.ranks(group)
            numbers: dict[object, int] = {}
            classes, found = [], []
            for q in range(group.pp):
                kinds = world.kinds_of(q * stage, (q + 1) * stage)
                around = Surroundings(tp=ranks.tp(q), cp=ranks.cp(q), ep=ranks.ep(q))
                alike = (_names(kinds), around)
                if alike not in numbers:
                    numbers[alike] = len(numbers)
                    classes.append((kinds, around))
                found.append(numbers[alike])
            self._classes[key] = (classes, np.array(found))
        return self._classes[key]

    def _row(self, group: PointGroup, kinds: Kinds, around: Surroundings) -> Row:
        key = (group.split, group.microbatch_size, _names(kinds), around)
        if key not in self._rows:
            self._rows[key] = self._make(group, kinds, around)
        return self._rows[key]

    def _around(self, group: PointGroup) -> Surroundings:
        ranks = self.ranks(group)
        return Surroundings(tp=ranks.tp(0), cp=ranks.cp(0), ep=ranks.ep(0))

    def _make(self, group: PointGroup, kinds: Kinds, around: Surroundings) -> Row:
        model, split, samples = self.model, group.split, group.microbatch_size
        options = [
            (
                model.block_seconds(split, samples, device, busy, around),
                model.accumulate(split, 2, device, busy) * 2,
            )
            for device, busy in kinds
        ]
        seconds, adding = _slowest(options)
        work = model.work(split)
        untied = work.parameters.copy()
        for _, elements, blocks in model.tables(split).tied:
            untied[list(blocks)] -= elements
        scale = model.kept_scale
        kept = tuple(work.at_level(x, samples) * scale for x in (NONE, SELECTIVE, FULL))
        return Row(
            seconds=seconds,
            accumulate=adding,
            parameters=work.parameters,
            untied_parameters=np.maximum(untied, 0.0),
            experts=work.experts,
            total_parameters=self.elements(split),
            message_bytes=self._least_edge(samples) * model.tables(split).edge_scale,
            kept=(kept[0], kept[1], kept[2]),
        )

    def _least_edge(self, samples: int) -> float:
        """Fewest profiled bytes that pass a boundary between blocks, either way."""
        fixed, per_sample = self._edges
        return float((fixed + per_sample * samples).min()) if fixed.size else 0.0

    @cached_property
    def _edges(self) -> tuple[Array, Array]:
        chain = self.model.tables(WHOLE).chain[1:-1]
        amounts = [amount for pair in chain for amount in pair]
        return np.array([a.fixed for a in amounts]), np.array([a.per_sample for a in amounts])

    def hops(self, group: PointGroup, size_bytes: float) -> tuple[Array, float]:
        """Least seconds of messages along the pipeline.

        Args:
            group: The group.
            size_bytes: Of a message from one pipeline rank to the next.

        Returns:
            By pipeline rank, all messages from rank 0 down to it; and the slowest message.
        """
        nothing = np.zeros(group.pp)
        if group.pp == 1 or size_bytes <= 0:
            return nothing, 0.0
        key = (group.world, group.pp, size_bytes)
        if key not in self._hops:
            ends, kinds = self._links(group.world, group.pp)
            message_seconds = self.world(group.world).communication.message_seconds
            each = np.array([message_seconds(size_bytes, *pair) for pair in ends])[kinds]
            self._hops[key] = np.concatenate((nothing[:1], np.cumsum(each))), float(each.max())
        return self._hops[key]

    def _links(self, size: int, pp: int) -> tuple[list[tuple[int, int]], npt.NDArray[np.intp]]:
        """A pair of devices for each kind of link down the pipeline, and the kind of each link."""
        if (size, pp) not in self._link_kinds:
            world, stage, cluster = self.world(size), size // pp, self.model.cluster
            numbers: dict[object, int] = {}
            pairs, kinds = [], []
            for rank in range(pp - 1):
                ends = (world.placement[rank * stage], world.placement[(rank + 1) * stage])
                kind = (
                    cluster.node(ends[0]) == cluster.node(ends[1]),
                    *(cluster.machine(d).name for d in ends),
                    *(world.communication.ranks_on_host(d) for d in ends),
                )
                if kind not in numbers:
                    numbers[kind] = len(numbers)
                    pairs.append(ends)
                kinds.append(numbers[kind])
            self._link_kinds[size, pp] = (pairs, np.array(kinds))
        return self._link_kinds[size, pp]

    def around_s(self, group: PointGroup, size_bytes: float) -> float:
        """Least seconds of a message from the last pipeline rank to the first."""
        world = self.world(group.world)
        return world.communication.message_seconds(
            size_bytes, (group.pp - 1) * (group.world // group.pp), 0
        )

    @cached_property
    def ends_tied(self) -> bool:
        """True when parameters are tied between the first and the last block and no others."""
        tied, last = self.model.tables(WHOLE).tied, len(self.model.profile.blocks) - 1
        return bool(tied) and all(blocks == (0, last) for _, _, blocks in tied)

    def tied_s(self, group: PointGroup, ends: tuple[int, int]) -> float:
        """Least seconds of summing gradients of what the first and the last block share.

        Args:
            group: The group.
            ends: Pipeline ranks of the first and of the last stage.
        """
        if not self.ends_tied or ends[0] == ends[1]:
            return 0.0
        elements = sum(size for _, size, _ in self.model.tables(group.split).tied)
        world, stage = self.world(group.world), group.world // group.pp
        devices = tuple(world.placement[rank * stage] for rank in sorted(ends))
        key = ("tied", group.world, devices, stage, elements)
        if key not in self._rates:
            self._rates[key] = world.communication.group_seconds(
                "all_reduce", elements * self.model.sizes.gradient, devices, concurrency=stage
            )
        return self._rates[key]

    def elements(self, split: Split) -> float:
        """Different parameter elements on all pipeline ranks together, experts included."""
        if id(split) not in self._elements:
            work = self.model.work(split)
            tied = sum(
                size * (len(blocks) - 1) for _, size, blocks in self.model.tables(split).tied
            )
            self._elements[id(split)] = float(work.parameters.sum() + work.experts.sum()) - tied
        return self._elements[id(split)]

    def bytes_per_element(self, zero: int, shards: int, offloads: tuple[bool, ...]) -> float:
        """Least weight, gradient and state bytes of an element on one rank."""
        key = (zero, shards, offloads)
        if key not in self._held:
            held = [sum(self.model.sizes.held(zero, shards, offload)) for offload in offloads]
            self._held[key] = min(held)
        return self._held[key]

    def rates(self, group: PointGroup) -> dict[str, float]:
        """Seconds per byte of the collectives over a group's data ranks.

        ``scatter`` and ``gather`` leave latency out; those of gradient buckets have it in.
        """
        regular = self.world(group.world).regular
        degrees = (group.dp_replicate, group.dp_shard, group.cp, group.tp)
        key = (group.world, *degrees, 1 if regular else group.pp)
        if key not in self._group_rates:
            ranks, bucket = self.ranks(group), float(BUCKET_BYTES)
            shards = group.dp_shard * group.cp if group.dp_shard > 1 else 1
            every = [0] if regular else range(group.pp)
            data = {ranks.data(q) for q in every}
            shard = {ranks.shard(q) for q in every}
            replicate = {ranks.replicate(q) for q in every}
            found = (
                self._fastest("reduce_scatter", shard),
                self._fastest("all_gather", shard),
                self._fastest("all_reduce", data, bucket),
                self._fastest("reduce_scatter", shard, bucket),
                self._fastest("all_reduce", replicate, bucket / shards),
            )
            self._group_rates[key] = dict(zip(RATES, found, strict=True))
        return self._group_rates[key]

    def _fastest(self, kind: str, ranks: set[Shapes], size_bytes: float | None = None) -> float:
        """Least rate over pipeline ranks, each as slow as one of its groups."""
        if size_bytes is None:
            return min(max(self._rate(kind, s) for s in shapes) for shapes in ranks)
        return min(max(self._bucket_rate(kind, s, size_bytes) for s in shapes) for shapes in ranks)

    def _rate(self, kind: str, shape: Group) -> float:
        key = (kind, shape)
        if key not in self._rates:
            one, two = (self._seconds(kind, size, shape) for size in (LARGE, 2 * LARGE))
            self._rates[key] = (two - one) / LARGE
        return self._rates[key]

    def _bucket_rate(self, kind: str, shape: Group, size_bytes: float) -> float:
        """Seconds per byte of whole buckets and, as time is concave in bytes, of a smaller one.

        Measured curves may bend the other way: only their slope counts.
        """
        if self.model.cluster.curves:
            return self._rate(kind, shape)
        key = (kind, shape, size_bytes)
        if key not in self._rates:
            self._rates[key] = self._seconds(kind, size_bytes, shape) / size_bytes
        return self._rates[key]

    @cached_property
    def _seconds(self) -> Callable[[str, float, Group], float]:
        return self.world(self.model.cluster.device_count).communication.seconds


def _cheapest(seconds: BlockSeconds, kept: Sequence[Array]) -> tuple[Array, Array]:
    """Bytes saved and least seconds, cheapest blocks and levels first."""
    saved_some = kept[0] - kept[1]
    saved_more = kept[1] - kept[2]
    # A step to full through selective may cost less per byte than selective itself: then only
    # the whole step counts.
    cost_some, cost_more = seconds.selective, seconds.full - seconds.selective
    whole = cost_some * np.maximum(saved_more, 0) > cost_more * np.maximum(saved_some, 0)
    whole |= (saved_some <= 0) | (saved_more <= 0) | (cost_more < 0)
    saved = np.concatenate([np.where(whole, 0, saved_some), np.where(whole, 0, saved_more)])
    cost = np.concatenate([cost_some, cost_more])
    saved = np.concatenate([saved, np.where(whole, kept[0] - kept[2], 0)])
    least = np.minimum(seconds.selective, seconds.full)
    cost = np.concatenate([cost, np.where(saved_some > 0, least, seconds.full)])
    there = saved > 0
    saved, cost = saved[there], np.maximum(cost[there], 0.0)
    order = np.argsort(cost / saved)
    zero = np.zeros(1)
    return (
        np.concatenate([zero, np.cumsum(saved[order])]),
        np.concatenate([zero, np.cumsum(cost[order])]),
    )


def _names(kinds: Kinds) -> tuple[tuple[str, int], ...]:
    return tuple((device.name, busy) for device, busy in kinds)


def _slowest(options: Sequence[tuple[BlockSeconds, Array]]) -> tuple[BlockSeconds, Array]:
    """The seconds of the kind of device that is slowest everywhere, which a stage then takes.

    Where none is, the least of every part.
    """
    names = ("forward", "backward", "selective", "full")
    for seconds, adding in options:
        slower = all(
            (getattr(seconds, name) >= getattr(other, name)).all()
            for other, _ in options
            for name in names
        )
        if slower and all((adding >= others).all() for _, others in options):
            return seconds, adding
    return _fastest([seconds for seconds, _ in options]), np.min([a for _, a in options], axis=0)


def _fastest(options: Sequence[BlockSeconds]) -> BlockSeconds:
    """Least seconds of every part."""
    return BlockSeconds(
        **{
            name: np.min([getattr(option, name) for option in options], axis=0)
            for name in BlockSeconds.__slots__
        }
    )


def _least_row(rows: Sequence[Row]) -> Row:
    """Least seconds of every part; what is held does not depend on devices."""
    return replace(
        rows[0],
        seconds=_fastest([row.seconds for row in rows]),
        accumulate=np.min([row.accumulate for row in rows], axis=0),
    )
