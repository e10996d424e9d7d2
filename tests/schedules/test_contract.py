"""The contract of every registered schedule."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.core.errors import InputError
from autopar.schedules import SCHEDULES, AbstractSchedule, Action

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 40))


def executable(lists: list[list[Action]], stages: int) -> bool:
    """Run the lists with blocking receives; True when every action runs."""
    done: set[tuple[str, int, int]] = set()
    position = [0] * len(lists)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(lists):
            while position[rank] < len(actions):
                a = actions[position[rank]]
                if a.kind == "forward":
                    ready = a.stage == 0 or ("forward", a.stage - 1, a.microbatch) in done
                else:
                    ready = ("forward", a.stage, a.microbatch) in done and (
                        a.stage == stages - 1 or ("backward", a.stage + 1, a.microbatch) in done
                    )
                if not ready:
                    break
                done.add((a.kind, a.stage, a.microbatch))
                position[rank] += 1
                moved = True
    return all(p == len(actions) for p, actions in zip(position, lists, strict=True))


def in_flight(actions: list[Action]) -> int:
    live = peak = 0
    for action in actions:
        live += 1 if action.kind == "forward" else -1
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("name", list(SCHEDULES))
@settings(max_examples=200, deadline=None)
@given(shape=SHAPES)
def test_every_action_once_on_its_rank_and_no_deadlock(name: str, shape: tuple[int, int, int]):
    ranks, chunks, microbatches = shape
    schedule: AbstractSchedule = SCHEDULES.load(name)
    stages = ranks * chunks
    reason = schedule.check(ranks, stages, microbatches)
    if reason is not None:
        assert str(ranks) in reason
        return
    lists = schedule.actions(ranks, stages, microbatches)
    assert len(lists) == ranks
    seen = Counter((a.kind, a.stage, a.microbatch) for actions in lists for a in actions)
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * stages * microbatches
    assert all(a.stage % ranks == r for r, actions in enumerate(lists) for a in actions)
    assert executable(lists, stages)
    counted = AbstractSchedule.in_flight(schedule, ranks, stages, microbatches)
    assert schedule.in_flight(ranks, stages, microbatches) == counted


@given(ranks=st.integers(1, 12), microbatches=st.integers(1, 40))
def test_1f1b_keeps_at_most_pp_microbatches(ranks: int, microbatches: int):
    lists = SCHEDULES.load("1f1b").actions(ranks, ranks, microbatches)
    assert [in_flight(a) for a in lists] == [min(microbatches, ranks - r) for r in range(ranks)]


@given(ranks=st.integers(2, 6), chunks=st.integers(2, 4), rounds=st.integers(1, 6))
def test_interleaved_accepts_every_multiple_of_the_ranks(ranks: int, chunks: int, rounds: int):
    assert SCHEDULES.load("interleaved").check(ranks, ranks * chunks, ranks * rounds) is None


def test_gpipe_keeps_all():
    lists = SCHEDULES.load("gpipe").actions(3, 3, 7)
    assert [in_flight(a) for a in lists] == [7, 7, 7]


def test_each_schedule_says_why_not():
    assert "1 pipeline rank" in (SCHEDULES.load("none").check(2, 2, 4) or "")
    assert "one stage" in (SCHEDULES.load("gpipe").check(2, 4, 4) or "")
    assert "one stage" in (SCHEDULES.load("1f1b").check(2, 4, 4) or "")
    assert "2 or more" in (SCHEDULES.load("interleaved").check(2, 2, 4) or "")
    assert "rounds" in (SCHEDULES.load("interleaved").check(4, 8, 10 + 1) or "")


def test_unknown_schedule_names_the_closest():
    with pytest.raises(InputError) as caught:
        SCHEDULES.load("1f1")
    assert "1f1b" in (caught.value.hint or "")
