"""Where in a value the sequence lies, and where views and permutations take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Along:
    """The sequence as a factor of one dimension: ``shape[dim] = outer * length * inner``.

    ``[B, S, h]`` has it as dimension 1; flattened to ``[B * S, h]`` it is a factor of dimension
    0 with ``outer = B``.

    Attributes:
        dim: Dimension.
        length: Positions, of the whole sequence.
        outer: Product of the factors before it in the dimension.
        inner: Product of the factors behind it.
    """

    dim: int
    length: int
    outer: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Size of the dimension with the whole sequence."""
        return self.outer * self.length * self.inner

    def at(self, dim: int) -> Along:
        """The same factor of another dimension."""
        return replace(self, dim=dim)

    def part(self, shape: Sequence[int], count: int) -> tuple[int, ...]:
        """A shape with the whole sequence as it is on one of ``count`` ranks."""
        result = list(shape)
        result[self.dim] = self.size // count
        return tuple(result)

    def through_view(self, before: Sequence[int], after: Sequence[int]) -> Along | None:
        """Where it is after a view to another shape; ``None`` when the view cuts it up."""
        ahead = math.prod(before[: self.dim]) * self.outer
        passed = 1
        for dim, size in enumerate(after):
            if passed * size >= ahead * self.length:
                inner, odd = divmod(passed * size, ahead * self.length)
                outer, unaligned = divmod(ahead, passed)
                if odd or unaligned or not outer:
                    return None
                return Along(dim=dim, length=self.length, outer=outer, inner=inner)
            passed *= size
        return None
