"""Which part of a value a rank holds, and where that part is after the value changed its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Region = Literal["columns", "sequence"]
"""What is divided: columns, heads or channels between two products; or the sequence elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A rank's part of a value: an equal part of each section of one dimension.

    Attributes:
        dim: The dimension, not negative.
        sections: Sizes of its sections; see :class:`~autopar.executor.holding.Cut`.
        region: What is divided.
    """

    dim: int
    sections: tuple[int, ...]
    region: Region

    def size(self, count: int) -> int:
        """Size of the dimension on one of ``count`` ranks."""
        return sum(math.ceil(section / count) for section in self.sections)

    def local(self, shape: Sequence[int], count: int) -> list[int]:
        """A shape of the whole with the dimension of a part."""
        return [self.size(count) if d == self.dim else n for d, n in enumerate(shape)]

    def divides(self, count: int) -> bool:
        """True when every section has as many elements on each of ``count`` ranks."""
        return all(section % count == 0 for section in self.sections)

    def at(self, dim: int) -> Part:
        """The same part of another dimension."""
        return Part(dim=dim, sections=self.sections, region=self.region)

    def cut(self, sections: Sequence[int]) -> Part:
        """The same dimension with other sections."""
        return Part(dim=self.dim, sections=tuple(sections), region=self.region)


class UndividableError(Exception):
    """An op cannot work on parts; the message says why."""


class FinerSectionsError(Exception):
    """An op could work on parts if an operand's dimension had more sections.

    Attributes:
        sections: Sizes of the sections that it needs.
        operand: Whose dimension it is, if not the first divided operand's.
    """

    def __init__(self, sections: Sequence[int]) -> None:
        super().__init__(f"sections {tuple(sections)} are needed")
        self.sections = tuple(sections)
        self.operand: object = None


def reshaped(part: Part, before: Sequence[int], after: Sequence[int], count: int) -> Part:
    """Where a part is after a view.

    The dimensions of a view fall into groups of equal products. In the group of the divided
    dimension, the elements of each section lie ``outer`` times one after another; a dimension
    after the view holds the part when its own sections give the same runs of elements.

    Args:
        part: The part before.
        before: Shape of the whole value before.
        after: Shape of the whole value after.
        count: Ranks.

    Raises:
        FinerSectionsError: It would do with more sections.
        UndividableError: No dimension holds the part.
    """
    group_before, group_after = _groups(before, after, part.dim)
    outer = math.prod(before[d] for d in group_before if d < part.dim)
    inner = math.prod(before[d] for d in group_before if d > part.dim)
    runs = [section * inner for section in part.sections] * outer
    for dim in group_after:
        found = _sections_of(runs, [after[d] for d in group_after], dim - group_after[0], count)
        if found is not None:
            return Part(dim=dim, sections=found, region=part.region)
    raise _finer(part, runs, [after[d] for d in group_after], inner, outer, before, after)


def _groups(before: Sequence[int], after: Sequence[int], dim: int) -> tuple[list[int], list[int]]:
    """The smallest groups of dimensions with equal products, of which one holds ``dim``."""
    i = j = 0
    while i < len(before) or j < len(after):
        mine: list[int] = []
        theirs: list[int] = []
        left = right = 1
        while not mine or left != right or not theirs:
            if (left <= right or j >= len(after)) and i < len(before):
                left *= before[i]
                mine.append(i)
                i += 1
            elif j < len(after):
                right *= after[j]
                theirs.append(j)
                j += 1
            else:
                break
        if i == len(before):  # what is left over has size 1
            theirs += range(j, len(after))
            j = len(after)
        if dim in mine:
            return mine, theirs
    raise UndividableError(f"view of {list(before)} as {list(after)}")


def _sections_of(
    runs: Sequence[int], shape: Sequence[int], place: int, count: int
) -> tuple[int, ...] | None:
    """Sections of the dimension at ``place`` of a group that give such runs, or ``None``."""
    outer, inner = math.prod(shape[:place]), math.prod(shape[place + 1 :])
    if len(runs) % outer or outer == 0:
        return None
    period = tuple(runs[: len(runs) // outer])
    if list(period) * outer != list(runs) or any(run % inner for run in period):
        return None
    sections = tuple(run // inner for run in period)
    if sum(sections) != shape[place]:
        return None
    unchanged = len(shape) == 1 or inner * outer == 1
    return sections if unchanged or all(s % count == 0 for s in sections) else None


def _finer(
    part: Part,
    runs: Sequence[int],
    shape: Sequence[int],
    inner: int,
    outer: int,
    before: Sequence[int],
    after: Sequence[int],
) -> Exception:
    """One section for each index of the leading dimension, which the ranks do not divide."""
    lead = next((n for n in shape if n != 1), 1)
    total = sum(runs)
    step = total // lead if lead else 0
    if outer == 1 and len(runs) < lead and step and step % inner == 0:
        return FinerSectionsError([step // inner] * lead)
    return UndividableError(
        f"a view of {list(before)} as {list(after)} spreads the part of dimension {part.dim}"
    )


def pieces(part: Part, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Sections in each of some consecutive pieces of the divided dimension.

    Raises:
        FinerSectionsError: A piece ends inside a section.
    """
    result: list[tuple[int, ...]] = []
    left = list(part.sections)
    for size in sizes:
        mine: list[int] = []
        while left and sum(mine) < size:
            mine.append(left.pop(0))
        if sum(mine) != size:
            raise FinerSectionsError(refined(part.sections, sizes))
        result.append(tuple(mine))
    return result


def refined(sections: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Sections that end wherever one of two divisions of a dimension ends."""
    ends = {0}
    for row in (sections, sizes):
        place = 0
        for size in row:
            place += size
            ends.add(place)
    marks = sorted(ends)
    return [b - a for a, b in pairwise(marks)]
