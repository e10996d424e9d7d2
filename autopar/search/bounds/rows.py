"""Arrays over the groups of a space: what bounds need, looked up once per way to divide work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cluster import Device
from autopar.cost import CostModel
from autopar.cost.communication.ranks import RankGroups
from autopar.cost.computation.blocks import Surroundings
from autopar.cost.work import FULL, NONE, SELECTIVE
from autopar.plans import Mesh
from autopar.search.bounds.links import Links
from autopar.search.bounds.row import Row, least_row, slowest_of
from autopar.search.bounds.worlds import Kinds, World
from autopar.search.options import SearchOptions
from autopar.search.space.build import PointGroup
from autopar.search.space.columns import Columns, alike
from autopar.strategies import WHOLE, Split

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """Sums over the blocks, of several groups or microbatch sizes; seconds of one microbatch.

    Attributes:
        total: Forward and backward.
        fullest: The same on the fullest pipeline rank, at least.
        kept: Least bytes kept.
        forward: Forward.
        weight: Part of backward that only weight gradients need.
        message_bytes: Fewest bytes that pass a boundary between blocks, either way.
    """

    total: Array
    fullest: Array
    kept: Array
    forward: Array
    weight: Array
    message_bytes: Array

    @classmethod
    def empty(cls, count: int) -> BlockSums:
        """Zeros, to be filled."""
        return cls(**{each.name: np.zeros(count) for each in fields(cls)})

    def put(self, some: Indices, found: BlockSums) -> None:
        """Fill in some entries."""
        for each in fields(self):
            getattr(self, each.name)[some] = getattr(found, each.name)

    def take(self, some: Indices) -> BlockSums:
        """Some of the entries."""
        return BlockSums(**{each.name: getattr(self, each.name)[some] for each in fields(self)})


class Rows:
    """Looks up rows and collective rates of groups.

    Args:
        model: Shared caches.
        options: What is asked.
    """

    def __init__(self, model: CostModel, options: SearchOptions) -> None:
        self.model = model
        self.options = options
        self.links = Links(self)
        self._worlds: dict[int, World] = {}
        self._rows: dict[object, Row] = {}
        self._known: dict[object, Row] = {}
        self._elements: dict[int, float] = {}
        self._held: dict[tuple[int, int, tuple[bool, ...]], float] = {}
        self._ranks: dict[object, RankGroups] = {}
        self._classes: dict[
            object, tuple[list[tuple[Kinds, Surroundings]], npt.NDArray[np.intp]]
        ] = {}
        self._class_rows: dict[object, list[Row]] = {}
        self._untied_of: dict[int, Array] = {}
        self._adding_of: dict[object, Array] = {}

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

    def prepare(self, columns: Columns, some: Indices) -> None:
        """Price the blocks of equal splits for all microbatch sizes of some groups at once."""
        known: dict[object, list[tuple[Kinds, Surroundings]]] = {}
        wanted: dict[object, tuple[Split, Device, int, Surroundings, dict[int, None]]] = {}
        equal = (columns.world, columns.pp, columns.split, columns.size)
        firsts, _ = alike(*(field[some] for field in equal))
        for group in (columns.groups[i] for i in some[firsts]):
            place = (group.world, group.pp, id(group.split))
            if place not in known:
                known[place] = self._classes_of(group)[0]
            for kinds, around in known[place]:
                for device, busy in kinds:
                    key = (id(group.split), device.name, busy, around)
                    entry = wanted.setdefault(key, (group.split, device, busy, around, {}))
                    entry[-1][group.microbatch_size] = None
        for split, device, busy, around, sizes in wanted.values():
            self.model.many_seconds(split, tuple(sizes), device, busy, around)

    def works(self, group: PointGroup, sizes: tuple[int, ...]) -> tuple[Array, BlockSums]:
        """Of a group on equal nodes with any of several microbatch sizes.

        Returns:
            Seconds of forward and backward ``[size, block]``, and sums over the blocks.
        """
        model, split = self.model, group.split
        (device, busy), *_ = self.world(group.world).kinds
        around = self._around(group)
        many = model.many_seconds(split, sizes, device, busy, around)
        if many is None:
            each = [model.block_seconds(split, s, device, busy, around) for s in sizes]
            forward, backward, weight = (
                np.array([getattr(blocks, name) for blocks in each])
                for name in ("forward", "backward", "weight")
            )
        else:
            forward, backward, weight = many.forward, many.backward, many.weight
        column = np.array(sizes, dtype=float)[:, None]
        kept = model.work(split).at_levels(column) * model.kept_scale
        work, scale = forward + backward, model.tables(split).edge_scale
        sums = BlockSums(
            total=work.sum(axis=-1),
            fullest=np.zeros(len(sizes)),
            kept=kept.sum(axis=-1).min(axis=0),
            forward=forward.sum(axis=-1),
            weight=weight.sum(axis=-1),
            message_bytes=self._least_edges(column[:, 0]) * scale,
        )
        return work, sums

    def of_worlds(self, columns: Columns, fact: Callable[[World], float]) -> Array:
        """A fact of the devices that each group uses."""
        sizes, number = columns.worlds
        return np.array([fact(self.world(size)) for size in sizes])[number]

    def places(self, columns: Columns) -> Indices:
        """Number that is equal where the devices of groups make no difference to their blocks.

        On equal nodes what matters is how many devices of a node are busy.
        """
        return self.of_worlds(
            columns, lambda world: world.kinds[0][1] if world.regular else -len(world.placement)
        ).astype(np.intp)

    def regular(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """True for groups on equal, equally busy nodes."""
        return self.of_worlds(columns, lambda world: world.regular).astype(bool)

    def row(self, group: PointGroup) -> Row:
        """The least of every part over the kinds of pipeline ranks."""
        world = self.world(group.world)
        if not world.regular:
            rows, _ = self.by_rank(group)
            if len(rows) == 1:
                return rows[0]
            key = tuple(map(id, rows))
            if key not in self._known:
                self._known[key] = least_row(rows)
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
                self._adding(split, device, busy),
            )
            for device, busy in kinds
        ]
        seconds, adding = slowest_of(options)
        work = model.work(split)
        scale = model.kept_scale
        kept = tuple(work.at_level(x, samples) * scale for x in (NONE, SELECTIVE, FULL))
        return Row(
            seconds=seconds,
            accumulate=adding,
            parameters=work.parameters,
            untied_parameters=self._untied(split),
            message_bytes=float(self._least_edges(np.array([float(samples)]))[0])
            * model.tables(split).edge_scale,
            kept=(kept[0], kept[1], kept[2]),
        )

    def _untied(self, split: Split) -> Array:
        if id(split) not in self._untied_of:
            untied = self.model.work(split).parameters.copy()
            for _, elements, blocks in self.model.tables(split).tied:
                untied[list(blocks)] -= elements
            self._untied_of[id(split)] = np.maximum(untied, 0.0)
        return self._untied_of[id(split)]

    def _adding(self, split: Split, device: Device, busy: int) -> Array:
        """Seconds per block of adding gradients to earlier ones."""
        key = (id(split), device.name, busy)
        if key not in self._adding_of:
            self._adding_of[key] = self.model.accumulate(split, 2, device, busy) * 2
        return self._adding_of[key]

    def _least_edges(self, sizes: Array) -> Array:
        """Fewest profiled bytes that pass a boundary between blocks, either way, by size."""
        fixed, per_sample = self._edges
        if not fixed.size:
            return np.zeros_like(sizes)
        return np.asarray((fixed + per_sample * sizes[:, None]).min(axis=1))

    @cached_property
    def _edges(self) -> tuple[Array, Array]:
        chain = self.model.tables(WHOLE).chain[1:-1]
        amounts = [amount for pair in chain for amount in pair]
        return np.array([a.fixed for a in amounts]), np.array([a.per_sample for a in amounts])

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


def _names(kinds: Kinds) -> tuple[tuple[str, int], ...]:
    return tuple((device.name, busy) for device, busy in kinds)
