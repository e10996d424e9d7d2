"""The simulated step against hand calculation, its own parts, and its bounds."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.builders import chain_profile, cluster_of, gpu

from autopar.cost import CostModel, price, simulate_plan
from autopar.cost.bounds.step import Band, Bounds
from autopar.cost.layout import Layout
from autopar.cost.simulation.simulate import compile_program, node_seconds, run, wire
from autopar.cost.work import FULL, NONE
from autopar.graph import GraphProfile
from autopar.plans import Mesh
from autopar.results import PlanPrice, StageCost, Transfer
from autopar.schedules import SCHEDULES
from autopar.search import SearchOptions
from autopar.search.space.plans import build_plan
from autopar.search.space.point import Point


def step(schedule: str, costs: list[tuple[float, float]], ranks: int, m: int, hop: float) -> float:
    stages = len(costs)
    program = compile_program(SCHEDULES.load(schedule), ranks, stages, m)
    transfers = [
        Transfer(producer=s, consumer=s + 1, forward_s=hop, backward_s=hop, size_bytes=1.0)
        for s in range(stages - 1)
    ]
    costs_ = [StageCost(forward_s=f, backward_s=b, weight_s=b / 2) for f, b in costs]
    durations = node_seconds(costs_, program)
    return max(run(program, durations, wire(program, transfers)))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "m"), [(2, 2), (4, 8), (3, 1), (4, 4)])
def test_equal_stages_without_messages_take_the_textbook_time(schedule: str, ranks: int, m: int):
    assert step(schedule, [(1.0, 2.0)] * ranks, ranks, m, 1e-12) == pytest.approx(
        (m + ranks - 1) * 3.0
    )


def test_interleaving_divides_the_bubble():
    ranks, chunks, m = 4, 2, 8
    time_s = step("interleaved", [(1.0, 2.0)] * (ranks * chunks), ranks, m, 1e-12)
    assert time_s == pytest.approx(m * chunks * 3.0 + (ranks - 1) * 3.0)


def test_gpipe_of_uneven_stages_is_a_flow_shop():
    costs = [(1.0, 3.0), (2.0, 1.0), (0.5, 4.0)]
    m = 5
    forward, backward = [f for f, _ in costs], [b for _, b in costs]
    expected = sum(forward) + 4 * max(forward) + sum(backward) + 4 * max(backward)
    assert step("gpipe", costs, 3, m, 1e-12) == pytest.approx(expected)


def test_messages_of_1f1b_are_exposed_between_two_equal_stages():
    # Two stages: every second microbatch waits for a round trip, so hop seconds per microbatch.
    short, long = (step("1f1b", [(1.0, 1.0)] * 2, 2, m, 0.1) for m in (10, 20))
    assert (long - short) / 10 == pytest.approx(2.1)


def test_a_slow_link_limits_the_pipeline():
    short, long = (step("1f1b", [(1.0, 1.0)] * 2, 2, m, 50.0) for m in (10, 20))
    assert (long - short) / 10 >= 50.0


def test_a_pipeline_of_49k_actions_simulates_fast():
    program = compile_program(SCHEDULES.load("1f1b"), 64, 64, 384)
    transfers = [
        Transfer(producer=s, consumer=s + 1, forward_s=0.1, backward_s=0.1, size_bytes=1.0)
        for s in range(63)
    ]
    wiring, durations = wire(program, transfers), [1.0] * 64 + [2.0] * 64
    began = time.process_time()
    run(program, durations, wiring)
    assert len(program.order) == 49152
    assert time.process_time() - began < 0.4  # 0.03-0.05 s on a quiet core


SHAPES = st.sampled_from(
    [("none", 1, 1), ("gpipe", 2, 1), ("gpipe", 3, 1), ("1f1b", 2, 1), ("1f1b", 3, 1),
     ("1f1b", 4, 1), ("interleaved", 2, 2), ("interleaved", 2, 3), ("looped_bfs", 2, 2),
     ("zero_bubble", 2, 1), ("zero_bubble", 3, 1), ("zero_bubble", 4, 1),
     ("interleaved_zb", 2, 2), ("zbv", 2, 2),
     ("dualpipev", 2, 2)]
)  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[GraphProfile, Layout]:
    schedule, pp, chunks = draw(SHAPES)
    n = draw(st.integers(max(3, pp * chunks), 7))
    flops = draw(st.lists(st.floats(1e8, 1e12), min_size=n, max_size=n))
    pairs = list(itertools.combinations(range(n), 2))
    profile = chain_profile(
        flops,
        parameter_bytes=draw(
            st.lists(st.integers(1, 10), min_size=n, max_size=n).map(
                lambda sizes: [4_000_000 * s for s in sizes]
            )
        ),
        activation_bytes=draw(st.sampled_from([1e3, 1e6, 1e9])),
        tied=draw(st.lists(st.sampled_from(pairs), max_size=2, unique=True)),
        skips=draw(st.lists(st.sampled_from(pairs), max_size=2, unique=True)),
        missing=draw(st.lists(st.integers(1, n - 1), max_size=1)),
    )
    dp = draw(st.sampled_from([1, 2]))
    cluster = cluster_of(dp, pp, device=gpu(), inter=draw(st.sampled_from([1e9, 25e9])))
    m = draw(st.integers(1, 9))
    if schedule not in ("none", "gpipe", "1f1b"):
        m = pp * draw(st.integers(2, 4))
    layout = Layout(
        model=CostModel(profile, cluster),
        mesh=Mesh(dp_replicate=dp, pp=pp),
        placement=tuple(range(dp * pp)),
        schedule=schedule,
        stages=pp * chunks,
        microbatches=m,
        microbatch_size=draw(st.sampled_from([1, 3])),
        levels=(draw(st.sampled_from([NONE, FULL])),) * n,
    )
    return profile, layout


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_no_bound_is_above_the_simulated_time(case: tuple[GraphProfile, Layout]):
    profile, layout = case
    n, stages = len(profile.blocks), layout.stages
    bounds = Bounds(layout=layout, band=Band(blocks=n, width=n - stages + 1))
    chunked = stages > layout.mesh.pp
    tables = [] if chunked else [bounds.stage_table(s) for s in range(stages)]
    for inner in itertools.combinations(range(1, n), stages - 1):
        cuts = (0, *inner, n)
        simulated = layout.step_seconds(cuts) * (1 + 1e-9)
        if chunked:
            assert bounds.chunked(cuts) <= simulated
        for s in range(len(tables)):
            assert tables[s][cuts[s], cuts[s + 1] - cuts[s] - 1] <= simulated
            if s + 1 < stages:
                assert bounds.prefix(cuts[: s + 2]) <= simulated


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_prefix_bounds_know_the_round_trips_over_a_slow_link(schedule: str):
    """Else branch and bound tries every boundary of a pipeline that waits for messages."""
    profile = chain_profile([1e12] * 8, parameter_bytes=[4_000_000] * 8, activation_bytes=2e7)
    layout = Layout(
        model=CostModel(profile, cluster_of(4, 1, device=gpu(), inter=1e9)),
        mesh=Mesh(pp=4),
        placement=(0, 1, 2, 3),
        schedule=schedule,
        stages=4,
        microbatches=16,
        microbatch_size=1,
        levels=(NONE,) * 8,
    )
    cuts = (0, 2, 4, 6, 8)
    bounds = Bounds(layout=layout, band=Band(blocks=8, width=5))
    work = sum(bounds.span(0, 0, 2)) * layout.microbatches
    simulated = layout.step_seconds(cuts)
    assert simulated > 1.4 * work  # messages matter
    assert bounds.prefix(cuts[:4]) > 0.9 * simulated


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_a_priced_plan_can_be_drawn_again_and_its_parts_sum(case: tuple[GraphProfile, Layout]):
    profile, layout = case
    n = len(profile.blocks)
    point = Point(
        dp_replicate=layout.mesh.dp_replicate,
        pp=layout.mesh.pp,
        schedule=layout.schedule,
        chunks=layout.stages // layout.mesh.pp,
        microbatch_size=layout.microbatch_size,
        microbatches=layout.microbatches,
        recompute="full" if layout.levels[0] == FULL else "none",
    )
    cuts = (*range(layout.stages), n)
    plan = build_plan(point, cuts, layout.model, SearchOptions())
    result = price(plan, profile, layout.model.cluster)
    assert result.step_time_s.value == pytest.approx(layout.step_seconds(cuts), rel=1e-12)
    assert result.breakdown.total_s == pytest.approx(result.step_time_s.value, rel=1e-9)
    timeline = simulate_plan(plan, PlanPrice.from_dict(result.to_dict()))
    assert timeline.duration_s == pytest.approx(result.step_time_s.value, rel=1e-12)
    for rank in {e.rank for e in timeline.events}:
        mine = [e for e in timeline.events if e.rank == rank]
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(mine))
    forwards = [e for e in timeline.events if e.kind == "forward"]
    assert len(forwards) == layout.stages * layout.microbatches
