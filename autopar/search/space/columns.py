"""Fields of many groups as arrays, read from the groups once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from autopar.core.arrays import distinct_places
from autopar.search.space.variants import VariantSet
from autopar.strategies import Split

if TYPE_CHECKING:
    from autopar.search.space.groups import PointGroup

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
_FIELDS = 7
_FEW = 500
"""Rows up to which joining their numbers costs more than it saves."""


class Picked(Sequence["PointGroup"]):
    """Some of the groups of a space, made when they are looked at.

    Args:
        groups: All of them.
        indices: Which.
    """

    def __init__(self, groups: Sequence[PointGroup], indices: Indices) -> None:
        self._groups = groups
        self._indices: list[int] = indices.tolist()

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> PointGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[PointGroup]: ...

    def __getitem__(self, index: int | slice) -> PointGroup | list[PointGroup]:
        if isinstance(index, slice):
            return [self._groups[i] for i in self._indices[index]]
        return self._groups[self._indices[index]]


class Columns:
    """Groups of a space; every array has an entry for each.

    Args:
        groups: In the order of the space.
        numbers: ``dp_replicate`` to ``microbatches`` ``[field, group]``.
        splits: The different splits, and the number of each group's.
        sets: The different sets of variants, and the number of each group's.

    Attributes:
        dp_replicate: Replicas.
        dp_shard: Ranks that share out states.
        pp: Pipeline ranks.
        size: Samples of a microbatch.
        microbatches: Per replica and step.
        splits: The different splits.
        split: Number of each group's split.
        sets: The different sets of variants.
        set: Number of each group's set.
    """

    def __init__(
        self,
        groups: Sequence[PointGroup],
        numbers: Numbers,
        splits: tuple[list[Split], Indices],
        sets: tuple[list[VariantSet], Indices],
    ) -> None:
        self.groups, self._numbers = groups, numbers
        self.dp_replicate, self.dp_shard, self.pp, self.size, self.microbatches = numbers
        self.splits, self.split = splits
        self.sets, self.set = sets

    @classmethod
    def of(cls, groups: Sequence[PointGroup]) -> Columns:
        """Of groups that are there already."""
        fields = np.array(
            [
                (
                    g.dp_replicate,
                    g.dp_shard,
                    g.pp,
                    g.microbatch_size,
                    g.microbatches,
                    id(g.split),
                    id(g.variants),
                )
                for g in groups
            ],
            dtype=np.int64,
        ).reshape(-1, _FIELDS)
        firsts, split = alike(fields[:, 5])
        splits = [groups[i].split for i in firsts]
        firsts, of_set = alike(fields[:, 6])
        sets = [groups[i].variants for i in firsts]
        return cls(groups, fields.T[:5], (splits, split), (sets, of_set))

    def take(self, some: Indices) -> Columns:
        """Some of the groups."""
        taken = Columns(
            Picked(self.groups, some),
            self._numbers[:, some],
            (self.splits, self.split[some]),
            (self.sets, self.set[some]),
        )
        sizes, number = self.worlds
        taken.worlds = (sizes, number[some])
        return taken

    def of_split(self, axis: str) -> Numbers:
        """A degree of each group's split."""
        degrees = [getattr(split, axis) for split in self.splits]
        return np.array(degrees, dtype=np.int64)[self.split]

    def of_axis(self, axis: str) -> Numbers:
        """An axis of a :class:`~.point.Point` that is a number and no variant's."""
        values: Numbers = getattr(self, "size" if axis == "microbatch_size" else axis)
        return values

    def once(
        self,
        columns: Sequence[Numbers | Indices],
        fact: Callable[[PointGroup], float | Sequence[float] | Array],
    ) -> Array:
        """A fact of every group that is equal where some columns are, looked up once for each."""
        firsts, which = alike(*columns)
        return np.array([fact(self.groups[i]) for i in firsts], dtype=float)[which]

    @cached_property
    def tp(self) -> Numbers:
        """Tensor parallel ranks."""
        return self.of_split("tp")

    @cached_property
    def cp(self) -> Numbers:
        """Context parallel ranks."""
        return self.of_split("cp")

    @cached_property
    def ep(self) -> Numbers:
        """Expert parallel ranks."""
        return self.of_split("ep")

    @cached_property
    def replicas(self) -> Numbers:
        """Ranks that see different samples."""
        return np.asarray(self.dp_replicate * self.dp_shard)

    @cached_property
    def world(self) -> Numbers:
        """Devices used."""
        return np.asarray(self.replicas * self.cp * self.tp * self.pp)

    @cached_property
    def worlds(self) -> tuple[list[int], Indices]:
        """Numbers of devices that groups use, and the place of every group's among them."""
        sizes, number = distinct_places(self.world)
        return sizes.tolist(), number


def alike(*columns: Numbers | Indices | Array) -> tuple[list[int], Indices]:
    """Where each different combination of values comes first, and the number of every one."""
    numbers: dict[float | tuple[float, ...], int] = {}
    # A dictionary, as sorting costs more, be it for ten groups or for a hundred thousand.
    found = np.array(
        [numbers.setdefault(key, len(numbers)) for key in _keys(columns)], dtype=np.intp
    )
    highest = np.maximum.accumulate(found)
    # Numbers grow where a combination comes first.
    grown = np.flatnonzero(highest[1:] > highest[:-1]) + 1
    return [0, *grown.tolist()] if len(found) else [], found


def _keys(columns: Sequence[Numbers | Indices | Array]) -> Iterable[float | tuple[float, ...]]:
    """One value per row, equal where the rows are: a number where the columns fit into one."""
    many = len(columns) > 1 and len(columns[0]) > _FEW
    if many and all(c.dtype.kind == "i" and c.min() >= 0 for c in columns):
        spans = [int(column.max()) + 1 for column in columns]
        if math.prod(spans) < np.iinfo(np.int64).max:
            joined = columns[0]
            for column, span in zip(columns[1:], spans[1:], strict=True):
                joined = joined * span + column
            numbers: list[float] = joined.tolist()
            return numbers
    return (
        columns[0].tolist()
        if len(columns) == 1
        else zip(*(c.tolist() for c in columns), strict=True)
    )
