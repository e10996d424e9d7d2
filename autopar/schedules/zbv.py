"""ZBV: two stages per rank in a V, weight gradients fill the bubble.

Qi et al. 2024, arXiv 2405.15362; the order is that of torch's ScheduleZBVZeroBubble.
"""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action, Kind, peaks, v_rank_of

SETTLED = 4
"""Microbatches per rank after which those in flight have taken all their values."""


@final
class ZBV(AbstractSchedule):
    """As little memory as 1F1B, nearly no bubble when forward and both halves take equal time."""

    name: ClassVar[str] = "zbv"
    interleaves: ClassVar[bool] = True
    splits_backward: ClassVar[bool] = True
    runnable: ClassVar[bool] = False

    def rank_of(self, stage: int, ranks: int) -> int:
        """Down the ranks and back up."""
        return v_rank_of(stage, ranks)

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """Warm-up in the V, a steady round of both stages, drain with late weights."""
        return [_rank_actions(rank, ranks, microbatches) for rank in range(ranks)]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """The pattern repeats once the V is full."""
        few = min(microbatches, SETTLED * ranks)
        return peaks(_rank_actions(rank, ranks, few), self.stages_of(rank, ranks, stages))

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Two stages per rank; fewer microbatches than fill the V leave it mostly idle."""
        if stages != 2 * ranks:
            return f"zbv runs 2 stages per pipeline rank, not {stages} stages on {ranks} ranks"
        if microbatches < 2 * ranks - 1:
            return (
                f"zbv on {ranks} ranks needs at least {2 * ranks - 1} microbatches, "
                f"not {microbatches}"
            )
        return None


class _Order:
    """Appends actions and counts how often each kind ran on each stage."""

    def __init__(self, first: int, second: int) -> None:
        self.stages = (first, second)
        self.list: list[Action] = []
        self.count: dict[tuple[Kind, int], int] = {}

    def add(self, kind: Kind, chunk: int) -> None:
        """The next microbatch of a kind on the first or second stage."""
        index = self.count.get((kind, chunk), 0)
        self.list.append(Action(kind, self.stages[chunk], index))
        self.count[kind, chunk] = index + 1

    def done(self, kind: Kind, chunk: int) -> int:
        """How often it ran."""
        return self.count.get((kind, chunk), 0)


def _rank_actions(rank: int, ranks: int, microbatches: int) -> list[Action]:
    order = _Order(rank, 2 * ranks - 1 - rank)
    for _ in range(2 * (ranks - rank) - 1):
        order.add("forward", 0)
    for _ in range(rank):
        order.add("forward", 1)
        order.add("forward", 0)
    for _ in range(ranks - rank):
        order.add("forward", 1)
        _whole_backward(order, 1)
    while order.done("forward", 1) < max(order.done("forward", 0), microbatches):
        if order.done("forward", 0) < microbatches:
            order.add("forward", 0)
        _whole_backward(order, 0)
        order.add("forward", 1)
        _whole_backward(order, 1)
    for _ in range(rank):
        order.add("backward_input", 0)
        order.add("backward_input", 1)
    for _ in range(ranks - rank):
        order.add("backward_input", 0)
        order.add("backward_weight", 0)
    for chunk in (1, 0):
        while order.done("backward_weight", chunk) < order.done("backward_input", chunk):
            order.add("backward_weight", chunk)
    return order.list


def _whole_backward(order: _Order, chunk: int) -> None:
    order.add("backward_input", chunk)
    order.add("backward_weight", chunk)


ZBV_SCHEDULE = ZBV()
