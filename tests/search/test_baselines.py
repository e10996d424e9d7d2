"""What people try first, tuned as they would tune it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.cost import CostModel
from autopar.schedules import SCHEDULES
from autopar.search import SearchOptions
from autopar.search.explain.baselines import tune
from autopar.search.space.plans import layout_for
from autopar.search.space.point import Point
from autopar.search.stages.chunks import equal_blocks
from autopar.search.stages.goal import Goal

from .builders import chain_profile, cluster_of, gpu


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("memory", [7e9, 9e9, 14e9, 80e9])
def test_a_tuned_baseline_is_the_fastest_of_its_microbatches_and_recompute_modes(
    pp: int, memory: float
):
    """As a user who knows the tool would choose, not the first that fits."""
    profile = chain_profile([2e12] * 4, parameter_bytes=[40_000_000] * 4, saved_bytes=4e8)
    cluster = cluster_of(1, 4, device=gpu(memory=memory))
    model, options = CostModel(profile, cluster), SearchOptions(global_batch=32)
    schedule = "1f1b" if pp > 1 else "none"
    point = Point(dp_replicate=4 // pp, pp=pp, schedule=schedule, microbatches=8 * pp)
    every = [
        replace(point, microbatch_size=size, microbatches=8 * pp // size, recompute=mode)
        for size in (1, 2, 4, 8, 16, 32)
        if 8 * pp % size == 0 and not SCHEDULES.load(schedule).check(pp, pp, 8 * pp // size)
        for mode in ("none", "selective", "full")
    ]
    seconds = {}
    for tried in every:
        layout, cuts = layout_for(tried, model, options), equal_blocks(4, pp)
        if Goal(layout=layout, objective="time").feasible(cuts):
            seconds[tried] = layout.step_seconds(cuts)
    _, tuned = tune(point, model, options)
    assert tuned == (min(seconds, key=lambda each: seconds[each]) if seconds else None)
