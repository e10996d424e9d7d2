"""The contract of every registered schedule."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.core.errors import InputError
from autopar.cost.simulation.simulate import compile_program
from autopar.schedules import SCHEDULES, AbstractSchedule, Action
from autopar.schedules.base import peaks

Shape = tuple[int, int, int]
ALL = list(itertools.product(range(1, 10), range(1, 5), range(1, 41)))
"""Ranks, stages per rank, microbatches."""

NODES = {"forward": 0, "backward": 1, "backward_input": 1, "backward_weight": 2}


def executable(lists: list[list[Action]], stages: int) -> bool:
    """Run the lists with blocking receives; True when every action runs."""
    done: set[tuple[int, int, int]] = set()
    position = [0] * len(lists)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(lists):
            while position[rank] < len(actions):
                a = actions[position[rank]]
                if a.kind == "forward":
                    ready = a.stage == 0 or (0, a.stage - 1, a.microbatch) in done
                elif a.kind == "backward_weight":
                    ready = (1, a.stage, a.microbatch) in done
                else:
                    ready = (0, a.stage, a.microbatch) in done and (
                        a.stage == stages - 1 or (1, a.stage + 1, a.microbatch) in done
                    )
                if not ready:
                    break
                done.add((NODES[a.kind], a.stage, a.microbatch))
                position[rank] += 1
                moved = True
    return all(p == len(actions) for p, actions in zip(position, lists, strict=True))


def in_flight(actions: list[Action]) -> int:
    """Most microbatches between their forward and the end of their backward, over all stages."""
    live = peak = 0
    for action in actions:
        live += {"forward": 1, "backward_input": 0}.get(action.kind, -1)
        peak = max(peak, live)
    return peak


def runs(name: str, shape: Shape) -> bool:
    ranks, chunks, microbatches = shape
    return SCHEDULES.load(name).check(ranks, ranks * chunks, microbatches) is None


CASES = st.sampled_from(list(SCHEDULES)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from([s for s in ALL if runs(name, s)]))
)
MANY = settings(max_examples=600, deadline=None)


@MANY
@given(case=CASES)
def test_every_action_once_on_its_rank_and_no_deadlock(case: tuple[str, Shape]):
    name, (ranks, chunks, microbatches) = case
    schedule: AbstractSchedule = SCHEDULES.load(name)
    stages = ranks * chunks
    lists = schedule.actions(ranks, stages, microbatches)
    assert len(lists) == ranks
    seen = Counter((a.kind, a.stage, a.microbatch) for actions in lists for a in actions)
    assert set(seen.values()) == {1}
    halves = ("backward_input", "backward_weight")
    kinds = ("forward", *(halves if schedule.splits_backward else ("backward",)))
    assert {kind for kind, _, _ in seen} == set(kinds)
    assert len(seen) == len(kinds) * stages * microbatches
    for rank, actions in enumerate(lists):
        assert all(schedule.rank_of(a.stage, ranks) == rank for a in actions)
    assert executable(lists, stages)


@MANY
@given(case=CASES)
def test_peaks_in_flight_are_those_of_the_list(case: tuple[str, Shape]):
    name, (ranks, chunks, microbatches) = case
    schedule: AbstractSchedule = SCHEDULES.load(name)
    told = schedule.in_flight(ranks, ranks * chunks, microbatches)
    counted = AbstractSchedule.in_flight(schedule, ranks, ranks * chunks, microbatches)
    assert told == counted
    lists = schedule.actions(ranks, ranks * chunks, microbatches)
    for actions, moments in zip(lists, told, strict=True):
        assert max(sum(moment) for moment in moments) == in_flight(actions)


@MANY
@given(case=CASES)
def test_the_simulator_keeps_the_order_of_every_rank(case: tuple[str, Shape]):
    name, (ranks, chunks, microbatches) = case
    schedule: AbstractSchedule = SCHEDULES.load(name)
    stages = ranks * chunks
    program = compile_program(schedule, ranks, stages, microbatches)
    for rank, actions in enumerate(schedule.actions(ranks, stages, microbatches)):
        simulated = [(node, k) for r, node, k in program.order if r == rank]
        assert simulated == [(NODES[a.kind] * stages + a.stage, a.microbatch) for a in actions]


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_stages_are_dealt_evenly_and_a_refusal_names_the_ranks(name: str):
    schedule: AbstractSchedule = SCHEDULES.load(name)
    for ranks, chunks, microbatches in ALL:
        stages = ranks * chunks
        reason = schedule.check(ranks, stages, microbatches)
        if reason is not None:
            assert str(ranks) in reason
            continue
        held = [schedule.stages_of(rank, ranks, stages) for rank in range(ranks)]
        assert sorted(stage for mine in held for stage in mine) == list(range(stages))
        assert {len(mine) for mine in held} == {chunks}


@given(ranks=st.integers(1, 12), microbatches=st.integers(1, 40))
def test_1f1b_keeps_at_most_pp_microbatches(ranks: int, microbatches: int):
    lists = SCHEDULES.load("1f1b").actions(ranks, ranks, microbatches)
    assert [in_flight(a) for a in lists] == [min(microbatches, ranks - r) for r in range(ranks)]


@given(ranks=st.integers(2, 8), rounds=st.integers(2, 6))
def test_zero_bubble_keeps_pp_microbatches_on_every_rank(ranks: int, rounds: int):
    lists = SCHEDULES.load("zero_bubble").actions(ranks, ranks, ranks * rounds)
    assert [in_flight(a) for a in lists] == [ranks] * ranks


@given(ranks=st.integers(2, 8), more=st.integers(0, 20))
def test_the_v_schedules_keep_at_most_2_pp_and_1_halves(ranks: int, more: int):
    # A stage of a V is half as long as one of 1F1B, so this is 1F1B's first rank on every rank.
    for name, extra in (("zbv", 0), ("dualpipev", 1)):
        lists = SCHEDULES.load(name).actions(ranks, 2 * ranks, 2 * ranks + more)
        assert max(in_flight(actions) for actions in lists) <= 2 * ranks + extra


@given(ranks=st.integers(2, 6), chunks=st.integers(2, 4), rounds=st.integers(1, 6))
def test_interleaved_accepts_every_multiple_of_the_ranks(ranks: int, chunks: int, rounds: int):
    for name in ("interleaved", "interleaved_zb"):
        assert SCHEDULES.load(name).check(ranks, ranks * chunks, ranks * rounds) is None


def test_those_that_keep_all_microbatches():
    assert [in_flight(a) for a in SCHEDULES.load("gpipe").actions(3, 3, 7)] == [7, 7, 7]
    assert [in_flight(a) for a in SCHEDULES.load("looped_bfs").actions(3, 6, 7)] == [14, 14, 14]


def test_each_schedule_says_why_not():
    for name, shape, word in [
        ("none", (2, 2, 4), "1 pipeline rank"),
        ("gpipe", (2, 4, 4), "one stage"),
        ("1f1b", (2, 4, 4), "one stage"),
        ("interleaved", (2, 2, 4), "2 or more"),
        ("interleaved", (4, 8, 11), "rounds"),
        ("looped_bfs", (2, 2, 4), "2 or more"),
        ("zero_bubble", (2, 4, 4), "one stage"),
        ("zero_bubble", (4, 4, 11), "rounds"),
        ("interleaved_zb", (2, 2, 4), "2 or more"),
        ("interleaved_zb", (4, 8, 11), "rounds"),
        ("zbv", (2, 6, 4), "2 stages"),
        ("zbv", (4, 8, 6), "at least 7"),
        ("dualpipev", (2, 6, 4), "2 stages"),
        ("dualpipev", (4, 8, 7), "at least 8"),
    ]:
        assert word in (SCHEDULES.load(name).check(*shape) or ""), (name, shape)


def test_unknown_schedule_names_the_closest():
    with pytest.raises(InputError) as caught:
        SCHEDULES.load("1f1")
    assert "1f1b" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["interleaved", "interleaved_zb", "zbv", "dualpipev"])
def test_peaks_are_all_moments_that_no_other_exceeds(name: str):
    for ranks, chunks, microbatches in ((2, 2, 6), (4, 2, 12), (4, 3, 8), (3, 4, 9)):
        schedule, stages = SCHEDULES.load(name), ranks * chunks
        if schedule.check(ranks, stages, microbatches) is not None:
            continue
        for rank, actions in enumerate(schedule.actions(ranks, stages, microbatches)):
            mine = schedule.stages_of(rank, ranks, stages)
            moments = {tuple(live_after(actions[:n], mine)) for n in range(len(actions) + 1)}
            found = peaks(actions, mine)
            assert set(found) <= moments
            for moment in moments:
                assert any(all(a <= b for a, b in zip(moment, p, strict=True)) for p in found)
            for one, other in itertools.permutations(found, 2):
                assert any(a > b for a, b in zip(one, other, strict=True))


def live_after(actions: list[Action], stages: tuple[int, ...]) -> list[int]:
    """Microbatches in flight of each stage once some actions ran."""
    change = {"forward": 1, "backward_input": 0}
    return [sum(change.get(a.kind, -1) for a in actions if a.stage == s) for s in stages]
