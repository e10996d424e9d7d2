"""Which part of a whole tensor a rank holds when an axis divides the model's own tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

CutAxis = Literal["tp", "ep"]
"""Mesh axes whose ranks hold different parts of a parameter. (``dp_shard`` does so too, by
DTensor; there a parameter is whole again while it is used.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A rank's share of one dimension: an equal part of each of its sections, one after another.

    A fused query-key-value weight has three sections, so that each rank gets its heads of all
    three. A section that the ranks do not divide evenly (a vocabulary) is padded with zeros.

    Attributes:
        axis: Ranks that hold the parts.
        dim: Dimension that is cut.
        sections: Sizes of the sections; they sum to the whole size of the dimension.
    """

    axis: CutAxis
    dim: int
    sections: tuple[int, ...]

    def part_size(self, count: int) -> int:
        """Size of the dimension on each of ``count`` ranks, padding included."""
        return sum(math.ceil(size / count) for size in self.sections)

    def part(self, whole: torch.Tensor, index: int, count: int) -> torch.Tensor:
        """What rank ``index`` of ``count`` holds; a tensor of its own."""
        pieces = []
        for section in torch.split(whole, list(self.sections), self.dim):
            step = math.ceil(section.shape[self.dim] / count)
            start = min(index * step, section.shape[self.dim])
            stop = min(start + step, section.shape[self.dim])
            piece = section.narrow(self.dim, start, stop - start)
            if stop - start < step:
                shape = list(piece.shape)
                shape[self.dim] = step - (stop - start)
                piece = torch.cat([piece, piece.new_zeros(shape)], self.dim)
            pieces.append(piece)
        return torch.cat(pieces, self.dim).contiguous()

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse of :meth:`part` over all ranks, padding dropped."""
        steps = [math.ceil(size / len(parts)) for size in self.sections]
        rows = [torch.split(part, steps, self.dim) for part in parts]
        sections = []
        for i, size in enumerate(self.sections):
            whole = torch.cat([row[i] for row in rows], self.dim)
            sections.append(whole.narrow(self.dim, 0, size))
        return torch.cat(sections, self.dim)
