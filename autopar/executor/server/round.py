"""One synchronous round: gradients of all members, added in the order of their ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Round:
    """The gradients of one step.

    They are added in the order of ranks, so that a run gives the same bits whatever the order
    of arrival; a gradient that came early is held until its turn.

    Args:
        ranks: Who is expected.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self._order = sorted(ranks)
        self._held: dict[int, torch.Tensor] = {}
        self._sum: torch.Tensor | None = None
        self._absent: set[int] | None = None
        self.contributed: set[int] = set()
        self.mean: torch.Tensor | None = None

    def add(self, rank: int, gradient: torch.Tensor, absent: set[int]) -> None:
        """Take a gradient; a second one of the same rank is ignored.

        Args:
            rank: Whose.
            gradient: Flat; kept and written.
            absent: Pieces for which it has none.
        """
        if rank in self.contributed or self.mean is not None:
            return
        self.contributed.add(rank)
        self._absent = absent if self._absent is None else self._absent & absent
        self._held[rank] = gradient
        while self._order and self._order[0] in self._held:
            self._fold(self._order.pop(0))

    def _fold(self, rank: int) -> None:
        gradient = self._held.pop(rank)
        self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def complete(self, members: Iterable[int]) -> bool:
        """True when all members have contributed, somebody at least."""
        return bool(self.contributed) and self.contributed.issuperset(members)

    def close(self) -> torch.Tensor:
        """Mean over those who contributed."""
        for rank in sorted(self._held):
            self._fold(rank)
        assert self._sum is not None
        self.mean = self._sum.div_(len(self.contributed))
        return self.mean

    @property
    def absent(self) -> set[int]:
        """Pieces for which nobody had a gradient."""
        return self._absent or set()
