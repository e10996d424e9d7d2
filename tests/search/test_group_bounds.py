"""Bounds of groups rise step by step and stay below what any of their plans takes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from autopar.search.bounds.group_bounds import SHARPEST, GroupBounds
from autopar.search.space.columns import Columns
from autopar.search.stages.chunks import equal_blocks
from autopar.search.stages.goals import goal_for
from autopar.search.walk.openings import Openings

from .test_arrays import groups_of
from .test_sharpen import CASES

BLOCKS = 8


@pytest.mark.parametrize("objective", ["time", "cost", "energy", "time-to-target"])
@pytest.mark.parametrize("name", CASES)
def test_no_plan_of_a_group_beats_its_bound(name: str, objective: str):
    groups, quick = groups_of(name, objective=objective)
    found = GroupBounds(quick, Columns.of(groups))
    before = found.bounds.copy()
    for step in range(SHARPEST):
        found.sharpen(found.possible)
        assert (found.bounds >= before).all()
        # On unlike machines the second step knows nothing more.
        assert (found.bounds > before).any() or (step == 1 and name.startswith("mixed"))
        before = found.bounds.copy()
    assert (found.bounds[found.possible] > 0).all()
    draws = np.random.default_rng(0)
    for group, bound in zip(groups, found.bounds.tolist(), strict=True):
        for variant in draws.choice(np.array(group.variants.variants), 3):
            point = group.point(variant)
            goal = goal_for(point, quick.model, quick.options)
            assert goal.value(equal_blocks(BLOCKS, point.stages)) >= bound


@pytest.mark.parametrize("name", CASES)
def test_groups_come_by_rising_bound_and_only_below_the_cutoff(name: str):
    groups, quick = groups_of(name)
    plain, reasons = quick.groups(Columns.of(groups))
    openings = Openings(GroupBounds(quick, Columns.of(groups)), Counter())
    cutoff = float(np.quantile(plain, 0.5))
    taken: list[int] = []
    while len(some := openings.take(cutoff, np.inf)):
        bounds = openings.bounds.bounds[some]
        assert (bounds < cutoff).all() and (np.diff(bounds) >= 0).all()
        taken += some.tolist()
    assert openings.least >= cutoff
    assert len(set(taken)) == len(taken)
    final = openings.bounds.bounds
    for index, (bound, reason) in enumerate(zip(final.tolist(), reasons, strict=True)):
        assert (index in taken) == (reason is None and bound < cutoff)


def test_points_left_and_points_rejected_add_up():
    groups, quick = groups_of("tied", max_memory_bytes=60e6)
    rejected: Counter[str] = Counter()
    openings = Openings(GroupBounds(quick, Columns.of(groups)), rejected)
    every = sum(group.variants.count for group in groups)
    assert openings.points + rejected.total() == every
    taken = 0
    while len(some := openings.take(np.inf, np.inf)):
        taken += sum(groups[i].variants.count for i in some)
    assert openings.points == 0 and taken + rejected.total() == every
