"""``recompute=mixed`` against every combination of boundaries and recompute levels."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from autopar.cost import CostModel
from autopar.search.options import SearchOptions
from autopar.search.space.point import Point
from autopar.search.stages.chunks import equal_blocks
from autopar.search.stages.goal import Goal
from autopar.search.stages.goals import goal_for
from autopar.search.stages.mixed import MixedGoal
from autopar.search.stages.partition import PartitionSearch

from .builders import MB, chain_profile, cluster_of


def random_goal(seed: int, objective: str = "time", *, least: float = 0.3) -> MixedGoal:
    """Four or five blocks on two or three ranks, memory between all recomputed and none."""
    rng = random.Random(seed)
    n = rng.choice([4, 5])
    profile = chain_profile(
        [1e12 * rng.choice([1, 2, 3]) for _ in range(n)],
        parameter_bytes=[rng.choice([4_000_000, 40_000_000]) for _ in range(n)],
        saved_bytes=rng.choice([300, 500]) * MB,
        activation_bytes=rng.choice([10, 60]) * MB,
    )
    pp = rng.choice([2, 3])
    point = Point(
        pp=pp,
        schedule=rng.choice(["1f1b", "gpipe", "zero_bubble"]),
        microbatch_size=rng.choice([1, 2]),
        microbatches=3,
        recompute="mixed",
    )
    model, options = CostModel(profile, cluster_of(1, pp)), SearchOptions(objective=objective)
    needs = {
        level: goal_for(replace(point, recompute=level), model, options).tightest(
            equal_blocks(n, pp)
        )[1]
        for level in ("none", "full")
    }
    limit = needs["full"] + rng.uniform(least, 1.0) * (needs["none"] - needs["full"])
    goal = goal_for(point, model, replace(options, max_memory_bytes=limit))
    assert isinstance(goal, MixedGoal)
    return goal


def every_value(goal: MixedGoal) -> dict[tuple[tuple[int, ...], tuple[int, ...]], float]:
    """Objective by boundaries and levels."""
    n, stages = goal.layout.tables.count, goal.layout.stages
    found = {}
    for levels in itertools.product(range(3), repeat=n):
        plain = Goal(
            layout=replace(goal.layout, levels=levels),
            objective=goal.objective,
            max_memory_bytes=goal.max_memory_bytes,
        )
        for inner in itertools.combinations(range(1, n), stages - 1):
            cuts = (0, *inner, n)
            found[cuts, levels] = plain.value(cuts)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_mixed_is_the_best_of_all_boundaries_and_levels(seed: int) -> None:
    goal = random_goal(seed)
    values = every_value(goal)
    best = min(values.values())
    search = PartitionSearch(goal=goal)
    bound, found = search.lower_bound(), search.solve()
    assert math.isfinite(best)
    assert found.value == pytest.approx(best, rel=1e-12)
    assert bound <= best * (1 + 1e-12)
    assert found.cuts is not None
    assert found.levels is not None
    assert values[found.cuts, found.levels] == pytest.approx(found.value)


@pytest.mark.parametrize("seed", range(12))
def test_stage_and_prefix_bounds_never_exceed_any_value(seed: int) -> None:
    goal = random_goal(100 + seed)
    tables = [goal.stage_table(stage) for stage in range(goal.layout.stages)]
    values = {key: v for key, v in every_value(goal).items() if math.isfinite(v)}
    assert values
    for (cuts, _), value in values.items():
        for stage, table in enumerate(tables):
            width = cuts[stage + 1] - cuts[stage]
            assert table[cuts[stage], width - 1] <= value * (1 + 1e-12)
        for length in range(2, len(cuts) + 1):
            assert goal.prefix_bound(cuts[:length]) <= value * (1 + 1e-12)


def test_least_memory_mixes_levels_too() -> None:
    for seed in range(4):
        goal = random_goal(seed, objective="memory")
        best = min(every_value(goal).values())
        found = PartitionSearch(goal=goal).solve()
        assert found.levels is not None
        assert found.value == pytest.approx(best)


def test_full_recompute_is_never_lost() -> None:
    """What enters a stage is not counted when all is computed again: that may be all that fits."""
    goal = random_goal(3, least=1.0)
    full = goal_for(
        Point(
            pp=goal.layout.mesh.pp,
            schedule=goal.layout.schedule,
            microbatch_size=goal.layout.microbatch_size,
            microbatches=goal.layout.microbatches,
            recompute="full",
        ),
        goal.layout.model,
        SearchOptions(),
    )
    cuts = equal_blocks(goal.layout.tables.count, goal.layout.stages)
    needed = full.tightest(cuts)[1]
    tight = replace(goal, max_memory_bytes=needed * (1 + 1e-9))
    found = PartitionSearch(goal=tight).solve()
    assert found.value == pytest.approx(min(every_value(tight).values()))
    assert found.levels is not None


def test_room_for_everything_means_no_recompute() -> None:
    goal = replace(random_goal(0), max_memory_bytes=None)
    found = PartitionSearch(goal=goal).solve()
    assert found.levels is not None
    assert set(found.levels) == {0}
    assert np.isfinite(goal.value(found.cuts or ()))


def test_mixed_beats_every_uniform_level_where_memory_is_tight() -> None:
    """No recompute does not fit, full recompute does but is slower than what the memory allows."""
    profile = chain_profile(
        [2e12] * 12, saved_bytes=400 * MB, activation_bytes=20 * MB, signatures=["layer"] * 12
    )
    model = CostModel(profile, cluster_of(1, 2))
    options = SearchOptions(max_memory_bytes=8.0e9)
    found = {}
    for level in ("none", "full", "mixed"):
        point = Point(pp=2, schedule="1f1b", microbatch_size=1, microbatches=8, recompute=level)
        found[level] = PartitionSearch(goal=goal_for(point, model, options)).solve()
    assert found["none"].cuts is None
    assert found["mixed"].value < 0.95 * found["full"].value
    levels = found["mixed"].levels
    assert levels is not None
    assert {0, 2} <= set(levels)
