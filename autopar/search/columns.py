"""Fields of many groups as arrays, read from the groups once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.search.variants import VariantSet
from autopar.strategies import Split

if TYPE_CHECKING:
    from autopar.search.groups import PointGroup

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
_FIELDS = 7


class Columns:
    """Groups of a space; every array has an entry for each.

    Args:
        groups: In the order of the space.

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

    def __init__(self, groups: Sequence[PointGroup]) -> None:
        self.groups: Sequence[PointGroup] = groups
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
        self.dp_replicate, self.dp_shard, self.pp, self.size, self.microbatches = fields.T[:5]
        firsts, self.split = alike(fields[:, 5])
        self.splits: list[Split] = [groups[i].split for i in firsts]
        firsts, self.set = alike(fields[:, 6])
        self.sets: list[VariantSet] = [groups[i].variants for i in firsts]

    def take(self, some: Indices) -> Columns:
        """Some of the groups."""
        other = Columns.__new__(Columns)
        other.groups = [self.groups[i] for i in some.tolist()]
        other.splits, other.sets = self.splits, self.sets
        other.dp_replicate, other.dp_shard = self.dp_replicate[some], self.dp_shard[some]
        other.pp, other.size = self.pp[some], self.size[some]
        other.microbatches = self.microbatches[some]
        other.split, other.set = self.split[some], self.set[some]
        return other

    def of_split(self, axis: str) -> Numbers:
        """A degree of each group's split."""
        degrees = [getattr(split, axis) for split in self.splits]
        return np.array(degrees, dtype=np.int64)[self.split]

    def of_axis(self, axis: str) -> Numbers:
        """An axis of :class:`~autopar.search.point.Point` that is a number and no variant's."""
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


def alike(*columns: Numbers | Indices | Array) -> tuple[list[int], Indices]:
    """Where each different combination of values comes first, and the number of every one."""
    numbers: dict[tuple[float, ...], int] = {}
    firsts: list[int] = []
    found: list[int] = []
    # A dictionary, as sorting costs more, be it for ten groups or for a hundred thousand.
    for index, key in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        number = numbers.setdefault(key, len(firsts))
        if number == len(firsts):
            firsts.append(index)
        found.append(number)
    return firsts, np.array(found, dtype=np.intp)
