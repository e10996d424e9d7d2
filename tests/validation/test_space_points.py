"""Any valid point of the plan space runs and computes what one process computes."""

from __future__ import annotations

import random
from functools import cache

import pytest

from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.validation.parity.space_points import PlanSpace

DRAWS = [("gpt", 4), ("moe", 4), ("unet", 4), ("mlp", 2)]


@cache
def space_of(name: str, devices: int) -> PlanSpace:
    return PlanSpace(resolve(small_target(name)), devices)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_point_runs(seed: int) -> None:
    pytest.importorskip("transformers")
    space = space_of(*DRAWS[seed % len(DRAWS)])
    outcome = space.run(space.draw(random.Random(seed)))
    assert outcome.good, outcome


def test_draws_reach_every_axis() -> None:
    """Otherwise a sample says little."""
    pytest.importorskip("transformers")
    space, chooser = space_of("moe", 4), random.Random(0)
    points = [space.draw(chooser).point for _ in range(400)]
    for axis, wanted in {
        "dp_replicate": {1, 2, 4},
        "dp_shard": {1, 2, 4},
        "tp": {1, 2},
        "ep": {1, 2, 4},
        "pp": {1, 2},
        "zero": {0, 1, 2, 3},
        "recompute": {"none", "selective", "full", "mixed"},
        "sequence_parallel": {"on", "off"},
    }.items():
        assert {point.value(axis) for point in points} >= wanted, axis
    assert len({point.sync for point in points}) > 5
    assert len({point.schedule for point in points}) > 5
