"""Weight gradients as actions of their own, and stages placed in a V."""

from __future__ import annotations

import pytest

from autopar.cost.simulation.simulate import (
    Program,
    Wiring,
    compile_program,
    finish,
    node_seconds,
    run,
    wire,
)
from autopar.results import StageCost, Transfer
from autopar.schedules import SCHEDULES


def wired(name: str, ranks: int, stages: int, m: int, hop: float) -> tuple[Program, Wiring]:
    program = compile_program(SCHEDULES.load(name), ranks, stages, m)
    transfers = [
        Transfer(producer=s, consumer=s + 1, forward_s=hop, backward_s=hop, size_bytes=1.0)
        for s in range(stages - 1)
    ]
    return program, wire(program, transfers)


def step_s(name: str, ranks: int, m: int, cost: StageCost, chunks: int = 1) -> float:
    program, wiring = wired(name, ranks, ranks * chunks, m, 1e-12)
    return max(run(program, node_seconds([cost] * (ranks * chunks), program), wiring))


def test_zero_bubble_of_equal_stages_takes_the_time_of_zb_h1():
    # Qi et al. 2023: bubble (p - 1) (f + i - w) where w fits into it; the first rank waits for
    # p - 1 input halves in any case, the last for p - 1 forwards.
    for f, i, w in [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (0.5, 1.5, 1.0), (1.5, 1.0, 1.2)]:
        cost = StageCost(forward_s=f, backward_s=i + w, weight_s=w)
        expected = 12 * (f + i + w) + 3 * max(f + i - w, f, i)
        assert step_s("zero_bubble", 4, 12, cost) == pytest.approx(expected)


def test_recompute_belongs_to_the_input_half():
    plain = StageCost(forward_s=1.0, backward_s=3.0, weight_s=1.0)
    again = StageCost(forward_s=1.0, backward_s=2.0, weight_s=1.0, recompute_s=1.0)
    for name, chunks in (("zero_bubble", 1), ("zbv", 2)):
        assert step_s(name, 4, 8, plain, chunks) == step_s(name, 4, 8, again, chunks)


def test_whole_backwards_do_not_care_about_the_weight_part():
    for name in ("gpipe", "1f1b"):
        times = {
            step_s(name, 4, 8, StageCost(forward_s=1.0, backward_s=2.0, weight_s=w))
            for w in (0.0, 0.5, 2.0)
        }
        assert len(times) == 1


def test_the_turn_of_a_v_needs_no_message():
    program, wiring = wired("zbv", 2, 4, 4, 5.0)
    assert program.rank_of == (0, 1, 1, 0)
    # Down 0 -> 1, within rank 1, up 1 -> 0; each with its gradient: two pairs of messages.
    assert wiring.slots == 2 * 2 * 4
    assert wiring.waits[2] == ()
    assert len(wiring.waits[3]) == 1


def test_synchronisation_waits_for_the_last_weight_gradient():
    """The end of a rank is the end of its last action, a weight half on every rank."""
    cost = StageCost(
        forward_s=1.0, backward_s=2.0, weight_s=1.0, exposed_sync_s=10.0, optimizer_s=3.0
    )
    for name, chunks in (("zero_bubble", 1), ("zbv", 2), ("dualpipev", 2)):
        stages = 4 * chunks
        program, wiring = wired(name, 4, stages, 8, 1e-12)
        for rank in range(4):
            last = [node for r, node, _ in program.order if r == rank][-1]
            assert last >= 2 * stages
        free = run(program, node_seconds([cost] * stages, program), wiring)
        synced, ends = finish(free, [cost] * stages, [], program.rank_of)
        assert synced == [t + 10.0 * chunks for t in free]
        assert ends == [t + 3.0 * chunks for t in synced]


def test_stored_costs_without_a_weight_part_can_be_read():
    row = {"forward_s": 1.0, "backward_s": 2.0, "recompute_s": 0.5}
    assert StageCost(**row).weight_s == 0.0
