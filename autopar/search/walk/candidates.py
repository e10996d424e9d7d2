"""What waits on the heap of a walk: variants of groups, and points that were looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.search.space.groups import PointGroup
from autopar.search.space.point import Point
from autopar.search.stages.partition import PartitionSearch


@dataclass(kw_only=True)
class Candidate:
    """A point on its way through the search.

    Attributes:
        point: The choices.
        bound: No plan of the point has a smaller objective.
        partition: Search over its stage boundaries, once it was looked at.
        entry: Where it came from.
    """

    point: Point
    bound: float
    partition: PartitionSearch | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A variant of a group that was not looked at yet.

    Attributes:
        group: The group.
        index: Variant in the group's table.
        behind: Variants that cannot be better unless this one does not fit.
    """

    group: PointGroup
    index: int
    behind: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Queue:
    """The variants of a group by rising bound.

    Attributes:
        group: The group.
        order: Variants in the group's table, best bound first.
        bounds: By variant; infinite where they wait or do not fit.
        waits: Variants that wait behind another one.
        taken: How many of ``order`` are gone.
        sharp_to: Bounds below this are as high as they become without a layout.
    """

    group: PointGroup
    order: npt.NDArray[np.intp]
    bounds: npt.NDArray[np.float64]
    waits: npt.NDArray[np.bool_]
    taken: int = 0
    sharp_to: float = -math.inf

    @property
    def left(self) -> int:
        """Variants that were not taken."""
        return len(self.order) - self.taken
