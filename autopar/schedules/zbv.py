"""ZBV: two stages per rank in a V, weight gradients fill the bubble.

Qi et al. 2024, arXiv 2405.15362; the order is that of torch's ScheduleZBVZeroBubble.
"""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import Action, InV, Kind


@final
class ZBV(InV):
    """As little memory as 1F1B, nearly no bubble when forward and both halves take equal time."""

    name: ClassVar[str] = "zbv"
    splits_backward: ClassVar[bool] = True

    def rank_actions(self, rank: int, ranks: int, microbatches: int) -> list[Action]:
        """Warm-up in the V, a steady round of both stages, drain with late weights."""
        return _rank_actions(rank, ranks, microbatches)

    def fewest_microbatches(self, ranks: int) -> int:
        """As many as fill the V."""
        return 2 * ranks - 1


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
