"""Where a part is after a view, a split or an op, checked against real tensors."""

from __future__ import annotations

import pytest
import torch

from autopar.executor.division.parts import (
    FinerSectionsError,
    Part,
    UndividableError,
    pieces,
    refined,
    reshaped,
)
from autopar.executor.holding import Cut


def part(dim: int, *sections: int) -> Part:
    return Part(dim=dim, sections=sections, region="columns")


VIEWS: list[tuple[Part, tuple[int, ...], tuple[int, ...], Part]] = [
    (part(2, 8), (2, 3, 8), (2, 3, 4, 2), part(2, 4)),
    (part(2, 8, 8, 8), (2, 3, 24), (2, 3, 3, 4, 2), part(3, 4)),
    (part(3, 4), (2, 3, 3, 4, 2), (2, 3, 24), part(2, 8, 8, 8)),
    (part(1, 8), (6, 8), (2, 3, 8), part(2, 8)),
    (part(1, 4), (2, 4, 3, 2), (8, 3, 2), part(0, 4, 4)),
    (part(0, 4, 4), (8, 3, 2), (2, 4, 3, 2), part(1, 4)),
    (part(1, 4), (2, 4, 5), (8, 5), part(0, 4, 4)),
    (part(1, 8), (2, 8, 1, 1), (2, 8), part(1, 8)),
    (part(1, 4), (2, 4, 3, 3), (2, 36), part(1, 36)),
    (part(2, 2), (2, 3, 2, 3, 5), (2, 3, 6, 5), part(2, 6)),
    (part(2, 8), (2, 3, 8), (2, 3, 1, 8), part(3, 8)),
    (part(2, 8), (2, 3, 8), (2, 3, 8, 1), part(2, 8)),
    (part(1, 4, 2), (3, 6), (3, 6, 1), part(1, 4, 2)),
]


@pytest.mark.parametrize(("before", "shape", "other", "after"), VIEWS)
def test_part_of_a_view(
    before: Part, shape: tuple[int, ...], other: tuple[int, ...], after: Part
) -> None:
    """The part of the view is the view of the part."""
    found = reshaped(before, shape, other, 2)
    assert found == after
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)

    def own(tensor: torch.Tensor, at: Part, rank: int) -> torch.Tensor:
        return Cut(axis="tp", dim=at.dim, sections=at.sections).part(tensor, rank, 2)

    for rank in range(2):
        local = own(whole, before, rank).reshape(after.local(other, 2))
        assert torch.equal(local, own(whole.reshape(other), after, rank))


def test_a_view_that_needs_sections() -> None:
    with pytest.raises(FinerSectionsError) as error:
        reshaped(part(1, 24), (2, 24), (2, 3, 4, 2), 2)
    assert error.value.sections == (8, 8, 8)


def test_a_padded_dimension_keeps_its_size_only() -> None:
    assert reshaped(part(2, 5), (2, 3, 5), (6, 5), 2) == part(1, 5)
    with pytest.raises((UndividableError, FinerSectionsError)):
        reshaped(part(1, 6), (2, 6), (2, 3, 2), 4)


def test_pieces_end_where_sections_end() -> None:
    assert pieces(part(1, 4, 2, 2), [4, 4]) == [(4,), (2, 2)]
    with pytest.raises(FinerSectionsError) as error:
        pieces(part(1, 8), [4, 2, 2])
    assert error.value.sections == (4, 2, 2)
    assert refined([6, 6], [4, 8]) == [4, 2, 6]


def test_local_shape() -> None:
    assert part(1, 5).local((2, 5, 3), 2) == [2, 3, 3]
    assert part(1, 4, 2).local((2, 6, 3), 2) == [2, 3, 3]
    assert not part(1, 5).divides(2)
    assert part(1, 4, 2).divides(2)
