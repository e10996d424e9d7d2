"""Towers that do not need each other are priced, and found, as running at the same time."""

from __future__ import annotations

import pytest

from autopar.cost import CostModel, price
from autopar.cost.simulation.replay import simulate_plan
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import Timeline
from autopar.search import SearchOptions, search
from autopar.search.space.plans import build_plan
from autopar.search.space.point import Point
from autopar.search.stages.chunks import branch_cuts, chunked_cuts

from .builders import chain_profile, cluster_of

LAYERS = 4
WORK = 1e12


def towers() -> GraphProfile:
    """Blocks 0-3 and 4-7 are the towers, 8 reads the end of both."""
    return chain_profile(
        [*[WORK] * 2 * LAYERS, WORK / 100], missing=[LAYERS], skips=[(LAYERS - 1, 2 * LAYERS)]
    )


def simulated(plan: Plan, profile: GraphProfile) -> Timeline:
    cluster = cluster_of(1, 2)
    return simulate_plan(plan, price(plan, profile, cluster, CostModel(profile, cluster)))


def overlap_s(timeline: Timeline, kind: str, stages: tuple[int, int]) -> float:
    first, second = (
        [e for e in timeline.events if e.kind == kind and e.stage == stage] for stage in stages
    )
    return sum(
        max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s)) for a in first for b in second
    )


def test_a_stage_waits_only_for_what_it_reads() -> None:
    profile, cluster = towers(), cluster_of(1, 2)
    point = Point(pp=2, schedule="looped_bfs", chunks=2, microbatch_size=1, microbatches=1)
    cuts = branch_cuts(profile, 4)
    assert cuts == (0, 4, 7, 8, 9)
    plan = build_plan(point, cuts, CostModel(profile, cluster), SearchOptions())
    timeline = simulated(plan, profile)
    starts = {e.stage: e.start_s for e in timeline.events if e.kind == "forward"}
    assert starts[0] == starts[1] == 0.0
    forward_s = {e.stage: e.end_s - e.start_s for e in timeline.events if e.kind == "forward"}
    assert overlap_s(timeline, "forward", (0, 1)) == pytest.approx(forward_s[1])
    assert overlap_s(timeline, "backward", (0, 1)) > 0


def test_the_search_finds_the_towers() -> None:
    """One microbatch: a chain of stages would gain nothing over one device."""
    profile, cluster = towers(), cluster_of(1, 2)
    found = search(
        profile,
        cluster,
        SearchOptions(global_batch=1, fix=("pp=2,microbatches=1",), precision="float32"),
    )
    alone = search(
        profile,
        cluster,
        SearchOptions(global_batch=1, fix=("world=1,microbatches=1",), precision="float32"),
    )
    ratio = found.best.price.step_time_s.value / alone.best.price.step_time_s.value
    ideal = (LAYERS + 1) / (2 * LAYERS)  # the first tower and a layer of the second
    assert ratio == pytest.approx(ideal, abs=0.03)
    stages = found.best.plan.stages
    assert (stages[0].first_op, stages[0].stop_op, stages[0].pp) == (0, LAYERS, 0)
    assert overlap_s(simulated(found.best.plan, profile), "forward", (0, 1)) > 0


def test_branches_are_cut_where_they_start_and_end() -> None:
    assert branch_cuts(towers(), 3) == (0, 4, 8, 9)
    assert branch_cuts(towers(), 2) is None
    chain = chain_profile([WORK] * 6)
    assert branch_cuts(chain, 4) is None
    assert len(chunked_cuts(chain, 3)) == 1
    long_head = chain_profile([WORK] * 10, missing=[2], skips=[(1, 4)])
    assert branch_cuts(long_head, 5) == (0, 2, 4, 6, 8, 10)
