"""Jumping over the periodic part of a simulation gives the time of simulating all of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.cost.simulation.simulate import Program, Wiring, compile_program, run, wire
from autopar.cost.simulation.steady import Clocks, Watch, needed
from autopar.results import Transfer
from autopar.schedules import SCHEDULES

SHAPES = [
    (name, shape)
    for name in SCHEDULES
    for shape in itertools.product((1, 2, 3, 4), (1, 2, 3), (8, 12, 30, 48))
    if SCHEDULES.load(name).check(shape[0], shape[0] * shape[1], shape[2]) is None
]
SECONDS = st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.5, 1.0, 2.0]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Program, list[float], Wiring]:
    name, (ranks, chunks, microbatches) = draw(st.sampled_from(SHAPES))
    stages = ranks * chunks
    program = compile_program(SCHEDULES.load(name), ranks, stages, microbatches)
    durations = draw(st.lists(SECONDS, min_size=program.nodes, max_size=program.nodes))
    links = [(s, s + 1) for s in range(stages - 1)]
    if stages > 2:
        links += draw(st.lists(st.sampled_from([(s, s + 2) for s in range(stages - 2)])))
    transfers = [
        Transfer(
            producer=a,
            consumer=b,
            forward_s=draw(SECONDS) * draw(st.sampled_from([1e-3, 1.0, 5.0])),
            backward_s=draw(st.sampled_from([0.0, 0.1, 1.0])),
            size_bytes=1.0,
        )
        for a, b in sorted(set(links))
    ]
    return program, durations, wire(program, transfers)


@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_a_jump_equals_the_whole_simulation(case: tuple[Program, list[float], Wiring]):
    program, durations, wiring = case
    whole = run(replace(program, steady=None), durations, wiring)
    assert run(program, durations, wiring) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_order_is_periodic_between_warm_up_and_drain(name: str):
    ranks = 1 if name == "none" else 4
    schedule = SCHEDULES.load(name)
    stages = 2 * ranks if schedule.interleaves else ranks
    program = compile_program(schedule, ranks, stages, 64)
    if name in ("gpipe", "looped_bfs"):
        assert program.steady is None  # two phases, one direction each
        return
    steady = program.steady
    assert steady is not None
    assert steady.periods * steady.length > 0.7 * len(program.order)
    end = steady.start + steady.periods * steady.length
    for index in range(steady.start, end - steady.length):
        rank, node, microbatch = program.order[index]
        later = program.order[index + steady.length]
        assert later == (rank, node, microbatch + steady.shift)


def test_the_order_respects_the_chain():
    for name, (ranks, chunks, microbatches) in SHAPES:
        stages = ranks * chunks
        program = compile_program(SCHEDULES.load(name), ranks, stages, microbatches)
        done = set()
        for _, node, microbatch in program.order:
            need = needed(node, stages)
            assert need < 0 or (need, microbatch) in done
            done.add((node, microbatch))


def test_equal_stages_are_simulated_in_a_few_periods(monkeypatch: pytest.MonkeyPatch):
    program = compile_program(SCHEDULES.load("1f1b"), 4, 4, 400)
    assert program.steady is not None
    passed: list[int] = []
    skip = Watch.skip

    def watched(self: Watch, clocks: Clocks, period: int) -> int:
        passed.append(skip(self, clocks, period))
        return passed[-1]

    monkeypatch.setattr(Watch, "skip", watched)
    transfers = [
        Transfer(producer=s, consumer=s + 1, forward_s=0.1, backward_s=0.1, size_bytes=1.0)
        for s in range(3)
    ]
    run(program, [1.0] * 4 + [2.0] * 4, wire(program, transfers))
    assert len(passed) < 30
    assert len(passed) + sum(passed) == program.steady.periods
