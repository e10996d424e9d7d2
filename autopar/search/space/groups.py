"""What a search space consists of: groups of points that divide work alike."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from autopar.search.space.columns import Columns, alike
from autopar.search.space.point import Point
from autopar.search.space.variants import AXES, Choices, Mask, Variant, VariantSet
from autopar.strategies import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class PointGroup:
    """Points that divide work alike.

    Attributes:
        dp_replicate: Replicas.
        dp_shard: Ranks that share out states.
        split: How work inside a stage is divided.
        pp: Pipeline ranks.
        microbatch_size: Samples.
        microbatches: Per replica and step.
        variants: The rest.
    """

    dp_replicate: int
    dp_shard: int
    split: Split
    pp: int
    microbatch_size: int
    microbatches: int
    variants: VariantSet

    @property
    def cp(self) -> int:
        """Context parallel ranks."""
        return self.split.cp

    @property
    def tp(self) -> int:
        """Tensor parallel ranks."""
        return self.split.tp

    @property
    def ep(self) -> int:
        """Expert parallel ranks."""
        return self.split.ep

    @property
    def sequence_parallel(self) -> bool:
        """With sequence parallelism."""
        return self.split.sequence_parallel

    @property
    def world(self) -> int:
        """Devices used."""
        return self.dp_replicate * self.dp_shard * self.split.cp * self.split.tp * self.pp

    def point(self, variant: Variant) -> Point:
        """The point of a variant."""
        return Point(
            dp_replicate=self.dp_replicate,
            dp_shard=self.dp_shard,
            zero=variant.zero,
            cp=self.cp,
            tp=self.tp,
            sequence_parallel="on" if self.sequence_parallel else "off",
            ep=self.ep,
            pp=self.pp,
            schedule=variant.schedule,
            chunks=variant.chunks,
            microbatch_size=self.microbatch_size,
            microbatches=self.microbatches,
            recompute=variant.recompute,
            offload=variant.offload,
            sync=variant.sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """All microbatch sizes of a replica's samples.

    Attributes:
        rungs: ``(size, count, variants)`` of those that can be priced.
        size: Points, rejected ones included.
        rejected: Reason -> count.
    """

    rungs: tuple[tuple[int, int, VariantSet], ...]
    size: int
    rejected: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshGroups:
    """Groups of one mesh; they differ in the microbatch.

    Attributes:
        dp_replicate: Replicas.
        dp_shard: Ranks that share out states.
        split: How work inside a stage is divided.
        pp: Pipeline ranks.
        ladder: Microbatch sizes, shared with other meshes.
    """

    dp_replicate: int
    dp_shard: int
    split: Split
    pp: int
    ladder: Ladder

    def group(self, rung: int) -> PointGroup:
        """The group of a microbatch size."""
        size, count, variants = self.ladder.rungs[rung]
        return PointGroup(
            dp_replicate=self.dp_replicate,
            dp_shard=self.dp_shard,
            split=self.split,
            pp=self.pp,
            microbatch_size=size,
            microbatches=count,
            variants=variants,
        )


class Groups(Sequence[PointGroup]):
    """The groups of many meshes, made when they are looked at.

    Args:
        meshes: In the order of the space.
    """

    def __init__(self, meshes: Sequence[MeshGroups]) -> None:
        self._meshes = meshes
        self._ends = list(itertools.accumulate(len(mesh.ladder.rungs) for mesh in meshes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[PointGroup]:
        return (mesh.group(i) for mesh in self._meshes for i in range(len(mesh.ladder.rungs)))

    @overload
    def __getitem__(self, index: int) -> PointGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[PointGroup]: ...

    def __getitem__(self, index: int | slice) -> PointGroup | list[PointGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        mesh = bisect.bisect_right(self._ends, index)
        before = self._ends[mesh - 1] if mesh else 0
        return self._meshes[mesh].group(index - before)

    def columns(self) -> Columns:
        """Fields of the groups as arrays."""
        meshes = self._meshes
        of_mesh = np.array(
            [(m.dp_replicate, m.dp_shard, m.pp, id(m.split), id(m.ladder)) for m in meshes]
        )
        of_mesh = of_mesh.reshape(-1, 5).T.astype(np.int64)
        firsts, split = alike(of_mesh[3])
        ladders, ladder = alike(of_mesh[4])
        each = [meshes[i].ladder.rungs for i in ladders]
        counts = np.array([len(rungs) for rungs in each], dtype=np.intp)
        lengths = counts[ladder]
        # Meshes share ladders: the rung of every group, among those of the different ladders.
        starts = (np.cumsum(counts) - counts)[ladder] - (np.cumsum(lengths) - lengths)
        rung = np.repeat(starts, lengths) + np.arange(lengths.sum())
        rungs = [rung for rungs in each for rung in rungs]
        sizes = np.array([(size, count) for size, count, _ in rungs], dtype=np.int64)
        kinds, of_set = alike(np.array([id(variants) for _, _, variants in rungs], dtype=np.int64))
        return Columns(
            self,
            np.concatenate(
                (np.repeat(of_mesh[:3], lengths, axis=1), sizes.reshape(-1, 2).T[:, rung])
            ),
            ([meshes[i].split for i in firsts], np.repeat(split, lengths)),
            ([rungs[i][2] for i in kinds], of_set[rung]),
        )


@dataclass(frozen=True, kw_only=True)
class Space:
    """The groups that can be priced and the count of points that cannot.

    Attributes:
        groups: In a fixed order.
        size: All points, rejected ones included.
        rejected: Reason -> count.
        global_batch: Samples per step.
        choices: Values of the axes that variants combine.
    """

    groups: Sequence[PointGroup]
    size: int
    rejected: Counter[str]
    global_batch: int
    choices: Choices

    @property
    def points(self) -> Iterator[Point]:
        """Every point that can be priced; millions of them for large clusters."""
        for group in self.groups:
            for variant in group.variants.variants:
                yield group.point(variant)

    def keeping(self, wanted: Callable[[Variant], bool]) -> Space:
        """The same groups with only some of their variants."""
        kept: dict[int, VariantSet] = {}
        groups = []
        for group in self.groups:
            old = group.variants
            if id(old) not in kept:
                some = np.array([wanted(v) for v in old.table.variants], dtype=bool)
                kept[id(old)] = replace(old, valid=old.valid & some)
            if kept[id(old)].count:
                groups.append(replace(group, variants=kept[id(old)]))
        return replace(self, groups=tuple(groups))

    @cached_property
    def columns(self) -> Columns:
        """Fields of the groups as arrays."""
        return (
            self.groups.columns() if isinstance(self.groups, Groups) else Columns.of(self.groups)
        )

    def values(self, axis: str) -> list[int | str]:
        """Values of an axis of :class:`Point` that occur."""
        columns = self.columns
        if axis in AXES:
            found = {getattr(variant, axis) for variant in self._variants}
        elif axis == "sequence_parallel":
            found = {"on" if split.sequence_parallel else "off" for split in columns.splits}
        else:
            found = set(columns.of_axis(axis).tolist())
        return sorted(found)

    @cached_property
    def _variants(self) -> tuple[Variant, ...]:
        """Combinations that occur in some group, once for each kind of table."""
        valid: dict[int, Mask] = {}
        variants: dict[int, tuple[Variant, ...]] = {}
        for some in self.columns.sets:
            key = id(some.table.variants)
            variants[key] = some.table.variants
            valid[key] = some.valid | valid[key] if key in valid else some.valid
        return tuple(
            variants[key][i] for key in valid for i in np.flatnonzero(valid[key]).tolist()
        )

    @cached_property
    def priceable(self) -> int:
        """Number of points that can be priced."""
        counts = np.array([each.count for each in self.columns.sets], dtype=np.int64)
        return int(counts[self.columns.set].sum())
