"""DualPipeV: DualPipe folded in half (DeepSeek-V3 2024; torch ScheduleDualPipeV).

Forward and backward of the two stages of a rank alternate, so that the communication of one can
hide behind the compute of the other. A whole backward is written as its two halves in a row.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, final

from autopar.schedules.base import Action, InV


@final
class DualPipeV(InV):
    """Two stages per rank in a V."""

    name: ClassVar[str] = "dualpipev"
    splits_backward: ClassVar[bool] = True

    def rank_actions(self, rank: int, ranks: int, microbatches: int) -> list[Action]:
        """The eight steps of the reference implementation."""
        return _Rank(rank, ranks, microbatches).steps()

    def fewest_microbatches(self, ranks: int) -> int:
        """As many as the main step needs."""
        return 2 * ranks


class _Rank:
    """Builds the list of one rank; chunk 0 is its first stage, chunk 1 its second."""

    def __init__(self, rank: int, ranks: int, microbatches: int) -> None:
        self.rank, self.ranks, self.microbatches = rank, ranks, microbatches
        self.stages = (rank, 2 * ranks - 1 - rank)
        self.list: list[Action] = []
        self.forwards = [0, 0]
        self.backwards = [0, 0]
        self.late: deque[Action] = deque()

    def steps(self) -> list[Action]:
        """All steps in order."""
        rank, after = self.rank, self.ranks - self.rank - 1
        for _ in range(2 * after):
            self._forward(0)
        for _ in range(rank + 1):
            self._forward(0)
            self._forward(1)
        for _ in range(after):
            self._input(1)
            self._weight()
            self._forward(1)
        for _ in range(self.microbatches - 2 * self.ranks + rank + 1):
            self._forward(0)
            self._backward(1)
            self._forward(1)
            self._backward(0)
        for _ in range(after):
            self._backward(1)
            self._forward(1)
            self._backward(0)
        self._drain()
        return self.list

    def _drain(self) -> None:
        """The second half of the last backwards leaves weight gradients for the very end."""
        rank, split = self.rank, False
        for i in range(rank + 1):
            for chunk, odd in ((1, 1), (0, 0)):
                split = split or (i == (rank + 1) // 2 and rank % 2 == odd)
                (self._input if split else self._backward)(chunk)
        for _ in range(self.ranks - rank - 1):
            self._weight()
            (self._input if split else self._backward)(0)
        while self.late:
            self._weight()

    def _forward(self, chunk: int) -> None:
        self.list.append(Action("forward", self.stages[chunk], self.forwards[chunk]))
        self.forwards[chunk] += 1

    def _input(self, chunk: int) -> None:
        stage, index = self.stages[chunk], self.backwards[chunk]
        self.list.append(Action("backward_input", stage, index))
        self.late.append(Action("backward_weight", stage, index))
        self.backwards[chunk] += 1

    def _backward(self, chunk: int) -> None:
        self._input(chunk)
        self.list.append(self.late.pop())

    def _weight(self) -> None:
        if self.late:
            self.list.append(self.late.popleft())


DUAL_PIPE_V = DualPipeV()
