"""Our action lists against the ones torch.distributed.pipelining builds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from autopar.schedules import SCHEDULES, Action
from autopar.schedules.base import Kind

COMPUTATION = torch_schedules._ComputationType
KINDS: dict[object, Kind] = {
    COMPUTATION.FORWARD: "forward",
    COMPUTATION.BACKWARD_INPUT: "backward_input",
    COMPUTATION.BACKWARD_WEIGHT: "backward_weight",
    COMPUTATION.FULL_BACKWARD: "backward",
}


def torch_lists(name: str, ranks: int, chunks: int, microbatches: int) -> list[list[Action]]:
    """Torch's order, without the process groups its constructor wants.

    ``_calculate_single_rank_operations`` reads plain numbers only, so it runs on an object whose
    constructor never did. Idle slots are dropped, overlapped pairs written one after the other.
    """
    kind = getattr(torch_schedules, name)
    built = kind.__new__(kind)
    built.pp_group_size = ranks
    built.num_stages = built._num_stages = ranks * chunks
    built.n_local_stages = chunks
    built._stages = [None] * chunks
    built._n_microbatches = microbatches
    built.number_of_rounds = max(1, microbatches // ranks)
    built.microbatches_per_round = microbatches // built.number_of_rounds
    orders = [built._calculate_single_rank_operations(rank) for rank in range(ranks)]
    return [
        [Action(KINDS[kind], stage, microbatch) for stage, kind, microbatch, _ in flat(order)]
        for order in orders
    ]


def flat(actions: list[torch_schedules._Action | None]) -> Iterator[torch_schedules._Action]:
    for action in actions:
        if action is not None and action.sub_actions:
            yield from action.sub_actions
        elif action is not None:
            yield action


def whole(actions: list[Action]) -> list[Action]:
    """An input half directly before its weight half, written as one backward."""
    merged: list[Action] = []
    for action in actions:
        before = merged[-1] if merged else None
        half = Action("backward_input", action.stage, action.microbatch)
        if action.kind == "backward_weight" and before == half:
            merged[-1] = Action("backward", action.stage, action.microbatch)
        else:
            merged.append(action)
    return merged


SHAPES = [(2, 4), (2, 7), (3, 6), (4, 8), (4, 12), (4, 10), (5, 25), (8, 16), (8, 24)]


@pytest.mark.parametrize(("ranks", "microbatches"), SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs", "chunks"),
    [
        ("interleaved", "ScheduleInterleaved1F1B", 2),
        ("interleaved", "ScheduleInterleaved1F1B", 3),
        ("interleaved_zb", "ScheduleInterleavedZeroBubble", 2),
        ("interleaved_zb", "ScheduleInterleavedZeroBubble", 3),
        ("zero_bubble", "ScheduleInterleavedZeroBubble", 1),
        ("zbv", "ScheduleZBVZeroBubble", 2),
        ("dualpipev", "ScheduleDualPipeV", 2),
    ],
)
def test_the_lists_are_torchs(ours: str, theirs: str, chunks: int, ranks: int, microbatches: int):
    schedule = SCHEDULES.load(ours)
    if schedule.check(ranks, ranks * chunks, microbatches) is not None:
        pytest.skip("the schedule does not run with these numbers")
    mine = schedule.actions(ranks, ranks * chunks, microbatches)
    assert [whole(a) for a in mine] == [
        whole(a) for a in torch_lists(theirs, ranks, chunks, microbatches)
    ]


@pytest.mark.parametrize(("ranks", "microbatches"), SHAPES)
def test_looped_bfs_is_torchs_but_for_the_order_of_backwards(ranks: int, microbatches: int):
    """Torch runs the backwards of a stage last microbatch first; any order is right."""
    mine = SCHEDULES.load("looped_bfs").actions(ranks, 2 * ranks, microbatches)
    for own, other in zip(
        mine, torch_lists("ScheduleLoopedBFS", ranks, 2, microbatches), strict=True
    ):
        forwards = 2 * microbatches
        assert own[:forwards] == other[:forwards]
        for first in (forwards, forwards + microbatches):
            half = slice(first, first + microbatches)
            assert own[half] == other[half][::-1]
